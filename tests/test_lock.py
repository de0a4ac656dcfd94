"""One writer a target: real second processes, and what is left when they are killed."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nnunet_synth import lock as module
from nnunet_synth.errors import UserError
from nnunet_synth.lock import Lock, NoLocksError, lock_file, only_writer, refuse_second_writer
from nnunet_synth.study.runner import study_lock
from tests.makers.other_process import ROOT, start_writer, written_by_another

needs_locks = pytest.mark.skipif(module.fcntl is None, reason="no file locks on this system")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "results" / "fold_0"


@needs_locks
def test_the_second_is_told_who_holds_it_where_and_since_when(target: Path) -> None:
    with written_by_another(target) as pid:
        expected = rf"{re.escape(str(target))} is being written by process {pid} on host " \
            rf"{re.escape(socket.gethostname())}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d: wait"
        for _ in range(2):
            with pytest.raises(UserError, match=expected), only_writer(target):
                pass
        with pytest.raises(UserError, match=f"process {pid}"):
            refuse_second_writer(target)
        with only_writer(target.with_name("fold_1")):
            pass
        assert [path.name for path in target.parent.iterdir()] == [".fold_0.lock"]      # hidden, beside the target


@needs_locks
def test_the_lock_of_a_killed_process_is_taken_over(target: Path) -> None:
    writer = start_writer(target)
    writer.kill()
    writer.wait()
    assert lock_file(target).exists()
    refuse_second_writer(target)
    assert not target.parent.exists() or not list(target.parent.iterdir())
    with only_writer(target), pytest.raises(UserError, match=f"process {os.getpid()} "), only_writer(target):
        pass


def test_nothing_stays(target: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_writer(target):
        assert target.parent.is_dir()
        raise ZeroDivisionError
    assert not target.parent.exists()
    with only_writer(target):
        (target.parent / "plans.json").touch()
    assert [path.name for path in target.parent.iterdir()] == ["plans.json"]
    refuse_second_writer(target)
    assert [path.name for path in target.parent.iterdir()] == ["plans.json"]


FORKED = """
import multiprocessing, os, sys, time
from pathlib import Path
from nnunet_synth.lock import only_writer
with only_writer(Path(sys.argv[1])):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid, flush=True)
    sys.stdin.read()
"""
COMMAND = """
import subprocess, sys
from pathlib import Path
from nnunet_synth.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False).pid, flush=True)
    sys.stdin.read()
"""


@needs_locks
@pytest.mark.parametrize("program", [FORKED, COMMAND], ids=["forked worker", "command"])
def test_children_that_outlive_a_killed_holder_do_not_keep_it(target: Path, program: str) -> None:
    holder = subprocess.Popen([sys.executable, "-c", program, str(target)], cwd=ROOT, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"process {holder.pid}"), only_writer(target):
            pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)           # it lives
        with only_writer(target):
            pass
    finally:
        os.kill(child, 9)


@needs_locks
def test_a_forked_worker_that_ends_leaves_the_lock_with_its_parent(target: Path) -> None:
    with only_writer(target):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert not Lock(lock_file(target)).acquire()


@needs_locks
def test_what_need_not_be_done_twice_is_waited_for(target: Path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.01)
    writer = start_writer(target)
    end = threading.Timer(0.3, writer.stdin.close)
    end.start()
    with only_writer(target, waits=True):
        assert writer.wait(timeout=10) == 0
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"waiting for process {writer.pid} on host ")


@needs_locks
def test_a_file_that_its_holder_removed_meanwhile_is_no_lock(target: Path, monkeypatch) -> None:
    """Opened before, locked after: whoever comes then opens another file, and there would be two."""
    flock, first = module.fcntl.flock, only_writer(target)
    first.__enter__()

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr("fcntl.flock", flock)
        first.__exit__(None, None, None)
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", late)
    second = Lock(lock_file(target))
    assert second.acquire() and not Lock(lock_file(target)).acquire()


# -- where there are no locks ------------------------------------------------------------------------------------------


def no_locks(*args: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("how", ["Windows", "network drive", "may not write"])
def test_without_locks_it_goes_on_with_one_warning(target: Path, capsys, monkeypatch, how: str) -> None:
    if how == "Windows":
        monkeypatch.setattr(module, "fcntl", None)
    elif how == "network drive":
        monkeypatch.setattr("fcntl.flock", no_locks)
    else:
        target.parent.mkdir(parents=True)
        lock_file(target).mkdir()           # cannot be opened for writing, whoever one is
    for _ in range(2):
        with only_writer(target), only_writer(target):
            pass
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"warning: {lock_file(target)}") and "going on without" in said[0]


def test_a_study_refuses_to_run_without_locks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "fcntl", None)
    with pytest.raises(NoLocksError, match="no file locks on this system.*WSL"), study_lock(tmp_path):
        pass


# -- what the file says ------------------------------------------------------------------------------------------------


@needs_locks
@pytest.mark.parametrize("content", ["", "12\n", "{}", "[1]", '{"process": 1', b"\xff\xfe"])
def test_a_holder_that_is_not_told(target: Path, content: str | bytes) -> None:
    lock = Lock(target)
    assert lock.acquire()
    target.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert lock.holder == "another process"
    lock.release()
    assert Lock(target).acquire()


@needs_locks
def test_those_who_share_it_are_not_taken_for_a_dead_holder(target: Path) -> None:
    lock = Lock(target)
    assert lock.acquire() and f"process {os.getpid()} " in lock.holder
    lock.release()
    shared = Lock(target)
    assert shared.acquire(shared=True) and shared.holder == "another process"
    assert not Lock(target).acquire()


def test_time_is_told_with_its_zone(target: Path, monkeypatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with written_by_another(target):
            assert Lock(lock_file(target)).holder.endswith("+09:00")
    finally:
        monkeypatch.undo()
        time.tzset()
