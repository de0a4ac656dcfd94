"""`kill -9` while a checkpoint is written: there is always a whole one, and what was left behind does not stay."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_synth.atomic import ABANDONED_AFTER
from nnunet_synth.trainers.checkpoint import write_checkpoint
from nnunet_synth.trainers.epoch_log import EpochLog

NUM_KILLS = 12
Write = Callable[[dict[str, Any], Path], None]

# The server imports torch once; each writer is a fork of it, which has no threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["nnunet_synth.trainers.checkpoint"])


def write_plainly(checkpoint: dict[str, Any], path: Path) -> None:
    torch.save(checkpoint, path)


def write_versions(write: Write, path: Path, first: int, report: Connection) -> None:
    """Versions `first`, `first` + 1, … of a checkpoint of 32 MB, until killed."""
    torch.set_num_threads(1)
    version = first
    while True:
        write({"version": version, "weights": [torch.full((1024, 1024), float(version)) for _ in range(8)]}, path)
        report.send(version)
        version += 1


def write_until_killed(write: Write, path: Path, first: int, seconds: float) -> int:
    """Kill a writing process `seconds` after it wrote version `first`; returns the last version it reported."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=write_versions, args=(write, path, first, sender), daemon=True)
    process.start()
    sender.close()
    reported = receiver.recv()
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    try:
        while True:
            reported = receiver.recv()
    except EOFError:
        return reported


def kill_often(write: Write, path: Path) -> list[tuple[int, int | None]]:
    """(last version reported, version found, None if unreadable) for each kill at a random moment."""
    outcomes, first = [], 1
    for seconds in np.random.default_rng(0).uniform(0, 0.3, NUM_KILLS):
        reported = write_until_killed(write, path, first, seconds)
        outcomes.append((reported, whole_version(path)))
        first = reported + 2        # the one after `reported` may have been written too
    return outcomes


def whole_version(path: Path) -> int | None:
    try:
        checkpoint = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, OSError):
        return None
    assert all(torch.all(weights == checkpoint["version"]) for weights in checkpoint["weights"])
    return checkpoint["version"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[int, int | None]], Path]:
    path = tmp_path_factory.mktemp("killed") / "checkpoint_latest.pth"
    return kill_often(write_checkpoint, path), path


def test_a_killed_writer_leaves_a_whole_checkpoint(killed) -> None:
    outcomes, path = killed
    assert all(found in (reported, reported + 1) for reported, found in outcomes), outcomes
    assert left_behind(path), "no kill hit a write: this shows nothing"


def test_without_the_rename_it_would_be_broken(tmp_path: Path) -> None:
    """Negative control: the kills do hit the writes."""
    outcomes = kill_often(write_plainly, tmp_path / "checkpoint_latest.pth")
    assert any(found is None for _, found in outcomes), outcomes


def test_what_was_left_behind_is_removed_but_not_from_under_another_writer(killed) -> None:
    _, path = killed
    abandoned = left_behind(path)
    long_ago = time.time() - ABANDONED_AFTER - 60
    for file in abandoned:
        os.utime(file, (long_ago, long_ago))
    young = path.with_name(".checkpoint_latest.abcdefgh.pth")
    others = [path.with_name(".checkpoint_best.abcdefgh.pth"), path.with_name("checkpoint_latest.mine.pth")]
    for file in (young, *others):
        file.write_bytes(b"not yet")
    for file in others:
        os.utime(file, (long_ago, long_ago))
    write_checkpoint({"version": 0, "weights": []}, path)
    assert whole_version(path) == 0
    assert {file.name for file in path.parent.iterdir()} == {file.name for file in (path, young, *others)}


def test_half_a_line_in_the_log_does_not_stop_a_resumed_run(tmp_path: Path) -> None:
    log = EpochLog(tmp_path)
    for epoch in range(3):
        log.write(epoch, {"loss": 0.5})
    log.path.write_text(log.path.read_text()[:-7])
    log.begin(2)
    log.write(2, {"loss": 0.25})
    assert [(entry["epoch"], entry["loss"]) for entry in log.read()] == [(0, 0.5), (1, 0.5), (2, 0.25)]


def left_behind(path: Path) -> list[Path]:
    return list(path.parent.glob(".checkpoint_latest.*.pth"))
