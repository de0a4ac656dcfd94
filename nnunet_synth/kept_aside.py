"""What an earlier run measured is kept when a new one begins in the same place."""

from __future__ import annotations

from datetime import datetime
from itertools import count
from pathlib import Path


def keep_aside(path: Path) -> Path | None:
    """Rename a file or folder by the time at which it was last written: log.jsonl → log_2026_12_01_13_59_07.jsonl.

    Returns:
        Its new path; None = there was nothing.
    """
    if not path.exists():
        return None
    written = datetime.fromtimestamp(path.stat().st_mtime)
    stem = f"{path.stem}_{written:%Y_%m_%d_%H_%M_%S}"
    names = (f"{stem}{f'_{number}' if number else ''}{path.suffix}" for number in count())
    return path.rename(next(path.with_name(name) for name in names if not path.with_name(name).exists()))
