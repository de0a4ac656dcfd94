"""Root may read everything: tests of missing permissions act as the user `nobody` meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

NOBODY = 65534


@contextmanager
def without_privileges() -> Iterator[None]:
    """Act as somebody who is not root. What is used in here must have been imported before, and files that are to be
    reached must lie in folders that everybody may enter (pytest's own are private)."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
