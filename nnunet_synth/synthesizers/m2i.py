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

import torch
from torch import Tensor, nn

from nnunet_synth.bounds import BATCH, DEPTH, LEARNING_RATE, STEPS, WEIGHT, WIDTH, Bounds, Settings, bounded, choice
from nnunet_synth.synthesizers.base import Batch, Prepared, Stage, Synthesizer, SynthMeta
from nnunet_synth.synthesizers.blocks import init_normal
from nnunet_synth.synthesizers.conditional_stage import ConditionalStage
from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator
from nnunet_synth.synthesizers.residual_generator import ResidualTrunk, head


@dataclass(frozen=True)
class M2IConfig(Settings):
    """M2I's hyper-parameters; the defaults are those of the preset "default"."""

    width: int = bounded(32, WIDTH)  # of the generator's first layer; it doubles with every halving
    num_down: int = bounded(4, DEPTH)
    num_blocks: int = bounded(9, Bounds(low=0, high=64))         # residual ones
    norm: str = choice("instance", "batch")

    ndf: int = bounded(64, WIDTH)                                # width of the discriminators' first layer
    num_discriminator_layers: int = bounded(3, DEPTH)            # strided ones
    num_scales: int = bounded(2, Bounds(low=1, high=8))          # discriminators on the image and on its averaged half

    adversarial_weight: float = bounded(1.0, WEIGHT)
    perceptual_weight: float = bounded(10.0, WEIGHT)
    feature_matching_weight: float = bounded(0.0, WEIGHT)        # pix2pixHD: 10; UM2I's M2I: none
    l1_weight: float | None = bounded(None, WEIGHT)  # None = 0 with perceptual features (the paper), 10 without

    num_steps: int = bounded(25_000, STEPS)
    batch_size: int = bounded(8, BATCH)
    generator_lr: float = bounded(2e-4, LEARNING_RATE)
    discriminator_lr: float = bounded(2e-4, LEARNING_RATE)


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


class M2IStage(ConditionalStage):
    """Redraw labelled slices from their labels: L_adv + 10·L_vgg."""

    betas = (0.5, 0.999)
    steady_share = 0.75

    def __init__(self, m2i: M2I, num_steps: int, perceptual: nn.Module | None) -> None:
        config = m2i.config
        discriminator = MultiScaleDiscriminator(len(m2i.meta.semantic) + len(m2i.meta.channel_names), config.ndf,
                                                config.num_discriminator_layers, config.num_scales)
        super().__init__(m2i, m2i.generator, discriminator, num_steps, perceptual)
        init_normal(self.discriminator)

    def draw(self, batch: Batch, one_hot: Tensor) -> Tensor:
        return self.generator(one_hot)
