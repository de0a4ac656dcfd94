"""nnU-Net's training log as it writes it, over several files, and ours."""

import json
import math
from pathlib import Path

import pytest

from nnunet_synth.evaluation.training_log import read_semi_supervised_log, read_training_logs, series
from tests.makers.training_log import LOG


def test_a_resumed_run_replaces_what_it_did_again(tmp_path):
    # The tenth month comes after the ninth, though not in the alphabet.
    (tmp_path / "training_log_2026_9_30_10_00_00.txt").write_text(LOG)
    resumed = LOG[LOG.index("2026-01-01 10:00:10"):].replace("-0.75", "-0.5").replace("nan", "np.float64(0.875)")
    (tmp_path / "training_log_2026_10_1_10_00_00.txt").write_text(resumed + "2026-10-01 10:00:30.0: Epoch 2\n")
    assert read_training_logs(tmp_path) == {
        0: {"train_loss": -0.25, "val_loss": -0.5, "Pseudo dice": 0.375, "seconds": 9.0},
        1: {"train_loss": -0.5, "Pseudo dice": 0.875}, 2: {}}


def test_numbers_of_every_kind(tmp_path):
    (tmp_path / "training_log_1.txt").write_text(LOG.replace("-0.75", "1e-04").replace("-0.25", "nan"))
    log = read_training_logs(tmp_path)
    assert log[1]["train_loss"] == 1e-4 and math.isnan(log[0]["train_loss"]) and math.isnan(log[1]["Pseudo dice"])


def test_the_log_that_nnunet_writes(planned_dataset):
    """Two epochs of a real trainer, so that a change of nnU-Net's wording is noticed."""
    from nnunet_synth.trainers import CPSTrainer
    from tests.trainers.runs import make_trainer
    trainer = make_trainer(CPSTrainer, planned_dataset)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    log = read_training_logs(folder)
    assert list(log) == [0, 1]
    assert all(set(epoch) == {"train_loss", "val_loss", "Pseudo dice", "seconds"} for epoch in log.values())
    assert all(math.isfinite(epoch["train_loss"]) and epoch["seconds"] > 0 for epoch in log.values())
    ours = read_semi_supervised_log(folder)
    assert list(ours) == [0, 1] and "loss_pseudo" in ours[0]


def test_our_log(tmp_path):
    (tmp_path / "semi_supervised.jsonl").write_text(
        json.dumps({"epoch": 0, "loss_pseudo": 0.5}) + "\n" + json.dumps({"epoch": 1, "loss_pseudo": 0.25}) + '\n{"ep')
    assert read_semi_supervised_log(tmp_path) == {0: {"loss_pseudo": 0.5}, 1: {"loss_pseudo": 0.25}}
    assert read_semi_supervised_log(tmp_path / "nowhere") == {} and read_training_logs(tmp_path / "nowhere") == {}


def test_series_count_epochs_from_one():
    log = {1: {"loss": 0.25}, 0: {"loss": 0.5, "other": 1}, 2: {}}
    assert series(log, "loss") == {1: 0.5, 2: pytest.approx(0.25)} and series(log, "other") == {1: 1}
