"""The gate synthetic_accept_threshold in SA-CPS and SA-ST: on, off, resumed, and without its classifier."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.errors import UserError
from nnunet_synth.quality.classifier import make_network
from nnunet_synth.selection.acceptance import (
    AcceptanceClassifier,
    SelectionRecord,
    file_sha256,
    load_gate,
    load_record,
    save_classifier,
    save_record,
)
from nnunet_synth.synthesizers.base import Synthesizer
from nnunet_synth.synthesizers.checkpoint import load_meta
from nnunet_synth.synthesizers.lcgan import LcGAN
from nnunet_synth.synthesizers.sean import SEAN
from nnunet_synth.trainers import CPSTrainer, SACPSTrainer, SASTTrainer
from tests.trainers.runs import (
    make_trainer,
    resumed,
    same_weights,
    save_untrained,
    spy_on_draws,
    train_stock,
    train_until_killed,
)

SETTINGS = {"synthesizer": "lcgan", "seed": 7, "num_epochs": 2, "save_every": 1, "augment_synthetic": "none"}


def save_with_classifier(always: float | None = None, synthesizer_class: type[Synthesizer] = LcGAN,
                         configuration: str = "2d") -> Path:
    """An untrained synthesizer and an untrained classifier beside it."""
    folder = save_untrained(synthesizer_class, configuration)
    add_classifier(folder, always, configuration)
    return folder


def add_classifier(folder: Path, always: float | None = None, configuration: str = "2d") -> None:
    """Put an untrained classifier beside a synthesizer; `always`: what it says of every image."""
    torch.manual_seed(1)
    network = make_network("resnet18", 1, 2)
    if always is not None:
        torch.nn.init.zeros_(network.fc.weight)
        network.fc.bias.data = torch.tensor([math.log(always), math.log(1 - always)])
    else:
        network.fc.weight.data *= 30        # so that images differ
    meta = load_meta(folder)
    experiment = load_experiment(701, configuration, 0)
    digest = save_classifier(AcceptanceClassifier(network, meta.intensity_range), folder)
    save_record(SelectionRecord(
        synthesizer=meta.synthesizer, fold=meta.fold, split_sha256=meta.split_sha256, plans_sha256=meta.plans_sha256,
        network="resnet18", intensity_range=meta.intensity_range,
        patch_size=list(experiment.configuration_manager.patch_size[-2:]), classifier_sha256=digest, accuracy=None,
        threshold=0.1, checkpoints={"final": {"sha256": file_sha256(folder / "model.safetensors")}}, best="final"),
        folder)


def run(root: Path, trainer_class: type = SACPSTrainer, **settings: object):
    trainer = make_trainer(trainer_class, root, **{**SETTINGS, **settings})
    trainer.run_training()
    return trainer


def test_a_gate_that_lets_everything_through_changes_nothing(planned_dataset: Path) -> None:
    save_with_classifier(always=0.5)
    without = run(planned_dataset)
    assert "synthetic_rejected" not in without.epoch_log.read()[-1]
    with_gate = run(planned_dataset, synthetic_accept_threshold=0.1)
    assert same_weights(without, with_gate)
    last = with_gate.epoch_log.read()[-1]
    assert last["synthetic_rejected"] == 0 and last["synthetic_used"] == 1


def test_a_gate_that_lets_nothing_through_leaves_no_gradient(planned_dataset: Path) -> None:
    save_with_classifier(always=0.05)
    shut = run(planned_dataset, num_epochs=1, synthetic_accept_threshold=0.1)
    last = shut.epoch_log.read()[-1]
    assert last["synthetic_rejected"] == 1 and last["synthetic_used"] == 0 and last["loss_synthetic"] == 0
    # What is rejected teaches nothing, whatever its weight.
    heavier = run(planned_dataset, num_epochs=1, synthetic_accept_threshold=0.1, synthetic_weight=50.0)
    assert same_weights(shut, heavier)


@pytest.fixture
def some_are_rejected(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """A threshold in the middle of what an untrained classifier says of the images."""
    folder = save_with_classifier()
    with monkeypatch.context() as patch:
        drawn = spy_on_draws(patch, LcGAN)
        run(planned_dataset, num_epochs=1)
    gate = load_gate(folder, load_meta(folder), 0.5, "cpu", "")
    said = torch.cat([gate.classifier(result.image, request.valid) for request, result in drawn])
    assert said.std() > 0
    return float(said.median())


def test_what_is_rejected_is_not_ok_and_is_counted(planned_dataset: Path, some_are_rejected: float,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier's own word on every image, against what the step was given."""
    from nnunet_synth.trainers import synthesis
    judged, given = [], []
    accepts, draw = synthesis.AcceptanceGate.accepts, synthesis.Synthesis.draw

    def spy_accepts(self, image, valid):
        judged.append(self.classifier(image, valid))
        return accepts(self, image, valid)

    def spy_draw(self, labels, batch):
        given.append(draw(self, labels, batch))
        return given[-1]

    monkeypatch.setattr(synthesis.AcceptanceGate, "accepts", spy_accepts)
    monkeypatch.setattr(synthesis.Synthesis, "draw", spy_draw)
    trainer = run(planned_dataset, num_epochs=1, synthetic_accept_threshold=some_are_rejected)
    assert len(judged) == len(given) == 2
    for probabilities, result in zip(judged, given, strict=True):
        assert torch.equal(result.ok, probabilities >= some_are_rejected)
        assert torch.equal(result.aux["rejected"], ~result.ok)
    rejected = torch.cat([~result.ok for result in given]).float().mean().item()
    last = trainer.epoch_log.read()[-1]
    assert 0 < rejected < 1 and last["synthetic_rejected"] == pytest.approx(rejected)
    assert last["synthetic_used"] == pytest.approx(1 - rejected) and last["loss_synthetic"] != 0


def test_a_resumed_run_continues_exactly_and_only_with_the_same_gate(planned_dataset: Path,
                                                                    some_are_rejected: float) -> None:
    settings = {**SETTINGS, "synthetic_accept_threshold": some_are_rejected}
    whole = run(planned_dataset, **settings)
    expected = whole.epoch_log.read()[-1]["synthetic_rejected"]
    train_until_killed(make_trainer(SACPSTrainer, planned_dataset, **settings), num_epochs=1)
    torch.manual_seed(99)
    continued = resumed(SACPSTrainer, planned_dataset, **settings)
    continued.run_training()
    assert same_weights(whole, continued)
    assert continued.epoch_log.read()[-1]["synthetic_rejected"] == expected

    train_until_killed(make_trainer(SACPSTrainer, planned_dataset, **settings), num_epochs=1)
    for threshold in (None, 0.99):
        other = resumed(SACPSTrainer, planned_dataset, **{**settings, "synthetic_accept_threshold": threshold})
        with pytest.raises(UserError, match="was made with the filter of synthetic images"):
            other.run_training()


def test_sast_has_the_same_gate(planned_dataset: Path) -> None:
    save_with_classifier(always=0.05)
    train_stock(planned_dataset)
    last = run(planned_dataset, SASTTrainer, num_epochs=1, synthetic_accept_threshold=0.1).epoch_log.read()[-1]
    assert last["synthetic_rejected"] == 1 and last["loss_synthetic"] == 0
    last = run(planned_dataset, SASTTrainer, num_epochs=1).epoch_log.read()[-1]
    assert last["loss_synthetic"] != 0


def test_volumes_pass_the_gate_as_wholes(planned_dataset: Path) -> None:
    save_with_classifier(always=0.3, configuration="3d_fullres")
    trainer = make_trainer(SACPSTrainer, planned_dataset, "3d_fullres",
                           **{**SETTINGS, "num_epochs": 1, "synthetic_accept_threshold": 0.2})
    trainer.run_training()
    assert trainer.epoch_log.read()[-1]["synthetic_used"] == 1


def test_without_its_classifier_nothing_is_trained(planned_dataset: Path) -> None:
    cure = "run nnunet_synth select 701 2d 0 --synthesizer lcgan"
    folder = save_with_classifier(always=0.5)
    record = load_record(folder, "")

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as error:
            run(planned_dataset, num_epochs=1, synthetic_accept_threshold=0.1)
        assert cure in str(error.value) and "\n" not in str(error.value)

    save_record(replace(record, synthesizer="sean"), folder)
    refused("was made for synthesizer sean, the synthesizer is of synthesizer lcgan")
    save_record(replace(record, checkpoints={"final": {"sha256": "0" * 64}}), folder)
    refused("has not seen the model in")
    save_record(record, folder)
    (folder / "classifier.safetensors").unlink()
    refused("classifier.safetensors is missing")
    (folder / "selection.json").unlink()
    refused("needs the classifier of nnunet_synth select")


@pytest.mark.parametrize("threshold", [1.5, -0.1])
def test_a_threshold_is_a_probability(planned_dataset: Path, threshold: float) -> None:
    with pytest.raises(UserError, match="synthetic_accept_threshold must be at least 0 and at most 1"):
        make_trainer(SACPSTrainer, planned_dataset, synthetic_accept_threshold=threshold)


def test_trainers_that_draw_nothing_do_not_look_for_a_classifier(planned_dataset: Path) -> None:
    """One configuration serves the methods of a comparison, with and without synthetic images."""
    run(planned_dataset, CPSTrainer, num_epochs=1, synthetic_accept_threshold=0.1)


def test_images_of_another_size_are_warned_of(planned_dataset: Path) -> None:
    folder = save_with_classifier(always=0.5, synthesizer_class=SEAN)
    save_record(replace(load_record(folder, ""), patch_size=[64, 64]), folder)
    trainer = run(planned_dataset, num_epochs=1, synthesizer="sean", synthetic_accept_threshold=0.1)
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "learnt from images of [64, 64] pixels and will judge [32, 32]" in log


@pytest.mark.parametrize(("acceptance", "is_warned"), [(0.0, True), (0.09, True), (0.1, False), (None, False)])
def test_a_gate_that_will_leave_hardly_anything_is_warned_of(planned_dataset: Path, acceptance: float | None,
                                                             is_warned: bool) -> None:
    """What select measured of the very model that is trained with."""
    folder = save_with_classifier(always=0.5)
    record = load_record(folder, "")
    others = {"step_000010": {"sha256": "0" * 64, "acceptance": 0.02 if acceptance else 0.9}}
    save_record(replace(record, checkpoints={**others, "final": {**record.checkpoints["final"],
                                                                "acceptance": acceptance}}), folder)
    trainer = run(planned_dataset, num_epochs=1, synthetic_accept_threshold=0.1)
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert ("will leave hardly any to learn from" in log) == is_warned
