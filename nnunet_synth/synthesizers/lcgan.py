"""LcGAN and pix2pix: a U-Net draws an image for a label map, judged patch by patch by a discriminator that sees both.

LcGAN (Karki et al., "Lesion Conditional Image Generation for Improved Segmentation of Intracranial Hemorrhage from CT
Images", SPIE 2020) is pix2pix (Isola et al., CVPR 2017) for lesions, whose contribution is how the best of several
models is chosen: `nnunet_synth select`. So its training keeps the models that the paper compares (10, 50, 100 and 200
epochs: a twentieth, a quarter, a half and all of the steps). What it says less of is as in the TensorFlow pix2pix that
it names. `Pix2Pix` is the published one, and `EnhancedPix2Pix` CoSinGAN's baseline: the same with CoSinGAN's mixed
reconstruction loss in the place of L1.

Known deviations: with a layout the condition is anatomy and lesions, one channel a class, as lesions alone tell no
anatomy; batch statistics are tracked in training and fixed in drawing, and there is no dropout in drawing unless
`diversity` asks for it, so that a sample does not depend on its companions; the drawn weights are averages over the
training (EMA), as everywhere in this house.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_synth.bounds import (
    BATCH,
    DECAY,
    DEPTH,
    LEARNING_RATE,
    STEPS,
    WEIGHT,
    WIDTH,
    Bounds,
    Settings,
    bounded,
    choice,
)
from nnunet_synth.errors import UserError
from nnunet_synth.losses.adversarial import CROSS_ENTROPY, AdversarialLoss, Features
from nnunet_synth.synthesizers.base import Batch, Prepared, Stage, Synthesizer, SynthMeta
from nnunet_synth.synthesizers.blocks import init_normal
from nnunet_synth.synthesizers.conditional_stage import ConditionalStage
from nnunet_synth.synthesizers.feature_set import as_feature_set
from nnunet_synth.synthesizers.mixed_terms import MixedReconstruction, MixedWeights, weights_of_classes
from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator
from nnunet_synth.synthesizers.unet_generator import UNetGenerator

PAPER_EPOCHS = (10, 50, 100, 200)


@dataclass(frozen=True)
class LcGANConfig(Settings):
    """The hyper-parameters of all three; the defaults are LcGAN's preset "default"."""

    width: int = bounded(64, WIDTH)  # of the generator's first level; it doubles with each, up to eight times
    num_down: int = bounded(8, Bounds(low=2, high=DEPTH.high))   # levels: H and W are padded to multiples of 2^this
    norm: str = choice("batch", "instance")
    dropout: float = bounded(0.5, DECAY)                         # in the first three layers of the decoder, in training
    diversity: str = choice("none", "dropout")  # | dropout: in drawing, too, from the request's random numbers

    ndf: int = bounded(64, WIDTH)                                # width of the discriminator's first layer
    num_discriminator_layers: int = bounded(3, DEPTH)            # strided ones; 3 = patches of 70 × 70 pixels

    adversarial_weight: float = bounded(1.0, WEIGHT)
    feature_matching_weight: float = bounded(0.0, WEIGHT)
    perceptual_weight: float = bounded(0.0, WEIGHT)              # neither paper has these two
    l1_weight: float = bounded(100.0, WEIGHT)

    num_steps: int = bounded(50_000, STEPS)
    batch_size: int = bounded(4, BATCH)
    generator_lr: float = bounded(2e-4, LEARNING_RATE)
    discriminator_lr: float = bounded(2e-4, LEARNING_RATE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diversity == "dropout" and self.dropout == 0:
            raise UserError("diversity dropout needs dropout above 0")


@dataclass(frozen=True)
class EnhancedPix2PixConfig(MixedWeights, LcGANConfig):
    """With the mixed reconstruction loss in the place of L1."""

    l1_weight: float = bounded(0.0, WEIGHT)


# Learns within a few hundred steps on a CPU.
TINY = {"width": 8, "num_down": 4, "dropout": 0.0, "ndf": 8, "num_discriminator_layers": 2, "num_steps": 600,
        "batch_size": 8, "generator_lr": 1e-3}
PAPER = {"batch_size": 1, "num_steps": 200_000}     # 200 epochs of a thousand slices


class Generator(nn.Module):
    """One-hot semantic classes → image in (−1, 1)."""

    def __init__(self, config: LcGANConfig, num_classes: int, num_channels: int) -> None:
        super().__init__()
        self.unet = UNetGenerator(num_classes, num_channels, config.width, config.num_down, config.norm,
                                  config.dropout)
        init_normal(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, one_hot: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[N, S, H, W] → [N, C, H, W]; a generator turns dropout on in eval mode."""
        return torch.tanh(self.unet(one_hot, generator))


# ----------------------------------------------------------------------------------------------------------------------
# Training


def whole_discriminator_loss(real: Features, fake: Features) -> Tensor:
    """−E log D(x) − E log(1 − D(G(·))), which LcGAN does not halve."""
    return 2 * CROSS_ENTROPY.discriminator(real, fake)


class LcGANStage(ConditionalStage):
    """Redraw labelled slices from their labels: −log D + 100·L1, at a constant learning rate."""

    betas = (0.5, 0.999)
    kept_shares = tuple(epochs / PAPER_EPOCHS[-1] for epochs in PAPER_EPOCHS)
    adversarial: AdversarialLoss = replace(CROSS_ENTROPY, discriminator=whole_discriminator_loss)

    def __init__(self, synthesizer: LcGAN, num_steps: int, perceptual: nn.Module | None) -> None:
        config, meta = synthesizer.config, synthesizer.meta
        discriminator = MultiScaleDiscriminator(
            len(meta.semantic) + len(meta.channel_names), config.ndf, config.num_discriminator_layers, num_scales=1,
            norm=config.norm, padding=1)
        # pix2pix compares pixels: features are looked at only where an option gives them a weight.
        super().__init__(synthesizer, synthesizer.generator, discriminator, num_steps,
                         perceptual if config.perceptual_weight > 0 else None)
        init_normal(self.discriminator)

    def draw(self, batch: Batch, one_hot: Tensor) -> Tensor:
        return self.generator(one_hot)

    def learning_rates(self, step: int) -> tuple[float, float]:
        return self.config.generator_lr, self.config.discriminator_lr


class Pix2PixStage(LcGANStage):
    """As LcGAN's but for the halved loss of the discriminator and the schedule."""

    kept_shares = ()
    adversarial = CROSS_ENTROPY
    learning_rates = ConditionalStage.learning_rates


class EnhancedPix2PixStage(Pix2PixStage):
    """As pix2pix's, with ℓ_rec of CoSinGAN (Eq. 6) for L1."""

    def __init__(self, synthesizer: EnhancedPix2Pix, num_steps: int, perceptual: nn.Module | None) -> None:
        super().__init__(synthesizer, num_steps, perceptual)
        config, meta = synthesizer.config, synthesizer.meta
        self.mixed = MixedReconstruction(config, weights_of_classes(meta.semantic, config.class_weights),
                                         min(meta.patch_size), as_feature_set(perceptual))

    def reconstruction(self, real: Tensor, fake: Tensor, batch: Batch) -> dict[str, Tensor]:
        mixed = self.mixed.to(real.device)(fake, real, batch["semantic"])
        return {**super().reconstruction(real, fake, batch), **mixed}


# ----------------------------------------------------------------------------------------------------------------------
# The synthesizers


class LcGAN(Synthesizer):
    """Semantic classes of a request → image; one and the same for the same label, unless it draws with dropout."""

    name = "lcgan"
    Config = LcGANConfig
    drawing_options = ("diversity",)    # dropout was on in training, so its networks know how to draw with it
    PRESETS = {"tiny": LcGANConfig(**TINY), "default": LcGANConfig(), "paper": LcGANConfig(**PAPER)}
    stage_class: ClassVar[type[LcGANStage]] = LcGANStage

    def __init__(self, meta: SynthMeta, config: LcGANConfig) -> None:
        super().__init__(meta, config)
        self.generator = Generator(config, len(meta.semantic), len(meta.channel_names))

    @classmethod
    def build(cls, meta: SynthMeta, config: LcGANConfig) -> LcGAN:
        return cls(meta, config)

    @property
    def divisor(self) -> int:
        return self.generator.unet.divisor

    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        return [self.stage_class(self, self.config.num_steps if steps is None else steps, perceptual)]

    def _decode(self, request: Prepared) -> Tensor:
        noise = request.generator if self.config.diversity == "dropout" else None
        return self.generator(self.meta.semantic.one_hot(request.semantic), noise)


class Pix2Pix(LcGAN):
    """Isola et al.: half the discriminator's loss, and a learning rate that falls to zero over the second half."""

    name = "pix2pix"
    stage_class = Pix2PixStage


class EnhancedPix2Pix(LcGAN):
    """pix2pix with the mixed reconstruction loss, in a single stage: the baseline of CoSinGAN, 4.2."""

    name = "enhanced_pix2pix"
    takes_feature_set = True
    Config = EnhancedPix2PixConfig
    PRESETS = {"tiny": EnhancedPix2PixConfig(**TINY), "default": EnhancedPix2PixConfig(),
               "paper": EnhancedPix2PixConfig(**PAPER)}
    stage_class = EnhancedPix2PixStage
