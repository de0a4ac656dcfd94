"""The filter of synthetic images: what it lets through, and when it refuses to work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_synth.errors import UserError
from nnunet_synth.quality.classifier import make_network
from nnunet_synth.selection.acceptance import (
    AcceptanceClassifier,
    AcceptanceGate,
    SelectionRecord,
    file_sha256,
    find_checkpoint,
    home_of,
    load_gate,
    load_record,
    save_classifier,
    save_record,
    to_unit,
)
from nnunet_synth.selection.ranking import acceptance
from nnunet_synth.synthesizers.checkpoint import save_synthesizer
from nnunet_synth.testing import RANGE
from tests.synthesizers.toy import build_toy

CURE = "nnunet_synth select 701 2d 0"


class MeanAsProbability(nn.Module):
    """P(real) is the mean of the image in [0, 1], exactly."""

    def forward(self, images):
        p = (images.double().mean((1, 2, 3)) + 1) / 2
        return torch.stack([p.log(), (1 - p).log()], 1)


def images_of(probabilities):
    low, high = RANGE
    return torch.stack([torch.full((1, 8, 8), low + p * (high - low)) for p in probabilities])


def everywhere(images):
    return torch.ones_like(images[:, 0], dtype=torch.bool)


def gate(threshold=0.1, network=None):
    return AcceptanceGate(AcceptanceClassifier(network or MeanAsProbability(), [list(RANGE)]), threshold, None)


def test_exactly_those_from_the_threshold_on_are_accepted():
    images = images_of([0.02, 0.0999, 0.1001, 0.5, 0.97])
    assert gate().accepts(images, everywhere(images)).tolist() == [False, False, True, True, True]
    exact = gate(threshold=float(gate().classifier(images, everywhere(images))[3]))
    assert exact.accepts(images, everywhere(images)).tolist() == [False, False, False, True, True]
    assert acceptance(np.array([0.05, 0.1, 0.2, 0.0999]), 0.1) == 0.5
    assert gate(threshold=0.0).accepts(images, everywhere(images)).all()


def test_an_image_is_judged_for_itself():
    torch.manual_seed(0)
    one = gate(network=make_network("resnet18", 1, 2))
    images = torch.rand(70, 1, 32, 32) * 4 - 1.5            # more than are judged at a time
    together = one.classifier(images, everywhere(images))
    alone = torch.cat([one.classifier(image[None], everywhere(image[None])) for image in images[60:66]])
    torch.testing.assert_close(together[60:66], alone, rtol=1e-4, atol=1e-6)
    assert together.shape == (70,) and together.std() > 0 and not together.requires_grad


def test_what_was_not_scanned_does_not_count():
    images = images_of([0.5, 0.5])
    valid = everywhere(images)
    valid[1, :4] = False
    images[1, :, :4] = 99.0
    assert gate().classifier(images, valid).tolist() == pytest.approx([0.5, 0.25], abs=1e-6)
    unit = to_unit(torch.tensor([[[[-9.0, 0.75, 9.0]]]]), torch.ones(1, 1, 3, dtype=torch.bool), [list(RANGE)])
    assert unit.flatten().tolist() == [-1, 0, 1]


def test_channels_have_their_own_ranges():
    images = torch.tensor([2.0, 30.0]).view(1, 2, 1, 1)
    unit = to_unit(images, torch.ones(1, 1, 1, dtype=torch.bool), [[0.0, 4.0], [20.0, 40.0]])
    assert unit.flatten().tolist() == [0, 0]


def test_of_volumes_the_mean_over_the_slices_counts():
    slices = images_of([0.1, 0.3, 0.8, 0.9])
    volumes = slices.view(2, 2, 1, 8, 8).transpose(1, 2)
    assert gate().classifier(volumes, everywhere(volumes)).tolist() == pytest.approx([0.2, 0.85], abs=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# On disk


@pytest.fixture
def home(tmp_path):
    """A toy synthesizer with one kept model, and a classifier that knows both."""
    folder = tmp_path / "toy__nnUNetPlans__2d" / "fold_0"
    toy = build_toy()
    save_synthesizer(toy, folder)
    other = build_toy(seed=1)
    save_synthesizer(other, folder / "checkpoints" / "step_000003")
    torch.manual_seed(0)
    classifier = AcceptanceClassifier(make_network("resnet18", 1, 2), [[-1.0, 1.0]])
    digest = save_classifier(classifier, folder)
    save_record(record_of(toy.meta, folder, digest), folder)
    return folder


def record_of(meta, folder, digest, **changes):
    checkpoints = {name: {"sha256": file_sha256(path / "model.safetensors"), "steps": 3, "rank": rank}
                   for rank, (name, path) in enumerate([("step_000003", folder / "checkpoints" / "step_000003"),
                                                        ("final", folder)], start=1)}
    facts = {"synthesizer": meta.synthesizer, "fold": meta.fold, "split_sha256": meta.split_sha256,
             "plans_sha256": meta.plans_sha256, "network": "resnet18", "intensity_range": [[-1.0, 1.0]],
             "patch_size": [32, 32], "classifier_sha256": digest, "accuracy": 0.9, "threshold": 0.1,
             "checkpoints": checkpoints, "best": "step_000003"}
    return SelectionRecord(**{**facts, **changes})


def load(folder, **changes):
    meta = replace(build_toy().meta, **changes)
    return load_gate(folder, meta, 0.1, "cpu", CURE)


def test_saved_and_loaded_it_judges_the_same(home):
    torch.manual_seed(0)
    network = make_network("resnet18", 1, 2)
    images = torch.rand(4, 1, 32, 32) * 2 - 1
    expected = AcceptanceClassifier(network, [[-1.0, 1.0]])(images, everywhere(images))
    before = torch.get_rng_state()
    for folder in (home, home / "checkpoints" / "step_000003"):
        loaded = load(folder)
        assert torch.equal(loaded.classifier(images, everywhere(images)), expected)
        assert loaded.facts == {"threshold": 0.1, "classifier_sha256": file_sha256(home / "classifier.safetensors")}
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(parameter.requires_grad for parameter in loaded.classifier.parameters())


def test_models_have_names(home):
    assert find_checkpoint(home, "final", CURE) == home
    assert find_checkpoint(home, "step_000003", CURE) == home / "checkpoints" / "step_000003"
    assert find_checkpoint(home, "best", CURE) == home / "checkpoints" / "step_000003"
    assert home_of(home) == home == home_of(home / "checkpoints" / "step_000003")
    with pytest.raises(UserError, match="step_000009: .* has no such model; there are step_000003, final and"):
        find_checkpoint(home, "step_000009", CURE)
    (home / "selection.json").unlink()
    with pytest.raises(UserError, match="needs a ranking: run nnunet_synth select 701 2d 0"):
        find_checkpoint(home, "best", CURE)


def damage(name):
    def change(home):
        path = home / name
        path.write_bytes(path.read_bytes()[:-7])
    return change


def rewrite(**changes):
    def change(home):
        record = load_record(home, CURE)
        save_record(replace(record, **changes), home)
    return change


def pretrain_again(home):
    save_synthesizer(build_toy(seed=7), home)


def exchange_weights(home):
    """A file that is whole, but holds another kind of network, and is described as this one."""
    network = make_network("googlenet", 1, 2)
    digest = save_classifier(AcceptanceClassifier(network, [[-1.0, 1.0]]), home)
    rewrite(classifier_sha256=digest)(home)


@pytest.mark.parametrize("change, words", [
    (lambda home: (home / "selection.json").unlink(), "needs the classifier of nnunet_synth select"),
    (lambda home: (home / "selection.json").write_text("{"), "is not valid JSON"),
    (lambda home: (home / "selection.json").write_text('{"format_version": 1, "what": 2}'), "is no record of"),
    (rewrite(format_version=99), "was not written by this version"),
    (lambda home: (home / "classifier.safetensors").unlink(), "classifier.safetensors is missing"),
    (damage("classifier.safetensors"), "is not the file that selection.json beside it describes"),
    (exchange_weights, "is damaged, or no resnet18"),
    (rewrite(network="alexnet"), "which this version does not know"),
    (rewrite(synthesizer="sean"), "was made for synthesizer sean, the synthesizer is of synthesizer toy"),
    (rewrite(fold=3), "was made for fold 3, the synthesizer is of fold 0"),
    (rewrite(split_sha256="b" * 64), "was made for split"),
    (rewrite(plans_sha256="b" * 64), "was made for plans"),
    (pretrain_again, "has not seen the model in"),
])
def test_a_classifier_of_something_else_is_refused(home, change, words):
    change(home)
    with pytest.raises(UserError, match=words) as error:
        load(home)
    assert "\n" not in str(error.value) and CURE in str(error.value)


def test_the_record_survives_the_disk(home):
    record = load_record(home, CURE)
    save_record(record, home / "copy")
    assert load_record(home / "copy", CURE) == record and record.best == "step_000003"
