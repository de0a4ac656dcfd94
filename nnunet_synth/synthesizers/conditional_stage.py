"""What the trainings of label-to-image synthesizers share: labelled slices are redrawn from their semantic classes, and
a discriminator sees image and classes together."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.losses.adversarial import LEAST_SQUARES, AdversarialLoss, feature_matching_loss
from nnunet_synth.losses.reconstruction import perceptual_loss
from nnunet_synth.synthesizers.base import Batch, SliceSource, Stage, Synthesizer, Terms
from nnunet_synth.synthesizers.blocks import frozen, masked


class ConditionalStage(Stage):
    """Adversarial + feature-matching + perceptual + L1 loss, each with the weight that the configuration gives it.

    Args:
        synthesizer: with the configuration keys `batch_size`, `adversarial_weight`, `feature_matching_weight`,
            `perceptual_weight`, `l1_weight` (None = 10 without perceptual features, otherwise 0), `generator_lr`,
            `discriminator_lr`.
        generator: what is trained.
        discriminator: [N, classes + channels, H, W] → features of each scale, see `losses/adversarial.py`.
        perceptual: as `Trainable.stages`.
    """

    adversarial: AdversarialLoss = LEAST_SQUARES
    steady_share = 0.5      # of the steps, after which the learning rates fall linearly to zero

    def __init__(self, synthesizer: Synthesizer, generator: nn.Module, discriminator: nn.Module, num_steps: int,
                 perceptual: nn.Module | None) -> None:
        synthesizer.check_patch_size()
        self.name = synthesizer.name
        self.synthesizer, self.config = synthesizer, synthesizer.config
        self.generator, self.discriminator = generator, discriminator
        self.num_steps, self.batch_size = num_steps, self.config.batch_size
        self.perceptual = perceptual
        self.l1_weight = default_l1_weight(self.config.l1_weight, perceptual)

    @abstractmethod
    def draw(self, batch: Batch, one_hot: Tensor) -> Tensor:
        """[N, C, H, W] in (−1, 1) for the classes [N, S, H, W] of a batch."""

    def learning_rates(self, step: int) -> tuple[float, float]:
        """Constant at first, then linearly to zero."""
        factor = min(1.0, (1 - step / self.num_steps) / (1 - self.steady_share))
        return self.config.generator_lr * factor, self.config.discriminator_lr * factor

    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        """image [N, C, H, W] in [−1, 1], semantic [N, H, W], valid [N, H, W]."""
        meta = self.synthesizer.meta
        part = slices.sample(self.batch_size, tuple(meta.patch_size), rng)
        return {"image": masked(self.synthesizer.to_unit(part.image), part.valid),
                "semantic": meta.semantic.combine(part.label, part.layout), "valid": part.valid}

    def generator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        real, one_hot = batch["image"], self.synthesizer.meta.semantic.one_hot(batch["semantic"])
        fake = masked(self.draw(batch, one_hot), batch["valid"])
        batch["fake"] = fake.detach()

        with frozen(self.discriminator):
            of_fake = self.discriminator(torch.cat([one_hot, fake], dim=1))
            weighted = {"adversarial": self.config.adversarial_weight * self.adversarial.generator(of_fake)}
            if self.config.feature_matching_weight > 0:
                with torch.no_grad():
                    of_real = self.discriminator(torch.cat([one_hot, real], dim=1))
                weighted["feature_matching"] = self.config.feature_matching_weight * feature_matching_loss(of_real,
                                                                                                           of_fake)
        return weighted_sum({**weighted, **self.reconstruction(real, fake, batch)})

    def reconstruction(self, real: Tensor, fake: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms that compare what was drawn with the image itself."""
        return reconstruction_terms(real, fake, self.perceptual, self.config.perceptual_weight, self.l1_weight)

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        one_hot = self.synthesizer.meta.semantic.one_hot(batch["semantic"])
        loss, accuracy = judge(self.discriminator, one_hot, batch["image"], batch["fake"], self.adversarial)
        return loss, {"discriminator": loss.detach(), "discriminator_accuracy": accuracy}


def judge(discriminator: nn.Module, condition: Tensor, real: Tensor, fake: Tensor,
          adversarial: AdversarialLoss = LEAST_SQUARES) -> tuple[Tensor, Tensor]:
    """The loss of one discriminator, which sees what both were drawn for, and how often it is right."""
    of_real, of_fake = (discriminator(torch.cat([condition, judged.to(condition.dtype)], dim=1))
                        for judged in (real, fake))
    return adversarial.discriminator(of_real, of_fake), adversarial.accuracy(of_real, of_fake)


def reconstruction_terms(real: Tensor, fake: Tensor, perceptual: nn.Module | None, perceptual_weight: float,
                         l1_weight: float) -> dict[str, Tensor]:
    """Perceptual loss where there are features, L1 where it has a weight; both weighted."""
    weighted = {}
    if perceptual is not None:
        weighted["perceptual"] = perceptual_weight * perceptual_loss(perceptual(real), perceptual(fake))
    if l1_weight > 0:
        weighted["l1"] = l1_weight * F.l1_loss(fake.float(), real)
    return weighted


def default_l1_weight(wanted: float | None, perceptual: nn.Module | None) -> float:
    """As wanted; None = 10 in place of perceptual features that are not at hand, otherwise 0."""
    if wanted is not None:
        return wanted
    return 10.0 if perceptual is None else 0.0


def weighted_sum(weighted: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Weighted terms → (their sum, the terms for the log)."""
    return torch.stack(list(weighted.values())).sum(), {name: term.detach() for name, term in weighted.items()}
