"""SA-CPS and SA-ST with CoSinGAN: one model and one set of gray values a step, exact resume, what cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nnunet_synth.synthesizers.checkpoint import WEIGHTS_FILE
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from nnunet_synth.trainers import SACPSTrainer, SASTTrainer
from tests.trainers.runs import make_trainer, save_untrained, spy_on_draws, train_stock, train_whole_and_resumed

WITH_COSINGAN = {"synthesizer": "cosingan", "seed": 7, "num_epochs": 1}
SMALL = {"width": 4, "num_models": 2}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """(request, result, what it was drawn with) of every call for synthetic images."""
    return spy_on_draws(monkeypatch, CoSinGAN, "_choice")


def test_sacps_resumes_exactly(planned_dataset: Path, drawn: list[tuple]) -> None:
    save_untrained(CoSinGAN, **SMALL)
    train_whole_and_resumed(planned_dataset, synthesizer="cosingan")
    assert len(drawn) >= 4 and all(torch.equal(request.label, result.label) and result.ok.all()
                                   for request, result, _ in drawn)
    assert len({choice.models for *_, choice in drawn}) > 1, "each step has a model of its own"
    grays = [tuple(choice.grays.flatten().tolist()) for *_, choice in drawn]
    assert len(set(grays[:4])) == 4, "and gray values of its own"


def test_sast_draws_for_its_teachers_labels(planned_dataset: Path, drawn: list[tuple]) -> None:
    save_untrained(CoSinGAN, **SMALL, image_fusion=True, dropout=True)
    train_stock(planned_dataset)
    trainer = make_trainer(SASTTrainer, planned_dataset, **WITH_COSINGAN)
    trainer.run_training()
    assert drawn and all(torch.equal(request.label, result.label) for request, result, _ in drawn)
    assert all(sorted(choice.models) == [0, 1] for *_, choice in drawn)
    assert trainer.epoch_log.read()[-1]["loss_synthetic"] != 0


def test_volumes_are_drawn_slice_by_slice(planned_dataset: Path, drawn: list[tuple]) -> None:
    save_untrained(CoSinGAN, "3d_fullres", **SMALL)
    trainer = make_trainer(SACPSTrainer, planned_dataset, "3d_fullres", **WITH_COSINGAN)
    trainer.run_training()
    assert drawn and all(request.label.ndim == 4 and result.image.isfinite().all() for request, result, _ in drawn)
    assert trainer.epoch_log.read()[-1]["loss_synthetic"] != 0


def test_samples_with_classes_that_the_slice_does_not_show_are_left_out(planned_dataset: Path,
                                                                        drawn: list[tuple]) -> None:
    weights = save_untrained(CoSinGAN, **SMALL) / WEIGHTS_FILE
    state = load_file(weights)
    state["known_classes"][:, 1:] = False       # background is all that it has seen
    save_file(state, weights, metadata={"synthesizer": "cosingan"})
    trainer = make_trainer(SACPSTrainer, planned_dataset, **WITH_COSINGAN)
    trainer.run_training()
    asked = torch.cat([((request.label > 0) | (request.layout > 0)).flatten(1).any(1) for request, *_ in drawn])
    ok = torch.cat([result.ok for _, result, _ in drawn])
    assert asked.any() and torch.equal(ok, ~asked)
