"""The state of every run of a study, on disk and on the screen: one line a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from nnunet_synth.atomic import write_json, write_text
from nnunet_synth.study.run import Run

State = Literal["pending", "running", "done", "failed", "skipped"]


@dataclass(frozen=True)
class Entry:
    """What is known of a run beyond its results.

    Attributes:
        reason: why it failed or was skipped, or what it waits for.
        seconds: wall clock of all its attempts; None where another program has done it.
        peak_memory: MiB of resident memory of its processes.
        device: where it ran.
        finished: when, ISO 8601.
    """

    state: State = "pending"
    reason: str = ""
    seconds: float | None = None
    peak_memory: float | None = None
    device: str = ""
    commands: tuple[str, ...] = ()
    finished: str = ""


class Board:
    """States of the runs in `folder`: `runs/<id>.json` each, because the jobs of a cluster write them at the same time,
    and all of them in `state.txt`."""

    def __init__(self, runs: Sequence[Run], folder: Path) -> None:
        self.runs, self.folder = runs, folder
        self.entries = {run.id: self._read(run.id) for run in runs}

    def _file(self, run_id: str) -> Path:
        return self.folder / "runs" / f"{run_id.replace('/', '.')}.json"

    def _read(self, run_id: str) -> Entry:
        try:
            content: dict[str, Any] = json.loads(self._file(run_id).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Entry()
        known = {field.name for field in fields(Entry)}
        return Entry(**{key: tuple(value) if key == "commands" else value
                        for key, value in content.items() if key in known})

    def set(self, run: Run, **changes: Any) -> Entry:
        """Change what is known of a run, and store it."""
        entry = replace(self.entries[run.id], **changes)
        if entry != self.entries[run.id]:
            self.entries[run.id] = entry
            write_json(asdict(entry), self._file(run.id))
        return entry

    def line(self, run: Run) -> str:
        """The run in one line."""
        entry = self.entries[run.id]
        seconds = f" ({_duration(entry.seconds)})" if entry.state in ("done", "running") and entry.seconds else ""
        reason = f": {entry.reason}" if entry.reason else ""
        return f"{entry.state:8} {run.id}{seconds}{reason}"

    def write(self) -> None:
        """`state.txt`."""
        write_text("".join(f"{self.line(run)}\n" for run in self.runs), self.folder / "state.txt")

    def count(self) -> str:
        """"12 done, 3 pending"."""
        states = [self.entries[run.id].state for run in self.runs]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{rest} s" if not minutes else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
