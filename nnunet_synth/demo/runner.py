"""Runs commands one after another, shows what they do, and remembers which are done."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_synth.atomic import write_json
from nnunet_synth.errors import UserError

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
        log.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen([*_executable(command[0]), *command[1:]], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
                                   env={**os.environ, **self.environment, **dict(step.environment)})
        last = ""
        try:
            with open(log, "a", encoding="utf-8", buffering=1) as file:
                for line in _watched(process.stdout):
                    file.write(line)
                    last = line.strip() or last
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.terminate()
            process.wait()
        if process.returncode:
            raise UserError(f"{step.title}: the command failed with exit status {process.returncode} ({last[:200]}); "
                            f"all it said is in {log}; run the same demo again to continue from here")


def _executable(name: str) -> list[str]:
    """How to start a console script of this Python environment, whether or not it is on the PATH."""
    if name == "nnunet_synth":
        return [sys.executable, "-m", "nnunet_synth"]
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise UserError(f"the command {name} was not found beside {sys.executable}: install nnunetv2 there")
    return [found]


def _watched(output: Iterator[str]) -> Iterator[str]:
    """Pass the lines on, and show the latest and the time: in place on a terminal, elsewhere now and then."""
    is_terminal = sys.stdout.isatty()
    interval = 1.0 if is_terminal else SECONDS_BETWEEN_LINES
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_forward, args=(output, lines), daemon=True).start()

    start = last = time.monotonic()
    text = ""
    while True:
        try:
            line = lines.get(timeout=1.0)   # a training is silent for minutes; the time goes on
        except queue.Empty:
            line = ""
        if line is None:
            break
        text = line.strip() or text
        now = time.monotonic()
        if text and now - last >= interval:
            last = now
            message = f"    {now - start:4.0f} s: {text[:shutil.get_terminal_size().columns - 16]}"
            print(f"\r\x1b[K{message}" if is_terminal else message, end="" if is_terminal else "\n", flush=True)
        if line:
            yield line
    if is_terminal:
        print("\r\x1b[K", end="", flush=True)


def _forward(output: Iterator[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Put every line into the queue as it comes, then None."""
    for line in output:
        lines.put(line)
    lines.put(None)
