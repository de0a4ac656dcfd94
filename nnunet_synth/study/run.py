"""One piece of a study: what it needs, how one sees that it is done, and how it is done.

Whether a run is done is read from the files that it leaves, never from a journal: what was made by hand counts, and
what was removed is made again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from nnunet_synth.errors import UserError

Command = tuple[str, ...]


class NotPossibleError(UserError):
    """What a run would need is not there, and no mistake: it is skipped, not failed."""


@dataclass(frozen=True)
class Run(ABC):
    """
    Attributes:
        id: names it, and its files in the study's folder: "train/SA-CPS/phantom/f0_10%/s0" with slugs.
        needs: ids of the runs that must be done before.
        missing: why this version, or this dataset, can never do it; it and all that need it are skipped.
    """

    id: str
    needs: tuple[str, ...] = ()
    missing: str | None = None

    @property
    def kind(self) -> str:
        return self.id.split("/")[0]

    @abstractmethod
    def is_done(self) -> bool:
        """From files on the disk, and only then asked when everything it needs is done.

        Raises:
            UserError: they are there, but of something else.
        """

    def begin(self) -> None:
        """What is done in this process before the commands. Raises UserError."""

    def commands(self) -> list[Command]:
        """What is still to be executed, with what resumes a broken run."""
        return []

    def finish(self) -> None:
        """What is done in this process after the commands."""

    def shown(self) -> list[str]:
        """What a user would type, or words for what is done in this process."""
        return [" ".join(quoted(word) for word in command) for command in self.commands()]

    def environment(self) -> dict[str, str]:
        """Variables beside the study's."""
        return {}

    def lock_file(self, folder: Path) -> Path:
        """Held while the run goes on; that of a training lies with its results, which other studies share.

        Args:
            folder: of the study.
        """
        return folder / "locks" / f"{self.id.replace('/', '.')}.lock"


def quoted(word: str) -> str:
    import shlex
    return shlex.quote(word)


def is_newer(target: Path, source: Path) -> bool:
    """Both are there, and `target` was not written before `source`."""
    return target.exists() and source.exists() and target.stat().st_mtime >= source.stat().st_mtime
