"""Networks of trainers that change the architecture: built by their trainer, for whoever looks inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import nn

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.segmentation_features import load_segmentation_features
from nnunet_synth.data.trained_model import read_trained_model
from nnunet_synth.data.trained_network import build_network
from nnunet_synth.errors import UserError
from nnunet_synth.quality.segmentation_encoder import load_segmentation_encoder
from tests.conftest import DATASET_ID

RESIDUAL = {"network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
            "n_blocks_per_stage": [1, 1, 1]}


def save_untrained(name: str, **architecture: object) -> tuple[nnUNetTrainer, Path]:
    """A trainer with random weights and running means that are not those of the start; its fold folder."""
    experiment = load_experiment(DATASET_ID, "2d", 0)
    plans = json.loads((experiment.preprocessed_folder / "nnUNetPlans.json").read_text())
    described = plans["configurations"]["2d"]["architecture"]
    if architecture:
        described["network_class_name"] = architecture.pop("network_class_name")
        del described["arch_kwargs"]["n_conv_per_stage"]
        described["arch_kwargs"].update(architecture)
    dataset_json = json.loads((experiment.preprocessed_folder / "dataset.json").read_text())
    trainer = recursive_find_trainer_class_by_name(name)({**plans, "continue_training": False}, "2d", 0, dataset_json,
                                                         torch.device("cpu"))
    trainer.initialize()
    trainer.network.train()(torch.rand(2, 1, 32, 32))
    folder = experiment.results_folder / f"{name}__nnUNetPlans__2d" / "fold_0"
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    return trainer, folder


@pytest.mark.parametrize(("name", "architecture", "norm"), [
    ("nnUNetTrainer", {}, nn.InstanceNorm2d), ("nnUNetTrainer", RESIDUAL, nn.InstanceNorm2d),
    ("nnUNetTrainerBN", {}, nn.BatchNorm2d), ("nnUNetTrainerNoDeepSupervision", {}, nn.InstanceNorm2d),
    ("nnUNetTrainerNoMirroring", {}, nn.InstanceNorm2d)])
def test_it_says_what_its_trainer_says(planned_dataset: Path, name: str, architecture: dict, norm: type) -> None:
    trainer, folder = save_untrained(name, **architecture)
    assert any(isinstance(module, norm) for module in trainer.network.modules())
    model = read_trained_model(folder / "checkpoint_final.pth", "cure")
    plans, state = json.dumps(model.plans), torch.get_rng_state()
    network = build_network(model).eval()
    assert json.dumps(model.plans) == plans and torch.equal(torch.get_rng_state(), state)
    images = torch.rand(2, 1, 32, 32)
    wanted = trainer.network.eval()
    wanted.decoder.deep_supervision = False
    with torch.no_grad():
        assert torch.equal(network(images), wanted(images))

    features = load_segmentation_features(folder, load_experiment(DATASET_ID, "2d", 0), nn.Identity())
    judged = load_segmentation_encoder(folder, 1)
    assert judged.description == f"encoder of {name}, Dataset701_Tiny 2d fold 0"
    with torch.no_grad():
        maps = wanted.encoder(images)
        for found, expected in zip(features(images), maps, strict=True):
            assert torch.equal(found, expected)
        deepest = judged.network(images)
    assert torch.equal(deepest, torch.cat([maps[-1].mean((2, 3)), maps[-1].amax((2, 3))], 1))


@pytest.mark.parametrize("load", [
    lambda folder: load_segmentation_features(folder, load_experiment(DATASET_ID, "2d", 0), nn.Identity()),
    lambda folder: load_segmentation_encoder(folder, 1)])
@pytest.mark.parametrize(("name", "message"), [
    ("TheirTrainer", "was trained by TheirTrainer, which nnU-Net does not find here: install what brings it"),
    ("nnUNetTrainerBN", "does not fit what nnUNetTrainerBN builds here")])
def test_what_cannot_be_built_is_one_line(planned_dataset: Path, load, name: str, message: str) -> None:
    _, folder = save_untrained("nnUNetTrainer")
    content = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    torch.save({**content, "trainer_name": name}, folder / "checkpoint_final.pth")
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_network_without_stages_is_one_line(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer's encoder has none."""
    _, folder = save_untrained("nnUNetTrainer")
    network = nn.Module()
    network.encoder = nn.Linear(1, 1)
    monkeypatch.setattr("nnunet_synth.data.segmentation_features.build_network", lambda model: network)
    with pytest.raises(UserError, match="holds a Module, which has no encoder of stages.*--perceptual off"):
        load_segmentation_features(folder, load_experiment(DATASET_ID, "2d", 0), nn.Identity())
