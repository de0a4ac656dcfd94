"""What a configuration's `synthesizer_options` change of a synthesizer that is trained already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from nnunet_synth.trainers import SACPSTrainer
from nnunet_synth.trainers.clock import Clock
from tests.trainers.runs import make_trainer, resumed, save_untrained, spy_on_draws

SETTINGS = {"synthesizer": "cosingan", "seed": 7, "num_epochs": 2, "save_every": 1}


@pytest.mark.parametrize("is_random", [True, False])
def test_the_randomised_condition_of_one_model_is_on_or_off(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch,
                                                            is_random: bool) -> None:
    save_untrained(CoSinGAN, width=4, num_models=1)
    drawn = spy_on_draws(monkeypatch, CoSinGAN, "_choice")
    make_trainer(SACPSTrainer, planned_dataset, **{**SETTINGS, "num_epochs": 1},
                 synthesizer_options={"randomised_condition": is_random, "width": 4}).run_training()
    grays = torch.stack([choice.grays for *_, choice in drawn])
    assert (grays.std(0) > 0).any() == is_random
    log = next((planned_dataset / "nnUNet_results").rglob("training_log_*.txt")).read_text()
    assert "was not pretrained with" not in log


def test_options_of_its_training_are_warned_of_and_change_nothing(planned_dataset: Path) -> None:
    save_untrained(CoSinGAN, width=4, num_models=1)
    trainer = make_trainer(SACPSTrainer, planned_dataset, **{**SETTINGS, "num_epochs": 1},
                           synthesizer_options={"width": 8, "num_models": 1})
    trainer.run_training()
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "was not pretrained with width=8 of synthesizer_options" in log      # num_models is what it was trained with
    assert trainer.synthesis.synthesizer.config.width == 4


def test_a_run_that_drew_otherwise_is_not_continued(planned_dataset: Path) -> None:
    save_untrained(CoSinGAN, width=4, num_models=1)
    make_trainer(SACPSTrainer, planned_dataset, **{**SETTINGS, "num_epochs": 1},
                 synthesizer_options={"randomised_condition": False}).run_training()
    with pytest.raises(UserError, match="synthesizer_options .*'randomised_condition': False.*restore them"):
        resumed(SACPSTrainer, planned_dataset, "checkpoint_final.pth", **SETTINGS).run_training()


def test_a_clock_that_never_ran_says_nothing() -> None:
    clock = Clock(torch.device("cpu"))
    assert clock.seconds == 0
    clock.start()
    assert clock.seconds == 0
    clock.stop()
    assert clock.seconds > 0
