"""Enc of SEAN: one style code for each semantic class of an image, the mean of its features over the class's pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_synth.synthesizers.blocks import LEAK


class StyleEncoder(nn.Module):
    """A bottleneck network from the image to features at half its resolution, then the mean over each region.

    Zhu et al. 2020 (SEAN) §3.2; SA-CPS III.B: "if a category does not exist in the input image, we set its
    corresponding column in SC to zero".
    """

    stride = 2      # of the features

    def __init__(self, in_channels: int, width: int, style_dim: int) -> None:
        super().__init__()

        def activated(convolution: nn.Module) -> nn.Sequential:
            return nn.Sequential(convolution, nn.InstanceNorm2d(convolution.out_channels), nn.LeakyReLU(LEAK))

        self.layers = nn.Sequential(
            activated(nn.Conv2d(in_channels, width, 3, padding=1, padding_mode="reflect")),
            activated(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)),
            activated(nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)),
            activated(nn.ConvTranspose2d(4 * width, 8 * width, 3, stride=2, padding=1, output_padding=1)),
            nn.Conv2d(8 * width, style_dim, 3, padding=1, padding_mode="reflect"),
            nn.Tanh(),
        )

    def forward(self, image: Tensor, one_hot: Tensor, valid: Tensor) -> Tensor:
        """Style codes.

        Args:
            image: [N, C, H, W] in [-1, 1]; H and W multiples of 4. Pixels that are not valid are set to −1.
            one_hot: [N, S, H, W] semantic classes.
            valid: [N, H, W] bool; other pixels (padding, ignored) count for no class.

        Returns:
            [N, S, F] float32; the row of a class without a valid pixel at half resolution is exactly zero.
        """
        features = self.layers(image.masked_fill(~valid[:, None], -1))
        regions = (one_hot * valid[:, None])[:, :, ::self.stride, ::self.stride]        # nearest
        return region_mean(features, regions)


def region_mean(features: Tensor, regions: Tensor) -> Tensor:
    """Mean feature of each region: [N, F, h, w], [N, S, h, w] (0 or 1) → [N, S, F], zero for an empty region.

    In float32 (or wider) whatever the autocast: sums over 10⁵ pixels do not fit bfloat16.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        regions = regions.to(features.dtype)
        count = regions.sum((2, 3)).clamp_min(1)
        return torch.einsum("nfhw,nshw->nsf", features, regions) / count[..., None]
