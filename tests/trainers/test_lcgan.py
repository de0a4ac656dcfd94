"""SA-CPS and SA-ST with LcGAN: any of its models, exact resume, volumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.checkpoint import kept_checkpoint
from nnunet_synth.synthesizers.lcgan import LcGAN
from nnunet_synth.trainers import SACPSTrainer, SASTTrainer
from nnunet_synth.trainers.synthesis import DrawsSynthetic
from tests.trainers.runs import make_trainer, save_untrained, spy_on_draws, train_stock, train_whole_and_resumed

WITH_LCGAN = {"synthesizer": "lcgan", "seed": 7, "num_epochs": 1}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    return spy_on_draws(monkeypatch, LcGAN)


@pytest.mark.parametrize("trainer_class", [SACPSTrainer, SASTTrainer])
def test_a_resumed_run_continues_exactly_with_dropout_for_diversity(planned_dataset: Path, drawn: list[tuple],
                                                                   trainer_class: type[DrawsSynthetic]) -> None:
    save_untrained(LcGAN, dropout=0.5, diversity="dropout")
    if trainer_class is SASTTrainer:
        train_stock(planned_dataset)
    train_whole_and_resumed(planned_dataset, trainer_class, synthesizer="lcgan")
    assert len(drawn) >= 4 and all(torch.equal(request.label, result.label) for request, result in drawn)


def test_sast_draws_for_its_teachers_labels(planned_dataset: Path, drawn: list[tuple]) -> None:
    save_untrained(LcGAN)
    train_stock(planned_dataset)
    trainer = make_trainer(SASTTrainer, planned_dataset, **WITH_LCGAN)
    trainer.run_training()
    assert drawn and all(result.image.shape == request.image.shape for request, result in drawn)
    assert trainer.epoch_log.read()[-1]["loss_synthetic"] != 0


def test_volumes_are_drawn_slice_by_slice(planned_dataset: Path, drawn: list[tuple]) -> None:
    save_untrained(LcGAN, "3d_fullres")
    trainer = make_trainer(SACPSTrainer, planned_dataset, "3d_fullres", **WITH_LCGAN)
    trainer.run_training()
    assert all(request.label.ndim == 4 and torch.isfinite(result.image).all() for request, result in drawn)
    assert trainer.epoch_log.read()[-1]["loss_synthetic"] != 0


def test_an_earlier_model_can_be_trained_with(planned_dataset: Path) -> None:
    home = save_untrained(LcGAN)
    kept = kept_checkpoint(home, 30)
    kept.mkdir(parents=True)
    for name in ("meta.json", "model.safetensors"):
        shutil.copy(home / name, kept)
    (home / "model.safetensors").write_bytes(b"not looked at")
    settings = {**WITH_LCGAN, "synthesizer_checkpoint": "step_000030"}
    trainer = make_trainer(SACPSTrainer, planned_dataset, **settings)
    trainer.run_training()
    assert trainer.epoch_log.read()[-1]["loss_synthetic"] != 0
    for name, words in (("step_000031", "there are step_000030, final"), ("best", "needs a ranking: run nnunet_synth "
                                                                         "select 701 2d 0 --synthesizer lcgan")):
        other = make_trainer(SACPSTrainer, planned_dataset, **{**settings, "synthesizer_checkpoint": name})
        with pytest.raises(UserError, match=words):
            other.run_training()
