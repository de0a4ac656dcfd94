"""A label-ratio fold made by `nnunet_synth split`, without imagesUl: what it hides has no influence whatever."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch

from nnunet_synth.commands.split import split
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.trainers import SACPSTrainer
from nnunet_synth.trainers.configured import unwrap
from tests.conftest import DATASET_ID
from tests.trainers.runs import make_trainer, save_untrained_sean


@pytest.fixture
def fold(planned_dataset: Path) -> int:
    raw, = (planned_dataset / "nnUNet_raw").iterdir()
    for name in ("imagesUl", "layoutsUl"):
        shutil.rmtree(raw / name)
    fold, = split(DATASET_ID, 0, [2])
    save_untrained_sean(fold=fold)
    return fold


def train(root: Path, fold: int) -> list[torch.Tensor]:
    trainer = make_trainer(SACPSTrainer, root, fold=fold, seed=3, style_source="pool")
    trainer.run_training()
    return [weight for network in (trainer.network, trainer.peer) for weight in unwrap(network).state_dict().values()]


def relabel(root: Path, case_id: str) -> None:
    """Another annotation of a preprocessed case: the infection elsewhere, and its locations."""
    path, = (root / "nnUNet_preprocessed").glob(f"*/nnUNetPlans_2d/{case_id}_seg.b2nd")
    segmentation = blosc2.open(str(path))[:]
    other = np.where(segmentation < 0, segmentation, np.roll(segmentation, 7, axis=2).clip(0))
    assert not np.array_equal(other, segmentation)
    path.unlink()
    blosc2.asarray(other, urlpath=str(path))
    facts = path.with_name(f"{case_id}.pkl")
    properties = pickle.loads(facts.read_bytes())
    properties["class_locations"] = {1: np.argwhere(other == 1)}
    facts.write_bytes(pickle.dumps(properties))


def check_hidden_labels_have_no_influence(train: Callable[[], list[torch.Tensor]], root: Path, fold: int) -> None:
    """`train` gives the same weights whatever the hidden labels are, and others with another label that is seen."""
    experiment = load_experiment(DATASET_ID, "2d", fold)
    expected = train()
    for case_id in experiment.unlabelled_ids:
        relabel(root, case_id)
    assert all(map(torch.equal, expected, train()))
    relabel(root, experiment.train_ids[0])
    assert not all(map(torch.equal, expected, train()))


def test_hidden_labels_have_no_influence(planned_dataset: Path, fold: int) -> None:
    experiment = load_experiment(DATASET_ID, "2d", fold)
    assert len(experiment.train_ids) == 2 and len(experiment.unlabelled_ids) == 2 and not experiment.pool_ids
    assert fold == 5 and experiment.split["name"] == "f0_2"
    check_hidden_labels_have_no_influence(lambda: train(planned_dataset, fold), planned_dataset, fold)
