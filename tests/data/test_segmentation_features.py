"""The encoder of a stock nnU-Net checkpoint as perceptual features."""

import json
import os

import numpy as np
import pytest
import torch

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.segmentation_features import find_checkpoint, load_segmentation_features
from nnunet_synth.errors import UserError
from tests.conftest import DATASET_ID


@pytest.fixture
def trained(planned_dataset):
    """(experiment, fold folder, stock trainer), saved by nnU-Net itself after an epoch's worth of logging."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    experiment = load_experiment(DATASET_ID, "2d", 0)
    dataset_json = json.loads((experiment.preprocessed_folder / "dataset.json").read_text())
    torch.manual_seed(0)
    trainer = nnUNetTrainer({**experiment.plans, "continue_training": False}, "2d", 0, dataset_json,
                            torch.device("cpu"))
    trainer.initialize()
    for key in ("mean_fg_dice", "train_losses"):
        trainer.logger.log(key, np.float32(0.5), 0)      # numpy scalars, as in every real checkpoint
    trainer.logger.log("dice_per_class_or_region", [np.float64(0.25)], 0)
    trainer._best_ema = np.float64(0.5)
    folder = experiment.results_folder / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    return experiment, folder, trainer


def test_features_are_the_encoders_in_network_intensities(trained):
    experiment, folder, trainer = trained
    features = load_segmentation_features(folder, experiment, lambda image: 3 * image + 1)
    image = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        wanted = trainer.network.eval().encoder(3 * image + 1)
    found = features(image)
    assert len(found) == len(wanted) == 3
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
    image.requires_grad_(True)
    sum(tap.mean() for tap in features(image)).backward()
    assert image.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in features.parameters())


def test_images_too_small_for_the_deepest_stages_have_fewer_maps(trained):
    """A map of one pixel has no spread for instance norm to divide by."""
    experiment, folder, _ = trained
    features = load_segmentation_features(folder, experiment, torch.nn.Identity())
    sizes = [[tuple(tap.shape[2:]) for tap in features(torch.rand(1, 1, side, side))] for side in (8, 6, 2)]
    assert sizes == [[(8, 8), (4, 4), (2, 2)], [(6, 6), (3, 3)], [(2, 2)]]


def test_another_fold_is_refused(trained):
    experiment, folder, _ = trained
    other = load_experiment(DATASET_ID, "2d", 1)
    with pytest.raises(UserError, match="trained on fold 0.*validation cases"):
        load_segmentation_features(folder, other, torch.nn.Identity())


def test_a_folder_without_checkpoint_is_refused(trained, tmp_path):
    assert find_checkpoint(tmp_path) is None
    with pytest.raises(UserError, match="checkpoint_final.pth"):
        load_segmentation_features(tmp_path, trained[0], torch.nn.Identity())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_code_in_a_checkpoint_is_not_run(trained, monkeypatch, tmp_path):
    experiment, folder, _ = trained
    monkeypatch.chdir(tmp_path)
    path = folder / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "trainer_name": Bomb()}, path)
    with pytest.raises(UserError, match="cannot be read") as error:
        load_segmentation_features(folder, experiment, torch.nn.Identity())
    assert "\n" not in str(error.value) and not (tmp_path / "exploded").exists()
