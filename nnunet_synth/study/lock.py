"""Locks that end with their holder, however it dies: the operating system's, on an open file."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_synth.errors import UserError


class Lock:
    """An exclusive or shared lock on a file; held until `release`, or until the last process that inherited its
    `descriptor` has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None

    def acquire(self, shared: bool = False) -> bool:
        """Whether it was free. A lock in a folder that cannot be locked (some network drives) raises UserError."""
        try:
            import fcntl
        except ImportError as error:
            raise UserError("nnunet_synth study needs file locks of Linux or macOS: run it there, or in WSL") from error
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            os.close(descriptor)
            raise UserError(f"{self.path} cannot be locked ({error.strerror}): put it on a drive that has file locks") \
                from error
        if not shared:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self.descriptor = descriptor
        return True

    @property
    def holder(self) -> str:
        """What the holder wrote: its process id, for messages."""
        return self.path.read_text(encoding="utf-8").strip() if self.path.exists() else ""

    def release(self) -> None:
        """Close it here; a process that inherited the descriptor goes on holding it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
