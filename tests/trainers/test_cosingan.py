"""SA-CPS and SA-ST with CoSinGAN: one model and one set of gray values a step, exact resume, what cannot be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nnunet_synth.synthesizers.base import SynthResult
from nnunet_synth.synthesizers.checkpoint import WEIGHTS_FILE
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from nnunet_synth.trainers import SACPSTrainer, SASTTrainer
from nnunet_synth.trainers.synthesis import DrawsSynthetic, Synthesis
from tests.trainers.runs import make_trainer, save_untrained, spy_on_draws, train_stock, train_whole_and_resumed
from tests.trainers.test_acceptance import add_classifier

WITH_COSINGAN = {"synthesizer": "cosingan", "seed": 7, "num_epochs": 1}
SMALL = {"width": 4, "num_models": 2}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """(request, result, what it was drawn with) of every call for synthetic images."""
    return spy_on_draws(monkeypatch, CoSinGAN, "_choice")


@pytest.mark.parametrize("trainer_class", [SACPSTrainer, SASTTrainer])
def test_a_resumed_run_continues_exactly(planned_dataset: Path, drawn: list[tuple],
                                         trainer_class: type[DrawsSynthetic]) -> None:
    save_untrained(CoSinGAN, **SMALL)
    if trainer_class is SASTTrainer:
        train_stock(planned_dataset)
    train_whole_and_resumed(planned_dataset, trainer_class, synthesizer="cosingan")
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


@pytest.mark.parametrize("says", [None, 0.5, 0.05])
def test_samples_with_classes_that_the_slice_does_not_show_are_left_out(planned_dataset: Path, drawn: list[tuple],
                                                                        says: float | None,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a gate that finds every image good enough (`says` P(real)), or none; what cannot be drawn is nothing
    that it has rejected."""
    folder = save_untrained(CoSinGAN, **SMALL)
    state = load_file(folder / WEIGHTS_FILE)
    state["known_classes"][1, 1:] = False       # background is all that the second model has seen
    save_file(state, folder / WEIGHTS_FILE, metadata={"synthesizer": "cosingan"})
    given = []      # what the step was given

    def draw(self: Synthesis, *args: Any) -> SynthResult:
        given.append(draw_ungiven(self, *args))
        return given[-1]

    draw_ungiven = Synthesis.draw
    monkeypatch.setattr(Synthesis, "draw", draw)
    settings = {**WITH_COSINGAN, "num_iterations_per_epoch": 6}
    if says is not None:
        add_classifier(folder, says)
        settings["synthetic_accept_threshold"] = 0.1
    trainer = make_trainer(SACPSTrainer, planned_dataset, **settings)
    trainer.run_training()

    drawable = torch.cat([~((request.label > 0) | (request.layout > 0)).flatten(1).any(1) | (choice.models == (0,))
                          for request, _, choice in drawn])
    assert torch.equal(torch.cat([result.ok for _, result, _ in drawn]), drawable)
    assert drawable.any() and not drawable.all()
    is_rejected = says == 0.05
    used = drawable & (not is_rejected)
    assert torch.equal(torch.cat([result.ok for result in given]), used)
    last = trainer.epoch_log.read()[-1]
    assert last["synthetic_used"] == pytest.approx(used.float().mean().item())
    if says is not None:
        rejected = drawable & is_rejected
        assert torch.equal(torch.cat([result.aux["rejected"] for result in given]), rejected)
        assert last["synthetic_rejected"] == pytest.approx(rejected.float().mean().item())
