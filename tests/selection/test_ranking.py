"""From drawn images to a ranking, by hand; what is held out stays unseen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from nnunet_synth.quality.classifier import ClassifierOptions
from nnunet_synth.selection import ranking
from nnunet_synth.selection.judging import Judged
from nnunet_synth.selection.ranking import distance, mirrored, rank, train_acceptance
from tests.quality.sets import image_set


def judged(name, dice=0.5, laplacian=1.0, probability=0.5, number=4):
    return Judged(name, conditions=list(range(number)), images=None, dice=[dice] * number,
                  laplacian=[laplacian] * number, high_frequencies=[0.1] * number, held_out=[0, 1],
                  probability_real=np.array([probability, 0.0]))


def test_ranks_by_hand():
    real = judged("real", 0.9, 2.0, 0.8)
    scores = {
        "good": judged("good", 0.8, 1.9, 0.3),          # ranks 2, 1, 1.5
        "blurred": judged("blurred", 0.85, 0.5, 0.05),  # 1, 3, 3.5
        "noisy": judged("noisy", 0.6, 9.0, 0.05),       # 3, 4, 3.5
        "shuffled": judged("shuffled", 0.1, 2.2, 0.4),  # 4, 2, 1.5
    }
    of_real, ordered = rank(real, list(scores.values()), 5, threshold=0.1)
    assert [(score.name, score.rank, score.mean_rank) for score in ordered] == [
        ("good", 1, 1.5), ("blurred", 2, 2.5), ("shuffled", 3, 2.5), ("noisy", 4, 3.5)]     # equals: the FCN score
    assert ordered[0].ranks == {"fcn_dice": 2, "sharpness": 1, "acceptance": 1.5}
    assert ordered[0].laplacian_ratio == 0.95 and ordered[0].acceptance == 0.5 and ordered[0].drawable == 0.8
    assert of_real.rank is None and of_real.mean_rank is None and of_real.laplacian_ratio == 1


def test_without_a_segmenter_two_criteria_decide():
    nothing = float("nan")
    _, ordered = rank(judged("real", nothing, 2.0), [judged("a", nothing, 1.0), judged("b", nothing, 2.0)], 4, 0.1)
    assert [score.name for score in ordered] == ["b", "a"] and set(ordered[0].ranks) == {"sharpness", "acceptance"}


def test_a_model_whose_score_is_unknown_comes_last():
    _, ordered = rank(judged("real"), [judged("a", float("nan")), judged("b", 0.2)], 4, 0.1)
    assert [score.ranks["fcn_dice"] for score in ordered] == [1, 2] and ordered[0].name == "b"


def test_half_as_sharp_is_as_far_away_as_twice_as_sharp():
    assert distance(0.5) == distance(2.0) == 1 and distance(1.0) == 0 and distance(0.0) == math.inf


# ----------------------------------------------------------------------------------------------------------------------
# The classifier


class Bright(nn.Module):
    """Calls an image real the more, the brighter it is."""

    def __init__(self):
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return torch.stack([8 * images.mean((1, 2, 3)), torch.zeros(len(images))], 1)


@pytest.fixture
def seen(monkeypatch):
    """The examples that a classifier is trained on; none is trained."""
    examples = []

    def fit(task, training, num_classes, window, options, device, rng, augment):
        examples.extend(training)
        assert num_classes == 2 and augment is mirrored
        return Bright().eval(), [0.5]

    monkeypatch.setattr(ranking, "fit", fit)
    return examples


def drawn(name, value, cases, conditions=None):
    images = np.full((len(cases), 1, 16, 16), value, np.float32)
    return Judged(name, conditions=conditions or list(range(len(cases))), images=image_set(name, images, cases=cases))


def test_the_same_whole_cases_are_held_out_of_every_set(seen):
    cases = [f"case {number // 2}" for number in range(12)]
    real, first = drawn("real", 0.9, cases), drawn("first", -0.9, cases)
    fewer = [number for number in range(12) if number != 3]
    second = drawn("second", 0.8, [cases[number] for number in fewer], fewer)      # one could not be drawn
    trained = train_acceptance(real, [first, second], [[-1.0, 1.0]], ClassifierOptions("resnet18", resolution=None),
                               "cpu")
    learnt = {example.case for example in seen}
    held_out = set(cases) - learnt
    assert len(held_out) == 2 and len(learnt) == 4
    for one in (real, first, second):
        assert {one.images.cases[place] for place in one.held_out} == held_out
        of_set = [example for example in seen if example.images is one.images]
        assert len(of_set) + len(one.held_out) == len(one.conditions)
        assert {example.target for example in of_set} == {0 if one is real else 1}
        assert len(one.probability_real) == len(one.held_out)
    # Real is right, the dark ones are right, the bright ones are wrong.
    assert trained.accuracy == pytest.approx((1 + (1 + 0) / 2) / 2)
    assert first.probability_real.max() < 0.01 and second.probability_real.min() > 0.99


def test_with_a_single_case_a_warning_and_single_images(seen, capsys):
    real, one = (drawn(name, 0.0, ["only"] * 9) for name in ("real", "one"))
    train_acceptance(real, [one], [[-1.0, 1.0]], ClassifierOptions("resnet18", resolution=None), "cpu")
    assert "all labelled training slices are of case only" in capsys.readouterr().err
    assert len(one.held_out) == 3 and one.held_out == real.held_out
    assert not {example.index for example in seen} & set(one.held_out)


def test_a_trained_network_tells_a_plain_fault():
    """Blurred textures, told with a wide margin: held-out real images near 1, blurred ones near 0."""
    sharp = torch.rand(24, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    cases = [f"case {number // 2}" for number in range(24)]
    real, blurred = (Judged(name, conditions=list(range(24)), images=image_set(name, images.numpy(), cases=cases))
                     for name, images in (("real", sharp), ("blurred", gaussian_blur(sharp, 7, 2.0))))
    trained = train_acceptance(real, [blurred], [[-1.0, 1.0]], ClassifierOptions("resnet18", 120, 8, None), "cpu")
    assert trained.accuracy == 1
    assert real.probability_real.min() > 0.8 and blurred.probability_real.max() < 0.2


def test_images_are_mirrored_each_for_itself():
    images = torch.arange(4.0).view(1, 1, 2, 2).repeat(64, 1, 1, 1)
    found = mirrored(images, torch.Generator().manual_seed(0))
    ways = {tuple(image.flatten().tolist()) for image in found}
    assert ways == {(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)}
    assert torch.equal(found, mirrored(images, torch.Generator().manual_seed(0)))
