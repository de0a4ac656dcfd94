"""Against hand-computed values."""

from __future__ import annotations

import pytest
import torch

from nnunet_synth.losses.reconstruction import perceptual_loss


def test_the_five_taps_have_the_published_weights() -> None:
    real = [torch.zeros(1, 1, 2, 2) for _ in range(5)]
    for tap, weight in enumerate((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)):
        fake = [torch.full((1, 1, 2, 2), 3.0 if number == tap else 0.0) for number in range(5)]
        assert perceptual_loss(real, fake).item() == pytest.approx(3 * weight)


def test_fewer_taps_keep_the_deepest_weights() -> None:
    real, fake = [torch.zeros(1, 1, 1, 1)] * 2, [torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)]
    assert perceptual_loss(real, fake).item() == pytest.approx(1 / 4 + 2)


def test_more_taps_than_weights_are_an_error() -> None:
    taps = [torch.zeros(1, 1, 1, 1)] * 6
    with pytest.raises(ValueError):
        perceptual_loss(taps, taps)


def test_no_gradient_reaches_the_real_image() -> None:
    real, fake = (torch.randn(1, 1, 2, 2, requires_grad=True) for _ in range(2))
    perceptual_loss([real], [fake]).backward()
    assert real.grad is None and fake.grad.abs().sum() > 0
