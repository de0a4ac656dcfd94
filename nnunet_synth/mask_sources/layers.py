"""Layers of StyleGAN (Karras et al., CVPR 2019), and of the progressive GAN that it grew from (ICLR 2018)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2
GAIN = math.sqrt(2)     # of layers with a LeakyReLU behind
_EPSILON = 1e-8


class EqualisedLinear(nn.Module):
    """Equalised learning rate: weights ~ N(0, 1) at the start, multiplied in each forward by gain / √fan-in (He's
    constant), so that Adam moves all layers alike.

    Args:
        learning_rate: of this layer relative to the optimizer's; weights start as much larger.
        bias: its value at the start.
    """

    def __init__(self, in_features: int, out_features: int, gain: float = GAIN, learning_rate: float = 1.0,
                 bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / learning_rate)
        self.bias = nn.Parameter(torch.full((out_features,), bias / learning_rate))
        self.scale = gain / math.sqrt(in_features) * learning_rate
        self.learning_rate = learning_rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.learning_rate)


class EqualisedConv2d(nn.Module):
    """The same for a convolution that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, gain: float = GAIN) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = gain / math.sqrt(in_channels * kernel_size ** 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


def pixel_norm(x: Tensor) -> Tensor:
    """x / √(mean over channels of x² + ε)."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + _EPSILON)


def smooth(x: Tensor) -> Tensor:
    """[1 2 1] ⊗ [1 2 1] / 16 on each channel, borders repeated: what keeps a halved map from aliasing."""
    kernel = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype) / 4
    kernel = torch.outer(kernel, kernel).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])


class AdaIN(nn.Module):
    """y = (1 + s)·(x − μ(x)) / σ(x) + b for each channel of each image; (s, b) is a linear function of the style."""

    def __init__(self, channels: int, style_size: int) -> None:
        super().__init__()
        self.style = EqualisedLinear(style_size, 2 * channels, gain=1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.style(style).float()[..., None, None].chunk(2, dim=1)
        variance, mean = torch.var_mean(x.float(), (2, 3), keepdim=True, correction=0)
        return ((1 + scale) * (x.float() - mean) * torch.rsqrt(variance + _EPSILON) + shift).to(x.dtype)


class StyledLayer(nn.Module):
    """Convolution, noise, LeakyReLU, AdaIN. The noise is one N(0, 1) map an image, times a learned strength for each
    channel, 0 at the start."""

    def __init__(self, in_channels: int | None, out_channels: int, style_size: int) -> None:
        super().__init__()
        self.convolution = nn.Identity() if in_channels is None else EqualisedConv2d(in_channels, out_channels, 3)
        self.noise_strength = nn.Parameter(torch.zeros(out_channels, 1, 1))
        self.adain = AdaIN(out_channels, style_size)

    def forward(self, x: Tensor, style: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = self.convolution(x)
        noise = torch.randn(len(x), 1, *x.shape[2:], generator=generator, device=x.device)
        return self.adain(F.leaky_relu(x + self.noise_strength * noise, LEAK), style)


def append_deviation(x: Tensor, group_size: int = 4) -> Tensor:
    """Minibatch standard deviation: one more channel that says how much the images of a group differ, the mean over
    channels and pixels of the standard deviation over the group. A generator that draws one mask only is found out.

    [N, C, H, W] → [N, C + 1, H, W]; the groups are of the largest size up to `group_size` that divides N.
    """
    num_images = len(x)
    size = max(divisor for divisor in range(1, min(group_size, num_images) + 1) if num_images % divisor == 0)
    groups = x.float().unflatten(0, (size, num_images // size))
    deviation = (groups.var(0, correction=0) + _EPSILON).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.to(x.dtype).repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)
