"""StyleGAN's generator, grown depth by depth (Karras et al., CVPR 2019, Table 1 B–D).

Not here: style mixing, which disentangles styles that nobody mixes here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.mask_sources.growth import blend, double
from nnunet_synth.mask_sources.layers import LEAK, EqualisedConv2d, EqualisedLinear, StyledLayer, pixel_norm


class Mapping(nn.Module):
    """z → w: normalised, then fully connected layers."""

    def __init__(self, latent_size: int, num_layers: int, learning_rate: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualisedLinear(latent_size, latent_size, learning_rate=learning_rate)
                                    for _ in range(num_layers))

    def forward(self, latent: Tensor) -> Tensor:
        style = pixel_norm(latent)
        for layer in self.layers:
            style = F.leaky_relu(layer(style), LEAK)
        return style


class StyleGenerator(nn.Module):
    """w, and noise for every pixel → masks.

    Args:
        num_channels: of the masks.
        coarsest: (height, width) of the masks of depth 1.
        widths: channels of each depth's features, coarsest first.
        mapping_learning_rate: of the mapping network, relative to that of all else.
    """

    def __init__(self, num_channels: int, coarsest: tuple[int, int], widths: Sequence[int], latent_size: int,
                 num_mapping_layers: int, mapping_learning_rate: float) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.mapping = Mapping(latent_size, num_mapping_layers, mapping_learning_rate)
        self.constant = nn.Parameter(torch.ones(1, widths[0], *coarsest))
        # Two layers a depth; the first one of depth 1 works on the constant and convolves nothing.
        befores = [None, *widths[:-1]]
        self.first = nn.ModuleList(StyledLayer(before, width, latent_size)
                                   for before, width in zip(befores, widths, strict=True))
        self.second = nn.ModuleList(StyledLayer(width, width, latent_size) for width in widths)
        self.to_mask = nn.ModuleList(EqualisedConv2d(width, num_channels, 1, gain=1) for width in widths)

    def forward(self, style: Tensor, depth: int, alpha: float = 1.0,
                generator: torch.Generator | None = None) -> Tensor:
        """Draw.

        Args:
            style: [N, latent_size], from `mapping`.
            depth: 1 … number of depths.
            alpha: of the fade-in of this depth; 0 = masks of the depth before, enlarged.
            generator: of the noise; None = torch's own.

        Returns:
            [N, num_channels, height, width] of that depth, without activation.
        """
        x = self.constant.expand(len(style), -1, -1, -1)
        for number in range(depth):
            before = x
            if number > 0:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.second[number](self.first[number](x, style, generator), style, generator)
        fine = self.to_mask[depth - 1](x)
        if depth == 1 or alpha == 1:
            return fine
        return blend(double(self.to_mask[depth - 2](before)), fine, alpha)
