"""The trunk of pix2pixHD's global generator, which UM2I, CS2 and M2I share: down, residual blocks, up.

Johnson et al., ECCV 2016; Wang et al., CVPR 2018, §3.1; UM2I IV.B: 4 down-sampling, 9 residual and 4 up-sampling blocks
of convolution, normalisation and activation. What is drawn from its features is up to the heads, which are outside.
"""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_synth.synthesizers.blocks import normalisation


class ResidualTrunk(nn.Module):
    """[N, in_channels, H, W] → [N, out_channels, H, W] features.

    H and W must be multiples of `divisor`. Convolutions before a norm have no bias, which it would take away.

    Attributes:
        stem: 7×7 to `width` channels, at full resolution.
        down: `num_down` stages, each of which halves the resolution and doubles the width.
        blocks: `num_blocks` residual blocks at the coarsest resolution, with `bottleneck_channels`.
        up: `num_down` stages, each of which doubles the resolution and halves the width.

    Args:
        norm: "instance" (pix2pixHD; a sample does not depend on its companions in a batch) or "batch" (UM2I's paper).
    """

    def __init__(self, in_channels: int, width: int = 64, num_down: int = 4, num_blocks: int = 9,
                 norm: str = "instance") -> None:
        super().__init__()
        widths = [width * 2 ** level for level in range(num_down + 1)]
        self.stem = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(in_channels, width, 7, bias=False),
                                  normalisation(norm, width), nn.ReLU())
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                                                normalisation(norm, after), nn.ReLU())
                                  for before, after in zip(widths, widths[1:], strict=False))
        self.blocks = nn.Sequential(*(ResidualBlock(widths[-1], norm) for _ in range(num_blocks)))
        self.up = nn.ModuleList(nn.Sequential(nn.ConvTranspose2d(before, after, 3, stride=2, padding=1,
                                                                 output_padding=1, bias=False),
                                              normalisation(norm, after), nn.ReLU())
                                for before, after in zip(widths[::-1], widths[-2::-1], strict=False))
        self.in_channels, self.out_channels, self.bottleneck_channels = in_channels, width, widths[-1]
        # Reflection by one pixel needs two: that much must be left at the coarsest resolution.
        self.divisor = 2 ** (num_down + 1)

    def encode(self, x: Tensor) -> Tensor:
        """Stem and down stages: [N, in_channels, H, W] → [N, bottleneck_channels, H / 2^num_down, W / 2^num_down]."""
        x = self.stem(x)
        for stage in self.down:
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.encode(x))
        for stage in self.up:
            x = stage(x)
        return x


class ResidualBlock(nn.Module):
    """x + norm(conv(ReLU(norm(conv(x))))), 3×3 with reflected borders."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False),
                                  normalisation(norm, channels), nn.ReLU(),
                                  nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False),
                                  normalisation(norm, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def head(in_channels: int, out_channels: int) -> nn.Sequential:
    """Features → logits, 7×7 with reflected borders: the last layer of the global generator, without activation."""
    return nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(in_channels, out_channels, 7))
