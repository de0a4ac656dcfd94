"""Adversarial losses over a multi-scale discriminator, whose answer is, for each scale, a list of feature maps of
which the last holds the logits (see `synthesizers/blocks.py`).

Every loss is a mean over the pixels of a scale's logits, averaged over the scales, and is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Features = Sequence[Sequence[Tensor]]       # [scale][layer] of [N, C, H, W]; the last layer = logits


def hinge_generator_loss(fake: Features) -> Tensor:
    """−E D(G(·)), the generator's side of the hinge loss (Lim & Ye 2017; SPADE, SEAN)."""
    return torch.stack([-layers[-1].float().mean() for layers in fake]).mean()


def hinge_discriminator_loss(real: Features, fake: Features) -> Tensor:
    """E max(0, 1 − D(x)) + E max(0, 1 + D(G(·))), the discriminator's side."""
    return torch.stack([F.relu(1 - real_layers[-1].float()).mean() + F.relu(1 + fake_layers[-1].float()).mean()
                        for real_layers, fake_layers in zip(real, fake, strict=True)]).mean()


def feature_matching_loss(real: Features, fake: Features) -> Tensor:
    """Σ_layers ‖D_l(x) − D_l(G(·))‖₁ without the logits, averaged over the scales (pix2pixHD Eq. 4); no gradient
    reaches the real features."""
    return torch.stack([
        torch.stack([F.l1_loss(fake_layer.float(), real_layer.detach().float())
                     for real_layer, fake_layer in zip(real_layers[:-1], fake_layers[:-1], strict=True)]).sum()
        for real_layers, fake_layers in zip(real, fake, strict=True)]).mean()


def least_squares_generator_loss(fake: Features) -> Tensor:
    """E (D(G(·)) − 1)², the generator's side of LSGAN (Mao et al., ICCV 2017; pix2pixHD, without its factor ½)."""
    return torch.stack([(layers[-1].float() - 1).square().mean() for layers in fake]).mean()


def least_squares_discriminator_loss(real: Features, fake: Features) -> Tensor:
    """½ E (D(x) − 1)² + ½ E D(G(·))², the discriminator's side."""
    return torch.stack([(real_layers[-1].float() - 1).square().mean() / 2 + fake_layers[-1].float().square().mean() / 2
                        for real_layers, fake_layers in zip(real, fake, strict=True)]).mean()


def cross_entropy_generator_loss(fake: Features) -> Tensor:
    """−E log σ(D(G(·))), the generator's side of the first GANs (Goodfellow et al. 2014, non-saturating; pix2pix)."""
    return torch.stack([F.softplus(-layers[-1].float()).mean() for layers in fake]).mean()


def cross_entropy_discriminator_loss(real: Features, fake: Features) -> Tensor:
    """−½ E log σ(D(x)) − ½ E log(1 − σ(D(G(·)))), the discriminator's side (pix2pix halves it; CoSinGAN Eq. 5)."""
    return torch.stack([F.softplus(-real_layers[-1].float()).mean() / 2 + F.softplus(fake_layers[-1].float()).mean() / 2
                        for real_layers, fake_layers in zip(real, fake, strict=True)]).mean()


@dataclass(frozen=True)
class AdversarialLoss:
    """The two sides of one game.

    Attributes:
        generator: of the features of drawn images.
        discriminator: of the features of real and of drawn images.
        probability: of being real, from logits: that to which the best discriminator's answers amount. None where its
            answers tell only on which side they lie (hinge).
        boundary: the logit half way between real and drawn.
    """

    generator: Callable[[Features], Tensor]
    discriminator: Callable[[Features, Features], Tensor]
    boundary: float
    probability: Callable[[Tensor], Tensor] | None = None

    def accuracy(self, real: Features, fake: Features) -> Tensor:
        """Share of the patches that are told right, averaged over the scales."""
        is_right = [((real_layers[-1] > self.boundary).float().mean()
                     + (fake_layers[-1] < self.boundary).float().mean()) / 2
                    for real_layers, fake_layers in zip(real, fake, strict=True)]
        return torch.stack(is_right).mean()


HINGE = AdversarialLoss(hinge_generator_loss, hinge_discriminator_loss, 0.0)
# The best answer of least squares is p_real / (p_real + p_drawn) itself, that of cross entropy its logit.
LEAST_SQUARES = AdversarialLoss(least_squares_generator_loss, least_squares_discriminator_loss, 0.5,
                                lambda answers: answers.clamp(0, 1))
CROSS_ENTROPY = AdversarialLoss(cross_entropy_generator_loss, cross_entropy_discriminator_loss, 0.0, torch.sigmoid)
