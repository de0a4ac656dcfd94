"""M2I: draws an image for a label map, the baseline that UM2I is compared with.

Label to image in the form of pix2pixHD (Wang et al., CVPR 2018) with the generator of UM2I: "M2I models used the same
architecture as UM2I models, while the input and output for M2I models were the segmentation masks and the synthetic
images, and L_vgg and L_adv were used" (Xing et al., *Less is More*, IV.B). It has no style: all lesions of a shape look
alike, which is the mode collapse that the paper shows.

Known deviations: labels and images are paired; instance norm, so that a sample does not depend on its batch (the
paper's batch norm is the preset "paper"); where no perceptual features are at hand an L1 term replaces that loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.errors import UserError
from nnunet_synth.losses.adversarial import (
    feature_matching_loss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
)
from nnunet_synth.losses.reconstruction import perceptual_loss
from nnunet_synth.synthesizers.base import Batch, Prepared, SliceSource, Stage, Synthesizer, SynthMeta, Terms
from nnunet_synth.synthesizers.blocks import frozen, init_normal
from nnunet_synth.synthesizers.mask_conditioned import masked
from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator
from nnunet_synth.synthesizers.residual_generator import ResidualTrunk, head


@dataclass(frozen=True)
class M2IConfig:
    """M2I's hyper-parameters; the defaults are those of the preset "default"."""

    width: int = 32                     # of the generator's first layer; it doubles with every halving
    num_down: int = 4
    num_blocks: int = 9                 # residual ones
    norm: str = "instance"              # | batch

    ndf: int = 64                       # width of the discriminators' first layer
    num_discriminator_layers: int = 3   # strided ones
    num_scales: int = 2                 # discriminators on the image and on its averaged half

    adversarial_weight: float = 1.0
    perceptual_weight: float = 10.0
    feature_matching_weight: float = 0.0    # pix2pixHD: 10; UM2I's M2I: none
    l1_weight: float | None = None      # None = 0 with perceptual features (the paper), 10 without

    num_steps: int = 25_000
    batch_size: int = 8
    generator_lr: float = 2e-4
    discriminator_lr: float = 2e-4


class Generator(nn.Module):
    """One-hot semantic classes → image in (−1, 1)."""

    def __init__(self, config: M2IConfig, num_classes: int, num_channels: int) -> None:
        super().__init__()
        self.trunk = ResidualTrunk(num_classes, config.width, config.num_down, config.num_blocks, config.norm)
        self.to_image = head(config.width, num_channels)
        init_normal(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, one_hot: Tensor) -> Tensor:
        """[N, S, H, W] → [N, C, H, W]."""
        return torch.tanh(self.to_image(self.trunk(one_hot)))


class M2I(Synthesizer):
    """Semantic classes of a request → image; one and the same for the same label."""

    name = "m2i"
    Config = M2IConfig
    PRESETS = {
        "tiny": M2IConfig(width=8, num_down=2, num_blocks=3, ndf=8, num_discriminator_layers=2, num_steps=600,
                          generator_lr=1e-3),
        "default": M2IConfig(),
        "paper": M2IConfig(width=64, norm="batch", batch_size=16),
    }

    def __init__(self, meta: SynthMeta, config: M2IConfig) -> None:
        super().__init__(meta, config)
        self.generator = Generator(config, len(meta.semantic), len(meta.channel_names))

    @classmethod
    def build(cls, meta: SynthMeta, config: M2IConfig) -> M2I:
        return cls(meta, config)

    @property
    def divisor(self) -> int:
        return self.generator.trunk.divisor

    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        return [M2IStage(self, self.config.num_steps if steps is None else steps, perceptual)]

    def _decode(self, request: Prepared) -> Tensor:
        return self.generator(self.meta.semantic.one_hot(request.semantic))


class M2IStage(Stage):
    """Redraw labelled slices from their labels: L_adv + 10·L_vgg."""

    name = "m2i"
    betas = (0.5, 0.999)

    def __init__(self, m2i: M2I, num_steps: int, perceptual: nn.Module | None) -> None:
        config, semantic = m2i.config, m2i.meta.semantic
        if any(size % m2i.divisor for size in m2i.meta.patch_size):
            raise UserError(f"patch size {m2i.meta.patch_size} is no multiple of {m2i.divisor}: choose another")
        self.m2i, self.config = m2i, config
        self.num_steps, self.batch_size = num_steps, config.batch_size
        self.generator = m2i.generator
        self.discriminator = MultiScaleDiscriminator(len(semantic) + len(m2i.meta.channel_names), config.ndf,
                                                     config.num_discriminator_layers, config.num_scales)
        init_normal(self.discriminator)
        self.perceptual = perceptual
        self.l1_weight = config.l1_weight
        if self.l1_weight is None:
            self.l1_weight = 10.0 if perceptual is None else 0.0

    def learning_rates(self, step: int) -> tuple[float, float]:
        """Constant over three quarters of the steps, then linearly to zero."""
        factor = min(1.0, 4 * (1 - step / self.num_steps))
        return self.config.generator_lr * factor, self.config.discriminator_lr * factor

    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        """image [N, C, H, W] in [−1, 1], semantic [N, H, W], valid [N, H, W]."""
        part = slices.sample(self.batch_size, tuple(self.m2i.meta.patch_size), rng)
        return {"image": masked(self.m2i.to_unit(part.image), part.valid),
                "semantic": self.m2i.meta.semantic.combine(part.label, part.layout), "valid": part.valid}

    def generator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        real, one_hot = batch["image"], self.m2i.meta.semantic.one_hot(batch["semantic"])
        fake = masked(self.generator(one_hot), batch["valid"])
        batch["fake"] = fake.detach()

        with frozen(self.discriminator):
            of_fake = self.discriminator(torch.cat([one_hot, fake], dim=1))
            weighted = {"adversarial": self.config.adversarial_weight * least_squares_generator_loss(of_fake)}
            if self.config.feature_matching_weight > 0:
                with torch.no_grad():
                    of_real = self.discriminator(torch.cat([one_hot, real], dim=1))
                weighted["feature_matching"] = self.config.feature_matching_weight * feature_matching_loss(of_real,
                                                                                                           of_fake)
        if self.perceptual is not None:
            weighted["perceptual"] = self.config.perceptual_weight * perceptual_loss(self.perceptual(real),
                                                                                     self.perceptual(fake))
        if self.l1_weight > 0:
            weighted["l1"] = self.l1_weight * F.l1_loss(fake.float(), real)
        return torch.stack(list(weighted.values())).sum(), {name: term.detach() for name, term in weighted.items()}

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        one_hot = self.m2i.meta.semantic.one_hot(batch["semantic"])
        of_real, of_fake = (self.discriminator(torch.cat([one_hot, image.to(one_hot.dtype)], dim=1))
                            for image in (batch["image"], batch["fake"]))
        loss = least_squares_discriminator_loss(of_real, of_fake)
        is_right = torch.stack([((x[-1] > 0.5).float().mean() + (y[-1] < 0.5).float().mean()) / 2
                                for x, y in zip(of_real, of_fake, strict=True)]).mean()
        return loss, {"discriminator": loss.detach(), "discriminator_accuracy": is_right}
