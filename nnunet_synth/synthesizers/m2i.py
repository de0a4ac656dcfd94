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

from nnunet_synth.synthesizers.base import Batch, Prepared, Stage, Synthesizer, SynthMeta
from nnunet_synth.synthesizers.blocks import init_normal
from nnunet_synth.synthesizers.conditional_stage import ConditionalStage
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
