"""Executes the runs of a study: each once, after what it needs, as many at a time as there are devices.

A run that fails does not stop the others, only those that need it. Killed at any moment and started again, the study
goes on: what is done is seen from its files, and a broken training continues from its checkpoint. A training whose
study was killed goes on by itself; it holds the lock of its run, and the next study waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from nnunet_synth.errors import UserError
from nnunet_synth.lock import Lock
from nnunet_synth.process import LoggedProcess
from nnunet_synth.study.board import Board
from nnunet_synth.study.place import Place
from nnunet_synth.study.run import Command, NotPossibleError, Run

POLL = 0.2              # s between two looks at the running commands
LOOK_AGAIN = 5.0        # s between two looks at the runs that are not started, unless one has ended
STORE_EVERY = 10.0      # s between two records of the time and memory of a running command: a kill loses no more
INDIRECTLY = "was skipped"      # what needs a skipped run: in state.txt, but no news on the screen


@contextmanager
def study_lock(folder: Path, shared: bool = False) -> Iterator[None]:
    """Held while a study works in `folder`; single runs of a job array share it. Raises UserError where it is taken."""
    lock = Lock(folder / "study.lock")
    if not lock.acquire(shared):
        raise UserError(f"another nnunet_synth study works in {folder} ({lock.holder}): wait for it, or stop "
                        "it; for many runs at once see --gpus and --list")
    try:
        yield
    finally:
        lock.release()


class _Active:
    """A run that goes on: its commands one after another, on one device."""

    def __init__(self, run: Run, place: Place, gpu: str | None, lock: Lock, seconds_before: float) -> None:
        self.run, self.place, self.gpu, self.lock = run, place, gpu, lock
        self.seconds_before, self.peak_memory = seconds_before, 0.0
        self._started = self._stored = time.monotonic()
        run.begin()
        self._commands = iter(run.commands())
        self.done_commands: list[Command] = []
        self.process: LoggedProcess | None = None
        self.failure = ""

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._started

    @property
    def is_due(self) -> bool:
        """Whether its time should be stored now."""
        if time.monotonic() - self._stored < STORE_EVERY:
            return False
        self._stored = time.monotonic()
        return True

    def advance(self) -> bool:
        """Start the next command if none runs; whether the run has ended, well or with a `failure`."""
        if self.process is not None:
            self.process.measure_memory()
            self.peak_memory = max(self.peak_memory, self.process.peak_memory or 0.0)
            status = self.process.poll()
            if status is None:
                return False
            if status:
                self.failure = f"{self.process.command[0]} ended with status {status} " \
                    f"({self.process.last_line()[:200]}); see {self.process.log}"
                return True
        command = next(self._commands, None)
        if command is None:
            return True
        self.done_commands.append(command)
        log = self.place.folder / "logs" / f"{self.run.id.replace('/', '.')}.log"
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu is not None else {}
        inherit = [] if self.lock.descriptor is None else [self.lock.descriptor]
        self.process = LoggedProcess(command, log, {**self.place.environment, **self.run.environment(), **gpu}, inherit)
        return False

    def end(self) -> None:
        """Stop what runs, and give the lock back."""
        if self.process is not None:
            self.process.stop()
        self.lock.release()


class Runner:
    """Executes runs.

    Args:
        runs: in an order in which they could be done one after another.
        gpus: one run at a time on each of them (CUDA_VISIBLE_DEVICES); [None] = one run at a time, as the environment
            is.
        budget: seconds after which no further run is started; None = all are.
        is_whole: these are all runs of the study; a job of an array leaves state.txt alone.
    """

    def __init__(self, runs: Sequence[Run], place: Place, gpus: Sequence[str | None] = (None,),
                 budget: float | None = None, is_whole: bool = True) -> None:
        self.runs, self.place = runs, place
        self.board = Board(runs, place.folder)
        self.free, self.budget, self.is_whole = list(gpus), budget, is_whole
        self.active: list[_Active] = []
        self._started = time.monotonic()
        self._open = list(runs)         # neither done, failed nor skipped in this call
        self._finished: set[str] = set()
        self._lost: dict[str, str] = {}     # id → why it cannot be had
        for run in runs:
            if self.board.entries[run.id].state != "done":
                self.board.set(run, state="pending", reason="")

    def run(self) -> Board:
        """Do what can be done; returns the board. Never raises for a run that fails."""
        try:
            while self._start_ready() or self.active:
                looked = time.monotonic()
                while not self._look_at_active() and time.monotonic() - looked < LOOK_AGAIN:
                    time.sleep(POLL)
        finally:
            for active in self.active:
                active.end()
                self.board.set(active.run, state="pending", reason="interrupted", seconds=round(active.seconds, 1))
            self._summarise()
        return self.board

    # -- running -----------------------------------------------------------------------------------------------------

    def _look_at_active(self) -> bool:
        """Bring the running ones forward; whether one has ended."""
        before = len(self.active)
        for active in list(self.active):
            try:
                if active.advance():
                    self._close(active)
                elif active.is_due:
                    self._store(active)
            except Exception as error:      # a broken file, a full disk: this run failed, the others may not
                active.failure = _reason(error)
                self._close(active)
        return len(self.active) < before

    def _close(self, active: _Active) -> None:
        run, failure = active.run, active.failure
        if not failure:
            try:
                run.finish()
                if not run.is_done():
                    failure = "it ended without an error, but its results are not there; see its log in " \
                        f"{self.place.folder / 'logs'}"
            except Exception as error:
                failure = _reason(error)
        self._store(active)
        active.end()
        self.active.remove(active)
        self.free.append(active.gpu)
        self._settle(run, "failed" if failure else "done", failure)

    def _store(self, active: _Active) -> None:
        self.board.set(active.run, seconds=round(active.seconds, 1), peak_memory=round(active.peak_memory, 1) or None,
                       commands=tuple(" ".join(command) for command in active.done_commands))

    # -- choosing ----------------------------------------------------------------------------------------------------

    def _start_ready(self) -> bool:
        """Start what can be started; whether another process is to be waited for."""
        waiting = False
        for run in list(self._open):
            lost = [f"{need}, which {self._lost[need]}" for need in run.needs if need in self._lost]
            if run.missing or lost:
                self._settle(run, "skipped", run.missing or f"needs {lost[0]}")
            elif all(need in self._finished for need in run.needs):
                waiting = self._try(run) or waiting
        return waiting

    def _try(self, run: Run) -> bool:
        """Start a run whose needs are done, if it is not done itself; whether another process is at it."""
        lock = Lock(run.lock_file(self.place.folder))
        try:
            if run.is_done():
                self._settle(run, "done")
                return False
            if not self.free or any(active.lock.path == lock.path for active in self.active):
                return False
            if self.budget is not None and time.monotonic() - self._started >= self.budget:
                self.board.set(run, state="pending", reason="the time budget is spent")
                return False
            if not lock.acquire():
                self._report(run, state="pending", reason=f"goes on in another process ({lock.holder}), waiting for it")
                return True
            entry = self.board.entries[run.id]
            before = 0.0 if entry.state == "done" else entry.seconds or 0.0        # done before, and removed
            active = _Active(run, self.place, self.free[0], lock, before)
        except Exception as error:
            lock.release()
            self._settle(run, "skipped" if isinstance(error, NotPossibleError) else "failed", _reason(error))
            return False
        self.free.pop(0)
        self._open.remove(run)
        self.active.append(active)
        device = self.place.device if active.gpu is None else f"{self.place.device} {active.gpu}"
        self._report(run, state="running", reason="", device=device, finished="")
        return False

    def _settle(self, run: Run, state: str, reason: str = "") -> None:
        if run in self._open:
            self._open.remove(run)
        if state == "done":
            self._finished.add(run.id)
        else:
            self._lost[run.id] = "failed" if state == "failed" else INDIRECTLY
        was_done = self.board.entries[run.id].state == state == "done"
        self._report(run, state=state, reason=reason, **({} if was_done else {"finished": _now()}))

    def _report(self, run: Run, **changes: object) -> None:
        before = self.board.entries[run.id]
        after = self.board.set(run, **changes)
        if after != before:
            if not after.reason.endswith(INDIRECTLY):
                print(self.board.line(run), flush=True)
            self._summarise()

    def _summarise(self) -> None:
        if self.is_whole:
            self.board.write()


def run_one(run_id: str, runs: Sequence[Run], place: Place, gpus: Sequence[str | None] = (None,)) -> Board:
    """A single run of a study, as a job of an array.

    Raises:
        UserError: there is no such run, or what it needs is not done.
    """
    by_id = {run.id: run for run in runs}
    if run_id not in by_id:
        raise UserError(f"the study has no run {run_id!r}: --list shows all")
    for need in _all_needs(run_id, by_id):
        if by_id[need].missing:
            raise UserError(f"{need} {by_id[need].missing}")
        if not by_id[need].is_done():
            raise UserError(f"{run_id} needs {need}, which is not done: run that first")
    return Runner([replace(by_id[run_id], needs=())], place, gpus[:1], is_whole=False).run()


def _all_needs(run_id: str, by_id: dict[str, Run]) -> list[str]:
    """What a run needs, directly or not, each after what it needs itself."""
    found: dict[str, None] = {}
    for need in by_id[run_id].needs:
        for deeper in _all_needs(need, by_id):
            found.setdefault(deeper)
        found.setdefault(need)
    return list(found)


def _reason(error: Exception) -> str:
    """In one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
