"""Patch discriminators (Isola et al., CVPR 2017), on one scale or several (Wang et al., CVPR 2018, §3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from nnunet_synth.synthesizers.blocks import LEAK, normalisation


class PatchDiscriminator(nn.Module):
    """One scale: 4×4 convolutions of stride 2 (`num_layers` of them, the width doubling up to 8×), then one of stride 1
    to a single logit a patch.

    The defaults are pix2pixHD's. SEAN has `spectral=True, widened=False`; pix2pix `norm="batch", padding=1`, one scale.

    Args:
        norm: "instance" or "batch", of all layers but the first and the last.
        spectral: spectral norm on the layers that have a norm.
        widened: one more layer, of stride 1 and twice the width (up to 8×), before the logits.
        padding: of every convolution. With 2, an output exists for every size of image.
    """

    def __init__(self, in_channels: int, width: int = 64, num_layers: int = 3, *, norm: str = "instance",
                 spectral: bool = False, widened: bool = True, padding: int = 2) -> None:
        super().__init__()

        def layer(before: int, after: int, stride: int) -> nn.Sequential:
            # The norm takes the mean away: a bias would be lost.
            convolution = nn.Conv2d(before, after, 4, stride, padding, bias=False)
            return nn.Sequential(spectral_norm(convolution) if spectral else convolution, normalisation(norm, after),
                                 nn.LeakyReLU(LEAK))

        strides = [2] * num_layers + [1] * widened
        widths = [min(width * 2 ** number, width * 8) for number in range(len(strides))]
        first = nn.Sequential(nn.Conv2d(in_channels, width, 4, 2, padding), nn.LeakyReLU(LEAK))
        middle = [layer(*sizes) for sizes in zip(widths, widths[1:], strides[1:], strict=False)]
        self.layers = nn.ModuleList([first, *middle, nn.Conv2d(widths[-1], 1, 4, padding=padding)])
        # Of the logits' patches, in pixels of the input: from one centre to the next, and the first one.
        self.stride, self.first_centre = 1, 0.0
        for stride in (*strides, 1):
            self.first_centre += self.stride * (1.5 - padding)
            self.stride *= stride

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, C, H, W] → the features of every layer, the last one = logits."""
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features

    def to_pixels(self, answer: Tensor, height: int, width: int, shrunk: int = 1) -> Tensor:
        """Values of patches [N, 1, h, w] → [N, 1, H, W] float32 of pixels, bilinear between the patches' centres.

        Plain enlarging would not do: padded convolutions look beyond the image, so the patches cover more than it.

        Args:
            shrunk: how much smaller than [H, W] the input was.
        """
        rows, columns = (((torch.arange(size, device=answer.device) / shrunk - self.first_centre) / self.stride + 0.5)
                         * 2 / number - 1 for size, number in zip((height, width), answer.shape[2:], strict=True))
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        grid = torch.stack([x, y], dim=-1).expand(len(answer), -1, -1, -1)
        return F.grid_sample(answer.float(), grid, padding_mode="border", align_corners=False)


class MultiScaleDiscriminator(nn.Module):
    """The same patch discriminator on the image and on its 2× averaged copies (pix2pixHD, SEAN: two scales).

    `options` are those of `PatchDiscriminator`.
    """

    def __init__(self, in_channels: int, width: int = 64, num_layers: int = 3, num_scales: int = 2,
                 **options: str | bool | int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(in_channels, width, num_layers, **options)
                                    for _ in range(num_scales))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """[N, C, H, W] (condition and image, concatenated) → [scale][layer] feature maps."""
        features = []
        for scale, discriminator in enumerate(self.scales):
            if scale > 0:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            features.append(discriminator(x))
        return features

    def confidence(self, features: list[list[Tensor]], height: int, width: int,
                   probability: Callable[[Tensor], Tensor]) -> Tensor:
        """[N, H, W] how real each pixel of the input looks, averaged over the scales.

        Args:
            probability: of being real, from logits: that of the `AdversarialLoss` which the discriminator learnt from.
        """
        return torch.cat([discriminator.to_pixels(probability(layers[-1].float()), height, width, 2 ** scale)
                          for scale, (discriminator, layers) in enumerate(zip(self.scales, features, strict=True))],
                         dim=1).mean(1)
