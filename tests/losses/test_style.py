"""The style loss against NumPy, and what it must and must not see."""

import numpy as np
import pytest
import torch

from nnunet_synth.losses.style import style_loss


def taps(seed: int, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(2, channels, size // 2 ** level, size // 2 ** level, generator=generator) + level
            for level, channels in enumerate((3, 5))]


def test_it_is_the_distance_of_means_and_deviations() -> None:
    reference, fake = taps(0, size=16), taps(1)         # of other sizes
    expected = 0.0
    for one, other in zip(reference, fake, strict=True):
        one, other = one.double().numpy(), other.double().numpy()
        for statistic in (np.mean, np.std):
            expected += ((statistic(other, axis=(2, 3)) - statistic(one, axis=(2, 3))) ** 2).mean()
    assert style_loss(reference, fake).item() == pytest.approx(expected, rel=1e-4)


def test_where_things_are_does_not_matter() -> None:
    reference = taps(0)
    shuffled = [tap.flatten(2)[:, :, torch.randperm(tap[0, 0].numel())].view_as(tap) for tap in reference]
    assert style_loss(reference, shuffled).item() == pytest.approx(0, abs=1e-8)
    assert style_loss(reference, [2 * tap for tap in reference]) > 1
    assert style_loss(reference, [tap + 1 for tap in reference]).item() == pytest.approx(2, rel=1e-3)


def test_only_the_drawn_image_learns() -> None:
    reference, fake = taps(0), taps(1)
    for tap in (*reference, *fake):
        tap.requires_grad_(True)
    style_loss(reference, fake).backward()
    assert all(tap.grad is None for tap in reference)
    assert all(tap.grad.abs().sum() > 0 for tap in fake)


def test_a_constant_tap_has_a_gradient() -> None:
    fake = torch.zeros(1, 1, 4, 4, requires_grad=True)
    style_loss([torch.randn(1, 1, 4, 4)], [fake]).backward()
    assert fake.grad.isfinite().all()
