"""Folders of preprocessed cases that nnU-Net cannot read: one line each, wherever they are opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.preprocessed_cases import dataset_class
from nnunet_synth.errors import UserError
from nnunet_synth.trainers import SupervisedTrainer
from tests.conftest import DATASET_ID
from tests.trainers.runs import make_trainer


def test_as_nnunet_tells_it(planned_dataset: Path) -> None:
    assert dataset_class(load_experiment(DATASET_ID, "2d").data_folder) is nnUNetDatasetBlosc2


@pytest.mark.parametrize("ending", ["*", "*.b2nd"])
def test_an_empty_folder(planned_dataset: Path, ending: str) -> None:
    experiment = load_experiment(DATASET_ID, "2d", 0)
    for path in experiment.data_folder.glob(ending):
        path.unlink()
    with pytest.raises(UserError, match="nnUNetPlans_2d holds no preprocessed case.*run nnUNetv2_preprocess"):
        _ = experiment.labelled_ids
    with pytest.raises(UserError, match="nnUNetPlans_2d holds no preprocessed case"):
        make_trainer(SupervisedTrainer, planned_dataset).initialize()


def test_a_foreign_file(planned_dataset: Path) -> None:
    """One is enough for nnU-Net to read nothing."""
    experiment = load_experiment(DATASET_ID, "2d", 0)
    (experiment.data_folder / "notes.txt").write_text("mine")
    (experiment.data_folder / ".DS_Store").write_bytes(b"")
    with pytest.raises(UserError, match="files that are not nnU-Net's.*remove .DS_Store, notes.txt$"):
        _ = experiment.labelled_ids
