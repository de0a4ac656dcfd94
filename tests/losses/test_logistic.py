"""The logistic GAN loss against NumPy, R1 against closed forms."""

import numpy as np
import pytest
import torch

from nnunet_synth.losses.logistic import logistic_discriminator_loss, logistic_generator_loss, r1_penalty
from tests.reference.style_gan import softplus


def test_both_sides_equal_their_definition():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(0, 3, (2, 7))
    sigmoid = 1 / (1 + np.exp(-np.array([real, fake])))
    expected = -np.log(sigmoid[0]).mean() - np.log(1 - sigmoid[1]).mean()
    of_d = logistic_discriminator_loss(torch.tensor(real), torch.tensor(fake)).item()
    assert of_d == pytest.approx(expected, rel=1e-5) == softplus(-real).mean() + softplus(fake).mean()
    assert logistic_generator_loss(torch.tensor(fake)).item() == pytest.approx(softplus(-fake).mean(), rel=1e-5)


def test_a_surely_detected_generator_still_gets_a_gradient():
    """Non-saturating: log(1 − D) would have none here."""
    logit = torch.tensor([-50.0], requires_grad=True)
    logistic_generator_loss(logit).backward()
    assert logit.grad.item() == pytest.approx(-1, abs=1e-6)


def test_r1_of_a_linear_discriminator_is_the_square_of_its_weights():
    weight = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    real = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(real, (real * weight).flatten(1).sum(1))
    assert penalty.item() == pytest.approx(weight.square().sum().item(), rel=1e-6)
    penalty.backward()                      # d ‖w‖² / dw = 2w: the penalty itself is differentiable
    torch.testing.assert_close(weight.grad, 2 * weight, rtol=1e-5, atol=1e-6)


def test_r1_of_a_quadratic_discriminator():
    """D(x) = a ‖x‖² / 2 → E ‖a x‖², a mean over images and no mean over pixels."""
    real = torch.randn(6, 2, 3, 3, requires_grad=True)
    penalty = r1_penalty(real, 3 * real.square().flatten(1).sum(1) / 2)
    expected = np.mean([9 * (x ** 2).sum() for x in real.detach().numpy()])
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
