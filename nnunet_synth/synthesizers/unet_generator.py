"""pix2pix's generator: a U-Net whose every level halves the resolution, with skips between mirrored levels.

Isola et al., CVPR 2017, 6.1.1: encoder Ck of 4×4 convolutions with stride 2 and LeakyReLU, without a norm in the first
layer; decoder of 4×4 transposed convolutions with ReLU; dropout in the first layers of the decoder. CoSinGAN has it at
each of its scales (with 4 to 7 levels), LcGAN with 8.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.synthesizers.blocks import LEAK, normalisation

NUM_DROPOUT_LAYERS = 3      # of the decoder, from the bottleneck up


class UNetGenerator(nn.Module):
    """[N, in_channels, H, W] → [N, out_channels, H, W] logits, before the tanh. H and W are multiples of `divisor`.

    The bottleneck has no norm, so it may be as small as one pixel. Convolutions before a norm have no bias, which it
    would take away.

    Args:
        width: channels of the first level; they double with each level up to `max_width_factor` times as many.
        num_down: number of levels.
        norm: "instance" or "batch".
        dropout: p in the first three layers of the decoder (never in the last one). In train mode it is always on; in
            eval mode only where `forward` is given a generator to draw from, which is how pix2pix makes its noise.
        drops_in_training: False = only where a generator is given.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 64, num_down: int = 8,
                 norm: str = "batch", dropout: float = 0.0, max_width_factor: int = 8,
                 drops_in_training: bool = True) -> None:
        super().__init__()
        assert num_down >= 2, "a U-Net has at least two levels"
        widths = [width * min(2 ** level, max_width_factor) for level in range(num_down)]
        self.divisor = 2 ** num_down
        self.dropout, self.drops_in_training = dropout, drops_in_training
        self.down = nn.ModuleList([nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1)])
        for level, (before, after) in enumerate(pairwise(widths), start=1):
            has_norm = level < num_down - 1
            convolution = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not has_norm)
            self.down.append(nn.Sequential(convolution, normalisation(norm, after)) if has_norm else convolution)
        # All but the first layer of the decoder see the features of their level beside what comes from below.
        self.up = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise(widths[::-1])):
            before = before * 2 if level > 0 else before
            self.up.append(nn.Sequential(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                                         normalisation(norm, after)))
        self.to_image = nn.ConvTranspose2d(widths[0] * 2, out_channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        skips = []
        for level, layer in enumerate(self.down):
            x = layer(F.leaky_relu(x, LEAK) if level > 0 else x)
            skips.append(x)
        x = skips.pop()
        for number, layer in enumerate(self.up):
            x = layer(F.relu(x))
            if number < NUM_DROPOUT_LAYERS:
                x = self._drop(x, generator)
            x = torch.cat([x, skips.pop()], dim=1)
        return self.to_image(F.relu(x))

    def _drop(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is not None and self.dropout > 0:
            kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
            return x * kept / (1 - self.dropout)
        return F.dropout(x, self.dropout, self.training and self.drops_in_training)
