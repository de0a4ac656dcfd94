"""User errors under `nnUNetv2_train`: one line and status 2; everything else stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnunet_synth._register import VARIABLE, trainer_folder
from nnunet_synth.atomic import write_json
from nnunet_synth.process import executable
from tests.conftest import DATASET_ID

PROGRAM = """
import atexit, multiprocessing, sys, threading, time
from nnunet_synth.errors import UserError
from nnunet_synth.uncaught import tell_user_errors_in_one_line
sys.argv[0] = "/somewhere/nnUNetv2_train"
tell_user_errors_in_one_line()
tell_user_errors_in_one_line()
atexit.register(print, "ended in order")
multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True).start()
threading.Thread(target=print, args=("a thread",)).start()
print("not flushed yet", end=", ")
raise {error}
"""


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_one_line_status_2_and_an_orderly_end():
    """Buffers are flushed, `atexit` runs, and a daemon that sleeps for ten minutes is ended."""
    child = run(PROGRAM.format(error="UserError('no teacher → train one')"))
    assert (child.returncode, child.stderr) == (2, "nnUNetv2_train: error: no teacher → train one\n")
    assert "not flushed yet" in child.stdout and child.stdout.endswith("ended in order\n")


@pytest.mark.skipif(os.name == "nt", reason="forks")
@pytest.mark.parametrize("error", ["ValueError('theirs')", "UnicodeError('theirs')"])
def test_other_errors_keep_their_traceback(error):
    child = run(PROGRAM.format(error=error))
    assert child.returncode == 1 and child.stderr.startswith("Traceback (most recent call last)")
    assert child.stderr.endswith("Error: theirs\n")


def test_the_hook_that_was_there_is_asked(monkeypatch):
    from nnunet_synth.uncaught import tell_user_errors_in_one_line
    asked = []
    monkeypatch.setattr(sys, "excepthook", lambda *what: asked.append(what))
    tell_user_errors_in_one_line()
    error = RuntimeError("theirs")
    sys.excepthook(RuntimeError, error, None)
    assert asked == [(RuntimeError, error, None)]


# -- nnU-Net's own command ---------------------------------------------------------------------------------------------


@pytest.fixture
def train(planned_dataset: Path, edit_plans):
    """train(**environment): what `nnUNetv2_train 701 2d 0 -tr CPSTrainer -device cpu` does."""
    edit_plans(num_epochs=1, num_iterations_per_epoch=1, num_val_iterations_per_epoch=1, preview_every=0)

    def command(fold: int = 0, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run([*executable("nnUNetv2_train"), str(DATASET_ID), "2d", str(fold), "-tr", "CPSTrainer",
                               "-device", "cpu"], capture_output=True, text=True, timeout=120, encoding="utf-8",
                              env={**os.environ, VARIABLE: trainer_folder(), "PYTHONPATH": os.pathsep.join(sys.path),
                                   "OMP_NUM_THREADS": "1", **environment})
    return command


def test_a_setting_that_does_not_exist(train, edit_plans):
    edit_plans(num_epoch=3)
    child = train()
    assert child.returncode == 2 and "Traceback" not in child.stderr
    assert child.stderr.splitlines()[-1].startswith("nnUNetv2_train: error: ")     # torch warns before
    assert "'num_epoch'" in child.stderr.splitlines()[-1]


@pytest.mark.slow
def test_in_a_worker_of_the_augmentation(train, planned_dataset):
    """A layout that is not the image's: the loader notices, in another process."""
    from nnunet_synth.data.experiment import load_experiment
    from nnunet_synth.data.layouts import layout_file, write_map
    from nnunet_synth.data.unlabelled import preprocess_pool
    experiment = load_experiment(DATASET_ID, "2d", 0)
    preprocess_pool(experiment)         # up to date by its notes, so that training does not make them again
    for case_id in experiment.train_ids:
        write_map(np.zeros((1, 2, 3), np.int16), layout_file(experiment, case_id), (32, 32))
    child = train(nnUNet_n_proc_DA="2")
    assert child.returncode == 2 and "Traceback" not in child.stdout + child.stderr
    assert child.stderr.splitlines()[-1].startswith("nnUNetv2_train: error: the layout of case ")


def test_nnunets_own_errors_keep_their_traceback(train):
    plans_file, = Path(os.environ["nnUNet_preprocessed"]).glob("*/nnUNetPlans.json")
    plans = json.loads(plans_file.read_text())
    del plans["configurations"]["2d"]
    write_json(plans, plans_file)
    child = train()
    assert child.returncode == 1 and "Traceback (most recent call last)" in child.stderr
