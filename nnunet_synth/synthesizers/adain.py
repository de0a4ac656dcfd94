"""Adaptive instance normalisation (Huang and Belongie, ICCV 2017) and where its style comes from in CS2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_synth.errors import UserError

EPSILON = 1e-5      # added to variances
POOLS = ("channel", "scalar")


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the pixels, each [N, C, 1, 1] float32 (or float64), of [N, C, H, W] features."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))     # squares overflow half precision
    variance, mean = torch.var_mean(features, dim=(2, 3), keepdim=True)
    return mean, (variance + EPSILON).sqrt()


def adain(content: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """σ_s (x − μ(x)) / σ(x) + μ_s for every channel of every sample.

    Args:
        content: [N, C, H, W].
        mean, deviation: of the style, [N or 1, C or 1, 1, 1].
    """
    own_mean, own_deviation = statistics(content)
    return ((content - own_mean) * (deviation / own_deviation) + mean).to(content.dtype)


class StyleStatistics(nn.Module):
    """The features of a reference image → the row of numbers that AdaIN needs of it.

    Args:
        widths: channels of the reference's features, from the finest level to the coarsest.
        pool: "channel" = mean and deviation of each channel of each level, for content of the same level and width;
            "scalar" = those of one channel into which a 1×1 convolution mixes a level, for all channels of the content.
        only_deepest: with "scalar", the coarsest level serves all others (CS2's released code).
    """

    def __init__(self, widths: Sequence[int], pool: str = "channel", only_deepest: bool = False) -> None:
        super().__init__()
        if pool not in POOLS:
            raise UserError(f"style_pool {pool!r} is unknown; known: {', '.join(POOLS)}")
        deepest = len(widths) - 1
        self.only_deepest = pool == "scalar" and only_deepest
        # How many means a level has, and as many deviations.
        self.sizes = list(widths) if pool == "channel" else [int(not self.only_deepest)] * deepest + [1]
        self.mix = None
        if pool == "scalar":
            self.mix = nn.ModuleDict({str(level): nn.Conv2d(width, 1, 1) for level, width in enumerate(widths)
                                      if self.sizes[level]})

    @property
    def num_values(self) -> int:
        """Length of a row."""
        return 2 * sum(self.sizes)

    def of_level(self, features: Tensor, level: int) -> Tensor:
        """A level's part of the row: means, then deviations, of [N, widths[level], h, w]; may be empty."""
        if not self.sizes[level]:
            return features.new_zeros(len(features), 0, dtype=torch.float32)
        mixed = features if self.mix is None else self.mix[str(level)](features)
        return torch.cat(statistics(mixed), dim=1)[:, :, 0, 0]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[N, num_values] of the features of all levels, finest first."""
        return torch.cat([self.of_level(of_level, level) for level, of_level in enumerate(features)], dim=1)

    def at(self, style: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation for content of this level, each [N, C or 1, 1, 1], out of rows [N, num_values]."""
        parts = style.split([2 * size for size in self.sizes], dim=1)
        return mean_and_deviation(parts[-1 if self.only_deepest else level])


def mean_and_deviation(part: Tensor) -> tuple[Tensor, Tensor]:
    """A level's part of the row → [N, size, 1, 1] each."""
    mean, deviation = part[:, :, None, None].chunk(2, dim=1)
    return mean, deviation
