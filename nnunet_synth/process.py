"""Commands of this Python environment in processes of their own, with all they say in a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_synth.errors import UserError

TAIL = 4096             # bytes of a log that are looked at for its last line
MIB = 2 ** 20


def executable(name: str) -> list[str]:
    """How to start a console script of this Python environment, whether or not it is on the PATH.

    Raises:
        UserError: there is none of this name.
    """
    if name == "nnunet_synth":
        return [sys.executable, "-m", "nnunet_synth"]
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise UserError(f"the command {name} was not found beside {sys.executable}: install nnunetv2 there")
    return [found]


class LoggedProcess:
    """A running command that appends its output to a log.

    The log is the process's own, no pipe of ours: a command outlives the death of who started it.

    Attributes:
        command: what a user would type.
        peak_memory: highest resident memory of it and its descendants that `measure_memory` has seen, MiB; None where
            the system does not tell.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str],
                 inherit: Sequence[int] = ()) -> None:
        """
        Args:
            environment: variables beside ours.
            inherit: file descriptors that stay open in the process and its descendants, as those of locks.
        """
        self.command, self.log = tuple(command), log
        self.peak_memory: float | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self._begin = file.tell()
            self._process = subprocess.Popen([*executable(command[0]), *command[1:]], stdin=subprocess.DEVNULL,
                                             stdout=file, stderr=subprocess.STDOUT, pass_fds=tuple(inherit),
                                             env={**os.environ, **environment})
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """The exit status as soon as there is one, None after `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def last_line(self) -> str:
        """The last line that it wrote and that is not blank."""
        with open(self.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._begin, size - TAIL))
            text = file.read().decode("utf-8", errors="replace")
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def stop(self) -> None:
        """Ask it to end, and wait until it has; one that does not listen is killed."""
        if self.poll() is None:
            self._process.terminate()
            if self.wait(20) is None:
                self._process.kill()
                self._process.wait()

    def measure_memory(self) -> None:
        """Look at the resident memory of the process and its descendants now; pages that they share count each time."""
        resident = _resident_memory(self._process.pid)
        if resident is not None:
            self.peak_memory = max(self.peak_memory or 0.0, resident)


def _resident_memory(root: int) -> float | None:
    """MiB of a process and its descendants, from Linux's /proc; None elsewhere."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in brackets may hold blanks and brackets itself.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue        # it has just ended
    if root not in pages:
        return None
    family, found = [root], {root}
    for member in family:
        children = [child for child, parent in parents.items() if parent == member and child not in found]
        family += children
        found.update(children)
    return sum(pages.get(member, 0) for member in family) * os.sysconf("SC_PAGE_SIZE") / MIB
