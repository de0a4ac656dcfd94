"""The discriminator of the progressive GAN, which StyleGAN kept (Karras et al., ICLR 2018, Table 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.mask_sources.growth import blend, halve
from nnunet_synth.mask_sources.layers import LEAK, EqualisedConv2d, EqualisedLinear, append_deviation, smooth


class HalvingBlock(nn.Module):
    """Two 3 × 3 convolutions and half the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = EqualisedConv2d(in_channels, in_channels, 3)
        self.second = EqualisedConv2d(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), LEAK)
        return F.leaky_relu(halve(self.second(smooth(x))), LEAK)


class ProgressiveDiscriminator(nn.Module):
    """Masks of any depth → a logit each, positive = real.

    Args: as `StyleGenerator`'s.
    """

    def __init__(self, num_channels: int, coarsest: tuple[int, int], widths: Sequence[int], group_size: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.from_mask = nn.ModuleList(EqualisedConv2d(num_channels, width, 1) for width in widths)
        self.blocks = nn.ModuleList(HalvingBlock(width, coarser)        # of depth 2 and finer
                                    for coarser, width in zip(widths, widths[1:], strict=False))
        width = widths[0]
        self.convolution = EqualisedConv2d(width + 1, width, 3)
        self.hidden = EqualisedLinear(width * coarsest[0] * coarsest[1], width)
        self.logit = EqualisedLinear(width, 1, gain=1)

    def forward(self, mask: Tensor, depth: int, alpha: float = 1.0) -> Tensor:
        """[N, num_channels, height, width] of `depth` → [N]; at α = 0 only the halved mask is looked at."""
        x = F.leaky_relu(self.from_mask[depth - 1](mask), LEAK)
        for number in range(depth - 1, 0, -1):
            x = self.blocks[number - 1](x)
            if number == depth - 1 and alpha < 1:
                x = blend(F.leaky_relu(self.from_mask[number - 1](halve(mask)), LEAK), x, alpha)
        x = F.leaky_relu(self.convolution(append_deviation(x, self.group_size)), LEAK)
        return self.logit(F.leaky_relu(self.hidden(x.flatten(1)), LEAK))[:, 0]
