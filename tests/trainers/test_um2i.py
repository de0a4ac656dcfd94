"""SA-CPS and SA-ST with UM2I: unsupervised masks of the unlabelled images, both sources of labels, exact resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.um2i import UM2I
from nnunet_synth.trainers import SACPSTrainer, SASTTrainer
from tests.trainers.runs import make_trainer, save_untrained, spy_on_draws, train_stock, train_whole_and_resumed

WITH_UM2I = {"synthesizer": "um2i", "seed": 7, "num_epochs": 1}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """(request, result) of every call for synthetic images."""
    return spy_on_draws(monkeypatch, UM2I)


@pytest.mark.parametrize("label_source", ["pseudo", "head"])
def test_sacps_resumes_exactly_with_either_source_of_labels(planned_dataset: Path, drawn: list[tuple],
                                                           label_source: str) -> None:
    save_untrained(UM2I)
    train_whole_and_resumed(planned_dataset, synthesizer="um2i", label_source=label_source)
    for request, result in drawn:
        same = torch.equal(request.label, result.label)
        assert same if label_source == "pseudo" else not same
    assert len(drawn) >= 4


@pytest.mark.parametrize("label_source", ["pseudo", "head"])
def test_sast_draws_for_its_teachers_labels(planned_dataset: Path, drawn: list[tuple], label_source: str) -> None:
    save_untrained(UM2I)
    train_stock(planned_dataset)
    trainer = make_trainer(SASTTrainer, planned_dataset, **WITH_UM2I, label_source=label_source)
    trainer.run_training()
    assert drawn and all(torch.equal(request.label, result.label) == (label_source == "pseudo")
                         for request, result in drawn)
    assert all(result.image.shape == request.image.shape for request, result in drawn)
    assert trainer.epoch_log.read()[-1]["loss_synthetic"] != 0


def test_volumes_are_drawn_slice_by_slice(planned_dataset: Path, drawn: list[tuple]) -> None:
    save_untrained(UM2I, "3d_fullres")
    trainer = make_trainer(SACPSTrainer, planned_dataset, "3d_fullres", **WITH_UM2I)
    trainer.run_training()
    assert all(request.label.ndim == 4 and torch.isfinite(result.image).all() for request, result in drawn)
    assert trainer.epoch_log.read()[-1]["loss_synthetic"] != 0


def test_a_head_that_is_not_there_is_asked_for(planned_dataset: Path) -> None:
    save_untrained(UM2I, tasks="image")
    trainer = make_trainer(SACPSTrainer, planned_dataset, **WITH_UM2I, label_source="head")
    with pytest.raises(UserError, match="label_source head needs a synthesizer with a segmentation head"):
        trainer.run_training()
