"""Against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch

from nnunet_synth.losses.adversarial import (
    CROSS_ENTROPY,
    LEAST_SQUARES,
    AdversarialLoss,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
)


def scales(*logits: list[float]) -> list[list[torch.Tensor]]:
    """One scale for each list of logits, without other features."""
    return [[torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)] for values in logits]


def test_generator_wants_high_logits_averaged_over_scales_of_unequal_size() -> None:
    assert hinge_generator_loss(scales([1.0, 2.0, 3.0, 6.0], [-5.0])).item() == pytest.approx(-(3.0 - 5.0) / 2)


def test_discriminator_ignores_logits_beyond_the_margin() -> None:
    loss = hinge_discriminator_loss(real=scales([2.0, 0.5]), fake=scales([-3.0, 0.25]))
    assert loss.item() == pytest.approx((0 + 0.5) / 2 + (0 + 1.25) / 2)


def test_discriminator_averages_over_scales() -> None:
    loss = hinge_discriminator_loss(real=scales([0.0], [5.0]), fake=scales([-5.0], [3.0]))
    assert loss.item() == pytest.approx((1 + 4) / 2)


def test_least_squares_pull_to_one_and_to_zero() -> None:
    assert least_squares_generator_loss(scales([1.0, 3.0], [0.0])).item() == pytest.approx(((0 + 4) / 2 + 1) / 2)
    loss = least_squares_discriminator_loss(real=scales([1.0, -1.0], [2.0]), fake=scales([0.0, 2.0], [-3.0]))
    assert loss.item() == pytest.approx(((0 + 4) / 2 / 2 + (0 + 4) / 2 / 2 + 1 / 2 + 9 / 2) / 2)


def test_feature_matching_sums_layers_averages_scales_and_skips_the_logits() -> None:
    real = [[torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)],
            [torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 1, 1), torch.zeros(1, 1, 1, 1)]]
    fake = [[torch.full((1, 2, 4, 4), 1.0), torch.full((1, 3, 2, 2), -2.0), torch.full((1, 1, 2, 2), 100.0)],
            [torch.full((1, 2, 2, 2), 4.0), torch.full((1, 3, 1, 1), 0.5), torch.full((1, 1, 1, 1), 100.0)]]
    assert feature_matching_loss(real, fake).item() == pytest.approx(((1 + 2) + (4 + 0.5)) / 2)


def test_feature_matching_gives_no_gradient_to_the_real_features() -> None:
    real, fake = (torch.randn(1, 2, 3, 3, requires_grad=True) for _ in range(2))
    logits = torch.zeros(1, 1, 1, 1)
    feature_matching_loss([[real, logits]], [[fake, logits]]).backward()
    assert real.grad is None and fake.grad.abs().sum() > 0


def test_scales_that_do_not_pair_are_an_error() -> None:
    with pytest.raises(ValueError):
        hinge_discriminator_loss(scales([1.0], [1.0]), scales([1.0]))


def test_cross_entropy_asks_for_the_probability_of_the_truth() -> None:
    def probability(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))

    generator = CROSS_ENTROPY.generator(scales([0.0, 2.0], [-1.0]))
    assert generator.item() == pytest.approx(
        (-(math.log(0.5) + math.log(probability(2))) / 2 - math.log(probability(-1))) / 2)
    discriminator = CROSS_ENTROPY.discriminator(scales([0.0, 3.0]), scales([1.0]))
    assert discriminator.item() == pytest.approx(
        -(math.log(0.5) + math.log(probability(3))) / 2 / 2 - math.log(1 - probability(1)) / 2)
    assert CROSS_ENTROPY.accuracy(scales([0.1, -0.1]), scales([-2.0])).item() == pytest.approx(0.75)


@pytest.mark.parametrize("loss", [LEAST_SQUARES, CROSS_ENTROPY])
@pytest.mark.parametrize("share_real", [0.1, 0.5, 0.8])
def test_the_best_answer_amounts_to_the_probability_of_being_real(loss: AdversarialLoss, share_real: float) -> None:
    """Of patches that all look alike, so many are real: whichever answer costs least must tell this share."""
    answers = torch.linspace(-4, 4, 801)
    nothing = torch.tensor([100.0 if loss is CROSS_ENTROPY else 1.0])       # a real one that costs nothing
    drawn = -nothing if loss is CROSS_ENTROPY else nothing - 1              # a drawn one

    def cost(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return loss.discriminator([[real]], [[fake]])

    costs = torch.stack([share_real * cost(answer, drawn) + (1 - share_real) * cost(nothing, answer)
                         for answer in answers])
    assert loss.probability(answers[costs.argmin()]).item() == pytest.approx(share_real, abs=0.01)
