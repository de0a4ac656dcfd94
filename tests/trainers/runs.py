"""Trainers in this process, on the tiny planned dataset: a whole training takes a second or two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_synth.commands.pretrain import describe
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.data.unlabelled import preprocess_pool
from nnunet_synth.synthesizers.base import Synthesizer, SynthRequest, SynthResult
from nnunet_synth.synthesizers.checkpoint import save_synthesizer
from nnunet_synth.synthesizers.options import make_config
from nnunet_synth.synthesizers.sean import SEAN
from nnunet_synth.trainers import SACPSTrainer
from nnunet_synth.trainers.configured import ConfiguredTrainer, unwrap

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "preview_every": 0}


def make_trainer(trainer_class: type[nnUNetTrainer], root: Path, configuration: str = "2d", fold: int | str = 0,
                 resume: bool = False, device: str = "cpu", **settings: object) -> nnUNetTrainer:
    """A trainer as `nnUNetv2_train` makes it; `settings` go into the plans that it is given."""
    preprocessed, = (root / "nnUNet_preprocessed").iterdir()
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["configurations"][configuration].setdefault("nnunet_synth", {}).update({**SHORT, **settings})
    plans["continue_training"] = resume
    dataset_json = json.loads((preprocessed / "dataset.json").read_text())
    return trainer_class(plans, configuration, fold, dataset_json, torch.device(device))


def resumed(trainer_class: type[nnUNetTrainer], root: Path, checkpoint: str = "checkpoint_latest.pth",
            **settings: object) -> nnUNetTrainer:
    """As `nnUNetv2_train … --c`."""
    trainer = make_trainer(trainer_class, root, resume=True, **settings)
    trainer.load_checkpoint(str(Path(trainer.output_folder) / checkpoint))
    return trainer


def save_untrained_sean(configuration: str = "2d", fold: int | str = 0) -> Path:
    return save_untrained(SEAN, configuration, fold)


def save_untrained(synthesizer_class: type[Synthesizer], configuration: str = "2d", fold: int | str = 0,
                   **options: object) -> Path:
    """A tiny synthesizer with random weights where the trainers look for one; what it draws is noise, but draws it by
    rule. `options` change its preset."""
    experiment = load_experiment(701, configuration, fold)
    preprocess_pool(experiment)
    slices = FoldSlices(experiment)
    config = make_config(synthesizer_class, "tiny", options)
    torch.manual_seed(0)
    synthesizer = synthesizer_class.build(describe(experiment, slices, synthesizer_class, config), config)
    folder = experiment.synthesizer_folder(synthesizer_class.name)
    save_synthesizer(synthesizer, folder)
    return folder


def train_stock(root: Path, configuration: str = "2d", fold: int | str = 0, seed: int = 0) -> Path:
    """A stock nnU-Net after two steps, where `teacher` is looked for by default; its final checkpoint."""
    torch.manual_seed(seed)
    trainer = make_trainer(nnUNetTrainer, root, configuration, fold)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    return Path(trainer.output_folder) / "checkpoint_final.pth"


def spy_on_draws(monkeypatch: pytest.MonkeyPatch, synthesizer_class: type[Synthesizer],
                 *attributes: str) -> list[tuple]:
    """(request, result, and what these attributes of the synthesizer were) of every call for synthetic images from now
    on."""
    calls = []
    synthesize = synthesizer_class.synthesize

    def spy(self: Synthesizer, request: SynthRequest) -> SynthResult:
        result = synthesize(self, request)
        calls.append((request, result, *(getattr(self, name) for name in attributes)))
        return result

    monkeypatch.setattr(synthesizer_class, "synthesize", spy)
    return calls


def same_weights(first: ConfiguredTrainer, second: ConfiguredTrainer) -> bool:
    """Bit by bit, of all networks that learn."""
    def weights(trainer: ConfiguredTrainer) -> list[torch.Tensor]:
        return [value for network, _ in trainer.trained_networks() for value in unwrap(network).state_dict().values()]

    return all(torch.equal(one, other) for one, other in zip(weights(first), weights(second), strict=True))


def train_until_killed(trainer: nnUNetTrainer, num_epochs: int) -> None:
    """Run whole epochs, then stop in the middle of the next one, before anything of it is saved."""
    finish_epoch = trainer.on_epoch_end

    def on_epoch_end() -> None:
        if trainer.current_epoch == num_epochs:
            raise KeyboardInterrupt
        finish_epoch()

    trainer.on_epoch_end = on_epoch_end
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()


def train_whole_and_resumed(root: Path, trainer_class: type[ConfiguredTrainer] = SACPSTrainer,
                            **settings: object) -> None:
    """A training of two epochs, twice: in one go, and killed after the first and resumed. Both end alike, bit by
    bit."""
    settings = {"seed": 7, "num_epochs": 2, "save_every": 1, **settings}
    whole = make_trainer(trainer_class, root, **settings)
    whole.run_training()
    expected = whole.epoch_log.read()[-1]["loss_synthetic"]     # of a file that the next run overwrites

    train_until_killed(make_trainer(trainer_class, root, **settings), num_epochs=1)
    torch.manual_seed(99)       # whatever happened in between
    continued = resumed(trainer_class, root, **settings)
    assert continued.current_epoch == 1
    continued.run_training()
    assert same_weights(whole, continued)
    assert continued.epoch_log.read()[-1]["loss_synthetic"] == expected != 0
