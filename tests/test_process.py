"""Commands in processes of their own: what they say, how they end, how much memory they take."""

import sys
import time

import pytest

from nnunet_synth import process as process_module
from nnunet_synth.process import LoggedProcess


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "executable", lambda name: [sys.executable])

    def start_code(code, **environment):
        return LoggedProcess(["python", "-c", code], tmp_path / "logs" / "log", environment)
    return start_code


def test_what_it_says_and_how_it_ends(start):
    process = start("import os, sys; print('one'); print(os.environ['COLOUR']); print(); sys.exit(3)", COLOUR="red")
    assert process.wait(60) == 3 == process.poll()
    assert process.last_line() == "red" and process.log.read_text().split() == ["one", "red"]


def test_the_last_line_is_its_own_and_of_a_progress_bar_the_last_state(start):
    start("print('of the first')").wait(60)
    silent = start("pass")
    silent.wait(60)
    assert silent.last_line() == ""         # the log goes on, the line is another command's
    bar = start(r"print('10 %\r50 %\r90 %', end='')")
    bar.wait(60)
    assert bar.last_line() == "90 %"


def test_stop_ends_what_does_not_listen(start, monkeypatch):
    process = start("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); "
                    "time.sleep(60)")
    while process.last_line() != "up":
        time.sleep(0.05)
    patient = process.wait
    monkeypatch.setattr(process, "wait", lambda seconds: patient(0.2))
    process.stop()
    assert process.poll() == -9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_the_whole_family(start):
    child = "import time; block = bytearray(120 * 2**20); print('up', flush=True); time.sleep(60)"
    process = start(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    try:
        while process.last_line() != "up":
            time.sleep(0.05)
        process.measure_memory()
        assert 120 < process.peak_memory < 250
    finally:
        # its child would outlive it, as a training outlives its study
        import os
        import signal
        for folder in os.listdir("/proc"):
            if folder.isdigit():
                try:
                    with open(f"/proc/{folder}/stat") as file:
                        parent = int(file.read().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                if parent == process._process.pid:
                    os.kill(int(folder), signal.SIGKILL)
        process.stop()
