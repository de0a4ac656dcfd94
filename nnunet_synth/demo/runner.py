"""Runs commands one after another, shows what they do, and remembers which are done."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_synth.atomic import write_json
from nnunet_synth.errors import UserError
from nnunet_synth.process import LoggedProcess

SECONDS_BETWEEN_LINES = 20.0        # of a running command's output, where there is no terminal


@dataclass(frozen=True)
class Step:
    """One piece of the job.

    Attributes:
        title: what it does, in words.
        command: what a user would type; None where a Python function does it.
        function: called without arguments instead of a command.
        environment: variables beside the runner's.
    """

    title: str
    command: tuple[str, ...] | None = None
    function: Callable[[], None] | None = None
    environment: tuple[tuple[str, str], ...] = ()


class Runner:
    """Runs steps in `folder`; a step that finished before, with the same command, is skipped.

    Attributes:
        journal: title → {"command", "seconds"} of the finished steps, kept in `steps.json`.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self._journal_file = folder / "steps.json"
        exists = self._journal_file.exists()
        self.journal: dict[str, dict] = json.loads(self._journal_file.read_text()) if exists else {}
        self._number = 0

    def run(self, step: Step, resume: tuple[str, ...] = ()) -> None:
        """Do `step`, unless it is done; `resume` are arguments that continue what an interrupted run has begun.

        Raises:
            UserError: the command failed; the message names its log.
        """
        self._number += 1
        shown = " ".join(step.command) if step.command else ""
        done = self.journal.get(step.title)
        if done is not None and done["command"] == shown:
            print(f"[{self._number}] {step.title}: done before, in {done['seconds']:.0f} s", flush=True)
            return
        print(f"[{self._number}] {step.title}", flush=True)
        start = time.monotonic()
        if step.command:
            print("    $ " + " ".join((*step.command, *resume)), flush=True)
            self._execute((*step.command, *resume), step)
        if step.function:
            step.function()
        seconds = time.monotonic() - start
        print(f"    {seconds:.0f} s", flush=True)
        self.journal[step.title] = {"command": shown, "seconds": round(seconds, 1)}
        write_json(self.journal, self._journal_file)

    def _execute(self, command: tuple[str, ...], step: Step) -> None:
        log = self.folder / "logs" / f"{self._number:02d}_{command[0]}.log"
        process = LoggedProcess(command, log, {**self.environment, **dict(step.environment)})
        try:
            status = _watched(process)
        finally:
            process.stop()
        if status:
            raise UserError(f"{step.title}: the command failed with exit status {status} "
                            f"({process.last_line()[:200]}); all it said is in {log}; run the same demo again to "
                            "continue from here")


def _watched(process: LoggedProcess) -> int:
    """Wait for the end, and show the latest line and the time: in place on a terminal, elsewhere now and then."""
    is_terminal = sys.stdout.isatty()
    interval = 1.0 if is_terminal else SECONDS_BETWEEN_LINES
    while (status := process.wait(interval)) is None:
        if text := process.last_line():
            message = f"    {process.seconds:4.0f} s: {text[:shutil.get_terminal_size().columns - 16]}"
            print(f"\r\x1b[K{message}" if is_terminal else message, end="" if is_terminal else "\n", flush=True)
    if is_terminal:
        print("\r\x1b[K", end="", flush=True)
    return status
