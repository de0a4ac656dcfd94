"""Against values computed by hand and the slow reference; what is not trusted has no say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnunet_synth.losses.trusted_segmentation import (
    trusted_cross_entropy,
    trusted_segmentation_loss,
    trusted_soft_dice_loss,
)
from tests.reference import um2i as reference

# Probabilities of class 1 on 2 × 2 pixels: 1/2, 1/4 / 3/4, 1/5; the lower right pixel is not trusted.
LOGITS = torch.tensor([[0.0, -math.log(3)], [math.log(3), -math.log(4)]], dtype=torch.float64)
LOGITS = torch.stack([torch.zeros(2, 2, dtype=torch.float64), LOGITS])[None]
TARGET = torch.tensor([[[1, 0], [1, 1]]])
TRUSTED = torch.tensor([[[True, True], [True, False]]])


def test_two_by_two_by_hand() -> None:
    cross_entropy = -(math.log(1 / 2) + math.log(3 / 4) + math.log(3 / 4)) / 3
    assert trusted_cross_entropy(LOGITS, TARGET, TRUSTED).item() == pytest.approx(cross_entropy, abs=1e-6)
    dice = 2 * (1 / 2 + 3 / 4) / ((1 / 2 + 1 / 4 + 3 / 4) + 2)
    assert trusted_soft_dice_loss(LOGITS, TARGET, TRUSTED).item() == pytest.approx(1 - dice, abs=1e-5)
    assert trusted_segmentation_loss(LOGITS, TARGET, TRUSTED).item() == pytest.approx(cross_entropy + 1 - dice,
                                                                                      abs=1e-5)


def random_case(num_classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(num_classes)
    return (torch.from_numpy(rng.normal(0, 2, (2, num_classes, 5, 4))),
            torch.from_numpy(rng.integers(0, num_classes, (2, 5, 4))), torch.from_numpy(rng.random((2, 5, 4)) < 0.6))


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_is_that_of_the_reference(num_classes: int) -> None:
    logits, target, trusted = random_case(num_classes)
    arrays = (target.numpy(), trusted.numpy())
    assert trusted_cross_entropy(logits, target, trusted).item() == pytest.approx(
        reference.cross_entropy(logits.numpy(), *arrays), rel=1e-5)
    assert trusted_soft_dice_loss(logits, target, trusted).item() == pytest.approx(
        reference.soft_dice_loss(logits.softmax(1).numpy(), *arrays), rel=1e-5)


def test_what_is_not_trusted_has_no_say_and_gets_no_gradient() -> None:
    logits, target, trusted = random_case(3)
    scribbled = torch.where(trusted[:, None], logits, 50 * torch.randn_like(logits)).requires_grad_()
    loss = trusted_segmentation_loss(scribbled, torch.where(trusted, target, 2 - target), trusted)
    assert loss.item() == pytest.approx(trusted_segmentation_loss(logits, target, trusted).item(), rel=1e-6)
    loss.backward()
    touched = scribbled.grad.abs().sum(1) > 0
    assert torch.equal(touched, trusted)


def test_nothing_trusted_is_no_loss() -> None:
    logits, target, trusted = random_case(3)
    logits.requires_grad_()
    loss = trusted_segmentation_loss(logits, target, torch.zeros_like(trusted))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_a_class_that_is_neither_there_nor_predicted_is_found() -> None:
    logits = torch.tensor([20.0, -20.0, -20.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    nowhere = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert trusted_soft_dice_loss(logits, nowhere, nowhere == 0).item() < 1e-5
