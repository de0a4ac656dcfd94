"""The runner with stand-in commands: what runs, in which order, what survives a kill, what is refused."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunet_synth import process as process_module
from nnunet_synth.errors import UserError
from nnunet_synth.lock import Lock
from nnunet_synth.study.place import Place
from nnunet_synth.study.run import NotPossibleError, Run
from nnunet_synth.study.runner import Runner, run_one, study_lock

# Writes a line to the diary; takes `seconds`, and leaves a checkpoint halfway: with --c it only does the second half.
WORK = """
import os, sys, time
from pathlib import Path
target, seconds, *resume = sys.argv[1:]
target = Path(target)
with open(target.parent / 'diary', 'a') as diary:
    print('begin', target.name, *resume, os.environ.get('CUDA_VISIBLE_DEVICES', '-'), file=diary)
for half in range(1 if resume else 0, 2):
    time.sleep(float(seconds) / 2)
    target.with_suffix('.half').touch()
if 'bad' in target.name:
    sys.exit('the reason')
target.touch()
with open(target.parent / 'diary', 'a') as diary:
    print('end', target.name, file=diary)
"""


@dataclass(frozen=True)
class Work(Run):
    folder: Path = Path()
    seconds: float = 0.0
    impossible: bool = False

    @property
    def target(self):
        return self.folder / self.id.replace("/", "_")

    def is_done(self):
        return self.target.exists()

    def begin(self):
        if self.impossible:
            raise NotPossibleError("no labels")

    def commands(self):
        resume = ("--c",) if self.target.with_suffix(".half").exists() else ()
        return [("python", str(self.folder / "work.py"), str(self.target), str(self.seconds), *resume)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "executable", lambda name: [sys.executable])
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


def place_of(folder):
    return Place(folder / "study", "cpu", folder, folder, folder)


def diary(folder):
    file = folder / "diary"
    return file.read_text().splitlines() if file.exists() else []


def states(board):
    return {run_id: entry.state for run_id, entry in board.entries.items()}


def test_every_run_once_and_after_what_it_needs(folder, capsys):
    runs = [Work("a", (), None, folder), Work("b", ("a",), None, folder), Work("c", ("a", "b"), None, folder)]
    board = Runner(runs, place_of(folder)).run()
    assert diary(folder) == [f"{word} {name}{' -' if word == 'begin' else ''}" for name in "abc"
                             for word in ("begin", "end")]
    assert states(board) == dict.fromkeys("abc", "done")
    entry = board.entries["a"]
    assert entry.seconds > 0 and entry.finished and "work.py" in entry.commands[0]
    assert [line.split()[:2] for line in (folder / "study/state.txt").read_text().splitlines()] == \
        [["done", name] for name in "abc"]

    capsys.readouterr()
    Runner(runs, place_of(folder)).run()
    assert len(diary(folder)) == 6 and capsys.readouterr().out == ""
    (folder / "b").unlink()                  # what was removed is made again, and nothing else
    Runner(runs, place_of(folder)).run()
    assert diary(folder)[6:] == ["begin b --c -", "end b"]


def test_a_failure_stops_only_what_needs_it(folder):
    runs = [Work("bad", (), None, folder), Work("after", ("bad",), None, folder),
            Work("later", ("after",), None, folder), Work("other", (), None, folder)]
    board = Runner(runs, place_of(folder)).run()
    assert states(board) == {"bad": "failed", "after": "skipped", "later": "skipped", "other": "done"}
    assert "status 1 (the reason); see" in board.entries["bad"].reason
    assert board.entries["after"].reason == "needs bad, which failed"
    assert board.entries["later"].reason == "needs after, which was skipped"
    Runner(runs, place_of(folder)).run()
    assert [line for line in diary(folder) if "bad" in line] == ["begin bad -", "begin bad --c -"]   # tried again


def test_what_cannot_be_had_is_skipped_with_its_reason(folder):
    runs = [Work("um2i", (), "needs synthesizer um2i, which this version does not have", folder),
            Work("unlabelled", (), None, folder, impossible=True), Work("a", (), None, folder)]
    board = Runner(runs, place_of(folder)).run()
    assert states(board) == {"um2i": "skipped", "unlabelled": "skipped", "a": "done"}
    assert board.entries["um2i"].reason.startswith("needs synthesizer um2i")
    assert board.entries["unlabelled"].reason == "no labels" and len(diary(folder)) == 2


def test_a_command_that_leaves_no_result_has_failed(folder):
    @dataclass(frozen=True)
    class Lazy(Work):
        def commands(self):
            return [("python", "-c", "pass")]
    board = Runner([Lazy("lazy", (), None, folder)], place_of(folder)).run()
    assert board.entries["lazy"].state == "failed" and "results are not there" in board.entries["lazy"].reason


def test_one_run_on_each_gpu(folder):
    runs = [Work(name, (), None, folder, 1.0) for name in "abc"]
    board = Runner(runs, place_of(folder), ["0", "3"]).run()
    lines = diary(folder)
    assert {line.split()[-1] for line in lines[:2]} == {"0", "3"}
    assert all(line.startswith("begin") for line in lines[:2])
    assert lines[2].startswith("end") and sum(line.startswith("end") for line in lines) == 3
    assert board.entries["a"].device == "cpu 0"


def test_the_budget_starts_nothing_more_and_the_next_call_goes_on(folder):
    runs = [Work(name, (), None, folder, 0.5) for name in "ab"]
    board = Runner(runs, place_of(folder), budget=0.2).run()
    assert states(board) == {"a": "done", "b": "pending"} and "budget" in board.entries["b"].reason
    assert states(Runner(runs, place_of(folder)).run()) == dict.fromkeys("ab", "done")


STUDY = """
import sys
from pathlib import Path
from nnunet_synth import process
process.executable = lambda name: [sys.executable]
from tests.study.test_runner import Work, place_of
from nnunet_synth.study.runner import Runner, study_lock
folder = Path(sys.argv[1])
with study_lock(folder / 'study'):
    Runner([Work('a', (), None, folder), Work('b', ('a',), None, folder, 6.0), Work('c', ('b',), None, folder)],
           place_of(folder)).run()
"""


def start_study(folder):
    """A study in a process group of its own, as soon as its second run is at work."""
    study = subprocess.Popen([sys.executable, "-c", STUDY, str(folder)], start_new_session=True,
                             cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    wait_for(lambda: any(line.startswith("begin b") for line in diary(folder)))
    return study


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def the_same_runs(folder):
    return [Work("a", (), None, folder), Work("b", ("a",), None, folder, 0.0), Work("c", ("b",), None, folder)]


def test_killed_with_its_commands_it_goes_on_from_the_checkpoint(folder):
    study = start_study(folder)
    wait_for((folder / "b.half").exists)
    os.killpg(study.pid, signal.SIGKILL)
    study.wait()
    board = Runner(the_same_runs(folder), place_of(folder)).run()
    assert states(board) == dict.fromkeys("abc", "done")
    assert [line for line in diary(folder) if line.startswith("begin")] == \
        ["begin a -", "begin b -", "begin b --c -", "begin c -"]


def test_a_command_that_outlives_its_study_is_waited_for_and_not_started_twice(folder, capsys):
    study = start_study(folder)
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    board = Runner(the_same_runs(folder), place_of(folder)).run()
    assert states(board) == dict.fromkeys("abc", "done")
    assert [line for line in diary(folder) if line.startswith("begin")] == ["begin a -", "begin b -", "begin c -"]
    assert "goes on in another process" in capsys.readouterr().out


def test_two_studies_of_one_folder_are_refused(folder):
    study = start_study(folder)
    try:
        with pytest.raises(UserError, match=rf"another nnunet_synth study works in .*process {study.pid}"), \
                study_lock(folder / "study"):
            pass
    finally:
        os.killpg(study.pid, signal.SIGKILL)
        study.wait()
    with study_lock(folder / "study", shared=True), study_lock(folder / "study", shared=True):
        pass                    # jobs of an array work side by side
    with study_lock(folder / "study", shared=True), pytest.raises(UserError, match="another"), \
            study_lock(folder / "study"):
        pass


def test_an_interrupt_stops_the_commands(folder, monkeypatch):
    runner = Runner([Work("a", (), None, folder, 30.0)], place_of(folder))

    look = runner._look_at_active

    def interrupt():
        if diary(folder):           # it is at work
            raise KeyboardInterrupt
        return look()
    monkeypatch.setattr(runner, "_look_at_active", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert runner.active[0].process.poll() is not None
    assert runner.board.entries["a"].state == "pending" and runner.board.entries["a"].reason == "interrupted"
    assert Lock(runner.active[0].run.lock_file(folder / "study")).acquire()


def test_single_runs_for_job_arrays(folder):
    runs = [Work("a", (), None, folder), Work("b", ("a",), None, folder)]
    with pytest.raises(UserError, match="b needs a, which is not done"):
        run_one("b", runs, place_of(folder))
    with pytest.raises(UserError, match="no run 'x'"):
        run_one("x", runs, place_of(folder))
    for _ in range(2):
        for name in "ab":
            assert run_one(name, runs, place_of(folder)).entries[name].state == "done"
    assert len(diary(folder)) == 4           # a second time there is nothing to do
