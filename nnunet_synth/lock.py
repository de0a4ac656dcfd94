"""Locks that end with their holder, however it dies: the operating system's, on an open file.

    .TARGET.lock        hidden, beside what is written; in it who holds it. Gone when the writer is done; what a killed
                        one leaves is an ordinary file, and the next writer takes it over
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path

from nnunet_synth.errors import UserError

try:
    import fcntl
except ImportError:         # Windows
    fcntl = None

POLL = 0.5      # s between two looks at a lock that is waited for


class NoLocksError(UserError):
    """This system, or this drive, has no file locks."""


class Lock:
    """An exclusive or shared lock on a file; held until `release`, or until the last process that inherited its
    `descriptor` has ended: commands inherit it only where it is passed on, forked workers never."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None

    def acquire(self, shared: bool = False) -> bool:
        """Whether it was free.

        Raises:
            NoLocksError: there are no file locks (Windows, some network drives).
        """
        if fcntl is None:
            raise NoLocksError(f"{self.path}: there are no file locks on this system, only on Linux and macOS: run it "
                               "there, or in WSL")
        while True:
            try:
                descriptor = self._open()
            except OSError as error:
                raise self._refused(error) from error
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return False
                raise self._refused(error) from error
            if _is_same_file(descriptor, self.path):
                self.descriptor = descriptor
                _held.add(self)
                _write_holder(descriptor, shared)
                return True
            os.close(descriptor)        # its holder has removed it since it was opened: it keeps nobody out

    def _open(self) -> int:
        for _ in range(9):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):       # another has just removed the folder that it had made for its lock
                return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)

    def _refused(self, error: OSError) -> NoLocksError:
        return NoLocksError(f"{self.path} cannot be locked ({error.strerror}): put it on a drive that has file locks, "
                            "where you may write")

    @property
    def holder(self) -> str:
        """Who holds it and since when, as far as is known; for messages."""
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {holder['process']} on host {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):      # it has ended, or is just beginning; or they share it
            return "another process"

    def release(self) -> None:
        """Close it here; a command that inherited the descriptor goes on holding it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
            _held.discard(self)


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    """A forked worker that outlives its killed parent would hold the parent's locks for ever."""
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_forked_child)


# ----------------------------------------------------------------------------------------------------------------------
# One writer a target


@contextmanager
def only_writer(target: Path, waits: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder that is about to be written.

    Where there are no file locks, go on with a warning: most users are alone on their drive.

    Args:
        waits: until another writer is done, and say so; for work that need not be done again then.

    Raises:
        UserError: another process writes it.
    """
    lock = Lock(lock_file(target))
    missing = [folder for folder in lock.path.parents if not os.path.exists(folder)]
    try:
        while not lock.acquire():
            if not waits:
                raise _taken(target, lock)
            _say(f"waiting for {lock.holder}, which is writing {target}")
            time.sleep(POLL)
    except NoLocksError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
            # Who may not write here is told so by the first write, or finds everything done and writes nothing.
            _say(f"warning: {error}; going on without: see to it that nothing else writes {target}")
    try:
        yield
    finally:
        if lock.descriptor is not None:
            lock.path.unlink(missing_ok=True)       # before its release: nobody can have taken it over yet
            lock.release()
            _remove_empty(missing)


def refuse_second_writer(target: Path) -> None:
    """Raise UserError where another process writes `target` now; leaves nothing there."""
    if os.path.exists(lock_file(target)):
        with only_writer(target):
            pass


def lock_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _taken(target: Path, lock: Lock) -> UserError:
    return UserError(f"{target} is being written by {lock.holder}: wait until that is done, or stop it")


@cache
def _say(line: str) -> None:
    """Once."""
    print(line, file=sys.stderr, flush=True)


def _write_holder(descriptor: int, shared: bool) -> None:
    holder = {"process": os.getpid(), "host": socket.gethostname(),
              "since": datetime.now().astimezone().isoformat(" ", "seconds")}
    with suppress(OSError):         # a full disk: it is locked all the same
        os.ftruncate(descriptor, 0)         # what a killed holder left
        if not shared:
            os.pwrite(descriptor, f"{json.dumps(holder)}\n".encode(), 0)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_empty(folders: Sequence[Path]) -> None:
    """Those that were made for a lock, innermost first, as far as nothing else is in them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
