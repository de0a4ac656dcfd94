"""SA-CPS and SA-ST with CS2: the style of one labelled slice a step, both sources of labels, exact resume, clusters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.cs2 import CS2
from nnunet_synth.trainers import SACPSTrainer, SASTTrainer
from tests.trainers.runs import make_trainer, save_untrained, spy_on_draws, train_stock, train_whole_and_resumed

WITH_CS2 = {"synthesizer": "cs2", "seed": 7, "num_epochs": 1}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """(request, result, style) of every call for synthetic images."""
    return spy_on_draws(monkeypatch, CS2, "reference")


@pytest.mark.parametrize("label_source", ["pseudo", "head"])
def test_sacps_resumes_exactly_with_either_source_of_labels(planned_dataset: Path, drawn: list[tuple],
                                                           label_source: str) -> None:
    save_untrained(CS2)
    train_whole_and_resumed(planned_dataset, synthesizer="cs2", label_source=label_source)
    styles = torch.cat([style for _, _, style in drawn])
    assert len(drawn) >= 4 and len(styles) == len(drawn) and len(styles.unique(dim=0)) > 1
    for request, result, _ in drawn:
        same = torch.equal(request.label, result.label)
        assert same if label_source == "pseudo" else not same


@pytest.mark.parametrize("label_source", ["pseudo", "head"])
def test_sast_draws_for_its_teachers_labels(planned_dataset: Path, drawn: list[tuple], label_source: str) -> None:
    save_untrained(CS2)
    train_stock(planned_dataset)
    trainer = make_trainer(SASTTrainer, planned_dataset, **WITH_CS2, label_source=label_source)
    trainer.run_training()
    assert drawn and all(torch.equal(request.label, result.label) == (label_source == "pseudo")
                         for request, result, _ in drawn)
    assert trainer.epoch_log.read()[-1]["loss_synthetic"] != 0


def test_clusters_are_asked_for_before_anything_is_trained(planned_dataset: Path) -> None:
    save_untrained(CS2, mask="cnn")
    with pytest.raises(UserError, match="no cached clusters: make them with nnunet_synth layouts DATASET --method cs2"):
        make_trainer(SACPSTrainer, planned_dataset, **WITH_CS2).run_training()
