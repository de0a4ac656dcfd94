"""The encoder of a stock nnU-Net as a feature extractor."""

import json

import numpy as np
import pytest
import torch

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.errors import UserError
from nnunet_synth.quality.segmentation_encoder import DeepestFeatures, load_segmentation_encoder
from tests.conftest import DATASET_ID


@pytest.fixture
def trained(planned_dataset):
    """(experiment, fold folder, stock trainer with random weights)."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    experiment = load_experiment(DATASET_ID, "2d", 0)
    dataset_json = json.loads((experiment.preprocessed_folder / "dataset.json").read_text())
    torch.manual_seed(0)
    trainer = nnUNetTrainer({**experiment.plans, "continue_training": False}, "2d", 0, dataset_json,
                            torch.device("cpu"))
    trainer.initialize()
    folder = experiment.results_folder / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    return experiment, folder, trainer


def test_features_are_those_of_normalised_images(trained):
    experiment, folder, trainer = trained
    extractor = load_segmentation_encoder(folder, 1)
    assert extractor.description == "encoder of nnUNetTrainer, Dataset701_Tiny 2d fold 0"
    images = np.random.default_rng(0).normal(-500, 300, (3, 1, 128, 128)).astype(np.float32)
    before = images.copy()
    facts = experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    normalised = (np.clip(images, facts["percentile_00_5"], facts["percentile_99_5"]) - facts["mean"]) / facts["std"]
    with torch.no_grad():
        deepest = trainer.network.eval().encoder(torch.from_numpy(normalised).float())[-1]
    wanted = torch.cat([deepest.mean((2, 3)), deepest.amax((2, 3))], 1)
    np.testing.assert_allclose(extractor(images, 128), wanted, rtol=1e-4, atol=1e-5)
    assert np.array_equal(images, before)


def test_small_images_stop_at_the_last_map_of_four_by_four(trained):
    """nnU-Net's instance norm refuses a map of a single pixel, and one of two says nothing."""
    encoder = trained[2].network.encoder
    network = DeepestFeatures(encoder).eval()
    with torch.no_grad():
        sizes = [network(torch.rand(2, 1, side, side)).shape[1] // 2 for side in (7, 8, 14, 16)]
    assert sizes == [4, 8, 8, 16]


def test_mistakes_get_one_line(trained, tmp_path):
    _, folder, _ = trained
    with pytest.raises(UserError, match="takes 1 channel.*CT.*the images have 3"):
        load_segmentation_encoder(folder, 3)
    with pytest.raises(UserError, match="holds neither checkpoint_final.pth"):
        load_segmentation_encoder(tmp_path, 1)
    (folder / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read as a checkpoint of nnU-Net.*--segmentation"):
        load_segmentation_encoder(folder, 1)
