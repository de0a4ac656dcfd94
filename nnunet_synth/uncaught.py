"""User errors that nobody catches, as in `nnUNetv2_train`: one line and exit status 2 instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from nnunet_synth.errors import UserError

Hook = Callable[[type[BaseException], BaseException, "TracebackType | None"], object]


class OneLineForUserErrors:
    """A `sys.excepthook`; whatever is no UserError goes to the one that was there before."""

    def __init__(self, before: Hook) -> None:
        self.before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, UserError):
            self.before(kind, error, trace)
            return
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        raise SystemExit(2)     # as sys.exit anywhere else: Python flushes, ends its children, and has this status


def tell_user_errors_in_one_line() -> None:
    """From now on, in this process."""
    if not isinstance(sys.excepthook, OneLineForUserErrors):
        sys.excepthook = OneLineForUserErrors(sys.excepthook)
