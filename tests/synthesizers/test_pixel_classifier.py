"""The label head: the fast form of the MLP against the published one, votes by brute force, members that differ."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.synthesizers.pixel_classifier import PixelClassifier, PixelClassifierEnsemble, winner
from tests.reference import cs2 as published

CHANNELS, SIZES = (7, 4, 3, 2), ((2, 3), (4, 6), (8, 12), (8, 12))     # coarsest first


def features(number: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(number, channels, *size, generator=generator, dtype=dtype)
            for channels, size in zip(CHANNELS, SIZES, strict=True)]


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch statistics, too: fresh ones would hide that they are used."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 2.0 if tensor.ndim > 1 else 0.5, generator=generator)
    return module


def test_layers_at_native_resolution_are_the_published_mlp() -> None:
    classifier = randomise(PixelClassifier(CHANNELS, 3, hidden=(5, 4))).double().eval()
    maps = features()
    weights = {name: tensor.numpy() for name, tensor in classifier.state_dict().items()}
    with torch.no_grad():
        logits = classifier([level.tanh() for level in maps])
    for number in range(2):
        expected = published.classifier_logits(weights, [level[number].numpy() for level in maps])
        assert expected.std() > 0.1
        np.testing.assert_allclose(logits[number].numpy(), expected, rtol=0, atol=1e-10)


def test_chosen_pixels_are_those_of_the_whole_image() -> None:
    classifier = randomise(PixelClassifier(CHANNELS, 3, hidden=(5, 4))).double().eval()
    squashed = [level.tanh() for level in features(3)]
    pixels = torch.stack([torch.randint(high, (200,), generator=torch.Generator().manual_seed(high))
                          for high in (3, 8, 12)], 1)
    with torch.no_grad():
        everything, chosen = classifier(squashed), classifier.at(squashed, pixels)
    torch.testing.assert_close(chosen, everything[tuple(pixels.T)], rtol=0, atol=1e-12)


def test_the_first_layer_is_drawn_as_one_layer() -> None:
    classifier = PixelClassifier((600, 300, 100), 2)
    weights = torch.cat([layer.weight.flatten(1) for layer in classifier.first], 1)
    assert weights.abs().max() <= 1000 ** -0.5 and weights.std().item() == pytest.approx((1 / 3000) ** 0.5, rel=0.02)


# ----------------------------------------------------------------------------------------------------------------------
# Votes


@pytest.mark.parametrize("num_members, num_labels", [(1, 3), (2, 4), (3, 3), (4, 3), (6, 3)])
def test_every_possible_vote(num_members: int, num_labels: int) -> None:
    """All ties among them."""
    ballots = list(product(range(num_labels), repeat=num_members))
    votes = F.one_hot(torch.tensor(ballots), num_labels).sum(1)
    assert winner(votes).tolist() == [published.majority(ballot) for ballot in ballots]


@pytest.mark.parametrize("num_slices", [1, 4])
def test_the_ensemble_votes_pixel_by_pixel(num_slices: int) -> None:
    ensemble = PixelClassifierEnsemble(CHANNELS, 3, num_slices, num_members=4, hidden=(5, 4))
    randomise(ensemble).double().eval()
    maps = features()
    with torch.no_grad():
        labels = ensemble(maps)
    assert labels.shape == (2 * num_slices, 8, 12) and labels.dtype == torch.int64
    ties = 0
    for number in range(2):
        ballots = []
        for member in ensemble.members:
            weights = {name: tensor.numpy() for name, tensor in member.state_dict().items()}
            logits = published.classifier_logits(weights, [level[number].numpy() for level in maps])
            ballots.append(logits.reshape(8, 12, num_slices, 3).argmax(-1))
        for row, column, part in product(range(8), range(12), range(num_slices)):
            votes = [int(ballot[row, column, part]) for ballot in ballots]
            assert labels[number * num_slices + part, row, column] == published.majority(votes)
            ties += votes.count(published.majority(votes)) == 2
    assert ties > 5 and len(labels.unique()) == 3


# ----------------------------------------------------------------------------------------------------------------------
# Members


def test_the_members_are_ten_different_networks() -> None:
    """Regression: the released ensemble is one network, saved ten times."""
    ensemble = PixelClassifierEnsemble(CHANNELS, 3)
    states = [torch.cat([tensor.flatten() for tensor in member.parameters() if tensor.ndim > 1])
              for member in ensemble.members]
    assert len(states) == 10
    for number, state in enumerate(states):
        for other in states[:number]:
            assert torch.corrcoef(torch.stack([state, other]))[0, 1] < 0.2
    maps = features(dtype=torch.float32)
    ensemble.eval()
    answers = [member([level.tanh() for level in maps]).argmax(-1) for member in ensemble.members]
    assert any(not torch.equal(answers[0], answer) for answer in answers[1:])


def test_each_member_learns_from_its_own_pixels_alone() -> None:
    ensemble = PixelClassifierEnsemble(CHANNELS, 3, num_members=3, hidden=(5, 4)).double()
    maps = features()
    pixels = torch.stack([torch.randint(high, (3, 20), generator=torch.Generator().manual_seed(high))
                          for high in (2, 8, 12)], 2)
    logits = ensemble.logits_at(maps, pixels)
    assert logits.shape == (3, 20, 1, 3)
    for number, member in enumerate(ensemble.members):
        alone = member.at([level.tanh() for level in maps], pixels[number])
        torch.testing.assert_close(logits[number, :, 0], alone)
    logits[1].square().sum().backward()
    assert [any(parameter.grad is not None and parameter.grad.any() for parameter in member.parameters())
            for member in ensemble.members] == [False, True, False]
