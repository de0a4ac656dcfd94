"""What every trainer that needs nothing but the dataset must do: exact resume, a stock model, all kinds of plans."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_synth import trainers
from nnunet_synth.trainers.checkpoint import OUR_KEY
from nnunet_synth.trainers.configured import ConfiguredTrainer
from tests.trainers.runs import make_trainer, resumed, train_until_killed
from tests.trainers.test_settings import REGIONS, relabel

NEED_MORE = {"SACPSTrainer": "a synthesizer", "SASTTrainer": "a teacher, a synthesizer", "STTrainer": "a teacher",
             "SemiSupervisedTrainer": "a step"}
EVERY = [getattr(trainers, name) for name in trainers.__all__ if name not in NEED_MORE]


def tensors(content: Any, where: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor and number in a tree of plain containers."""
    if isinstance(content, torch.Tensor):
        yield where, content
    elif isinstance(content, (int, float)):
        yield where, torch.tensor(content)
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from tensors(value, f"{where}.{key}")
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content):
            yield from tensors(value, f"{where}.{number}")


def final(trainer: ConfiguredTrainer) -> dict[str, Any]:
    return torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)


def state_of(trainer: ConfiguredTrainer) -> dict[str, torch.Tensor]:
    """Everything that its final checkpoint says of the state of the training."""
    checkpoint = final(trainer)
    return dict(tensors({key: checkpoint[key] for key in ("network_weights", "optimizer_state", OUR_KEY)}))


@pytest.mark.parametrize("trainer_class", EVERY)
def test_resume_is_bit_identical_and_the_model_is_stock(planned_dataset: Path,
                                                        trainer_class: type[ConfiguredTrainer]) -> None:
    """3 epochs at once = 1 epoch, killed in the second, resumed: all networks, averages, optimizers, random numbers."""
    settings = {"num_epochs": 3, "save_every": 1, "seed": 7}
    whole = make_trainer(trainer_class, planned_dataset, **settings)
    whole.run_training()
    expected, log = state_of(whole), whole.epoch_log.read()

    train_until_killed(make_trainer(trainer_class, planned_dataset, **settings), num_epochs=1)
    torch.manual_seed(99)       # whatever happened in between
    continued = resumed(trainer_class, planned_dataset, **settings)
    assert continued.current_epoch == 1
    continued.run_training()
    got = state_of(continued)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    keys = [key for key in log[0] if not key.startswith("seconds")]
    assert [[entry[key] for key in keys] for entry in log] == \
        [[entry[key] for key in keys] for entry in continued.epoch_log.read()]

    checkpoint = final(continued)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(continued.output_folder_base, (0,), "checkpoint_final.pth")
    predictor.network.load_state_dict(checkpoint["network_weights"], strict=True)
    assert len(list(continued.network.parameters())) == len(list(predictor.network.parameters()))


@pytest.mark.parametrize("trainer_class", EVERY)
def test_volumes_with_regions_and_ignore_label_without_deep_supervision(planned_dataset: Path,
                                                                        trainer_class: type[ConfiguredTrainer]) -> None:
    relabel(planned_dataset, {**REGIONS[0], "ignore": 3}, REGIONS[1], 3)
    trainer = make_trainer(trainer_class, planned_dataset, "3d_fullres", seed=0, enable_deep_supervision=False,
                           preview_every=1)
    trainer.run_training()
    assert trainer.label_manager.has_regions and trainer.label_manager.has_ignore_label
    assert all(math.isfinite(value) for entry in trainer.epoch_log.read() for value in entry.values())


@pytest.mark.parametrize("trainer_class", EVERY)
def test_several_exclusive_classes(planned_dataset: Path, trainer_class: type[ConfiguredTrainer]) -> None:
    relabel(planned_dataset, {"background": 0, "infection": 1, "other": 2}, None, None)
    trainer = make_trainer(trainer_class, planned_dataset, num_epochs=1, seed=0)
    trainer.run_training()
    assert math.isfinite(trainer.epoch_log.read()[-1]["loss"])
