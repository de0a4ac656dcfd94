"""nnU-Net's intensity augmentation for a whole batch at once, on the device where the batch is.

nnU-Net augments in its loader workers, sample by sample, on the CPU. Synthetic images are drawn inside the training
step, so they would miss it, and a network could tell them from scans by their cleanliness. Transforms, their order and
their parameters are those of `nnUNetTrainer.get_training_transforms` (nnU-Net 2.8.1); a test reads them off there.

Every transform works on rows: one row [*sp] is one channel of one image, as nnU-Net treats channels independently.
All parameters are drawn first (`draw_steps`), then applied to the rows they fall on. No convolution and no matrix
product is used: inside a trainer's autocast region those would silently run in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-7          # keeps constant images finite

# ----------------------------------------------------------------------------------------------------------------------
# The transforms: x [R, *sp] float32 and one strength a row -> [R, *sp]. Strengths lie on the CPU, so that sizes and
# indices are known without waiting for the GPU.


def gaussian_noise(x: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """x + std · N(0, 1). `std` [R]; `generator` on the device of `x`. (nnU-Net calls this std "noise_variance".)"""
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return noise.mul_(_per_row(std, x)).add_(x)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian smoothing with reflected borders; `sigma` [R, axes] in voxels."""
    radius = (3 * sigma + 0.25).floor()                                     # nnU-Net's truncation
    reach = int(radius.max())
    offset = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offset / sigma[..., None]) ** 2) * (offset.abs() <= radius[..., None])
    kernel = kernel / kernel.sum(-1, keepdim=True)                          # [R, axes, taps]
    for axis in range(1, x.ndim):
        size = x.shape[axis]
        before, after = (_beside(_reflected(torch.arange(*ends), size), x)
                         for ends in ((-reach, 0), (size, size + reach)))
        padded = torch.cat([x.index_select(axis, before), x, x.index_select(axis, after)], axis)
        weights = _beside(kernel[:, axis - 1], x)
        x = padded.narrow(axis, 0, size) * _per_row(weights[:, 0], x)
        for tap in range(1, len(offset)):
            x.addcmul_(padded.narrow(axis, tap, size), _per_row(weights[:, tap], x))
    return x


def brightness(x: Tensor, multiplier: Tensor) -> Tensor:
    """x · multiplier; `multiplier` [R]."""
    return x * _per_row(multiplier, x)


def contrast(x: Tensor, multiplier: Tensor) -> Tensor:
    """Distances from the row's mean times `multiplier` [R], clamped to the row's former range."""
    mean = x.mean(_spatial(x), keepdim=True)
    lowest, highest = _range(x)
    return (x - mean).mul_(_per_row(multiplier, x)).add_(mean).clamp_(lowest, highest)


def low_resolution(x: Tensor, scale: Tensor) -> Tensor:
    """Sampled down to round(scale · size) by nearest neighbour and back linearly; `scale` [R, axes], 1 = as it was."""
    size, mode = list(x.shape[1:]), {1: "linear", 2: "bilinear", 3: "trilinear"}[x.ndim - 1]
    y = torch.empty_like(x)
    for row, result, factors in zip(x, y, scale.tolist(), strict=True):     # every row has a coarse grid of its own
        coarse = [round(n * factor) for n, factor in zip(size, factors, strict=True)]
        kept = F.interpolate(row[None, None], coarse, mode="nearest-exact")
        result.copy_(F.interpolate(kept, size, mode=mode)[0, 0])
    return y


def gamma(x: Tensor, exponent: Tensor) -> Tensor:
    """The row's range mapped to [0, 1], raised to `exponent` [R], mapped back, with its mean and std retained."""
    lowest, highest = _range(x)
    # Not mapped back by itself: mean and std, which are those of `x`, do that.
    y = (x - lowest).div_((highest - lowest).clamp(min=EPSILON)).pow_(_per_row(exponent, x))
    (mean, std), (y_mean, y_std) = _mean_and_std(x), _mean_and_std(y)
    return y.sub_(y_mean).mul_(std / y_std.clamp(min=EPSILON)).add_(mean)


def gamma_inverted(x: Tensor, exponent: Tensor) -> Tensor:
    """`gamma` of the negative image."""
    return gamma(-x, exponent).neg_()


# ----------------------------------------------------------------------------------------------------------------------
# Draw first, apply second


@dataclass(frozen=True)
class Step:
    """One transform of a batch: `transform(x[chosen], strength[chosen])`.

    Attributes:
        transform: one of the functions above.
        chosen: [N · C] bool, the rows it falls on.
        strength: [N · C] or [N · C, axes] float32, also for the rows that were not chosen, so that what one image
            gets does not depend on the luck of the others.
    """

    transform: Callable[..., Tensor]
    chosen: Tensor
    strength: Tensor


def draw_steps(num_images: int, num_channels: int, num_axes: int, generator: torch.Generator,
               ignore_axes: Sequence[int] | None = None) -> list[Step]:
    """nnU-Net's intensity transforms in nnU-Net's order, with parameters for each channel of each image.

    Args:
        num_axes: spatial axes, 2 or 3.
        generator: drawn from on its own device; the results lie on the CPU (a CUDA generator makes the CPU wait).
        ignore_axes: spatial axes that keep their resolution: `(0,)` where nnU-Net augments a 3D patch as 2D slices.
    """
    N, C = num_images, num_channels

    def unit(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device).cpu()

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * unit(*shape)

    def around_one(low: float, high: float) -> Tensor:          # weaker and stronger are equally likely
        return torch.where(unit(N, C) < 0.5, uniform(low, 1, N, C), uniform(1, high, N, C))

    def step(transform: Callable[..., Tensor], p: float, strength: Tensor, p_per_channel: float = 1) -> Step:
        chosen = (unit(N, 1) < p) & (unit(N, C) < p_per_channel)
        return Step(transform, chosen.flatten(), strength.flatten(0, 1))

    def scale() -> Tensor:                                      # one for all axes
        scale = uniform(0.5, 1, N, C, 1).repeat(1, 1, num_axes)
        scale[..., list(ignore_axes or ())] = 1
        return scale

    return [
        step(gaussian_noise, 0.1, uniform(0, 0.1, N, 1).expand(N, C)),                      # one std for all channels
        step(gaussian_blur, 0.2, uniform(0.5, 1, N, C, num_axes), p_per_channel=0.5),
        step(brightness, 0.15, around_one(0.75, 1.25)),
        step(contrast, 0.15, around_one(0.75, 1.25)),
        step(low_resolution, 0.25, scale(), p_per_channel=0.5),
        step(gamma_inverted, 0.1, around_one(0.7, 1.5)),
        step(gamma, 0.3, around_one(0.7, 1.5)),
    ]


@torch.no_grad()
def augment_intensity(images: Tensor, generator: torch.Generator, ignore_axes: Sequence[int] | None = None) -> Tensor:
    """nnU-Net's random noise, blur, brightness, contrast, low resolution and gamma, drawn anew for each image.

    Each image is changed by its own content and its own draws alone. Where nnU-Net normalises within a mask it sets
    the outside to 0 *after* augmentation; a caller with such data does the same with the result.

    Args:
        images: [N, C, H, W] or [N, C, D, H, W], normalised as for the network, any device; left as it is.
        generator: the only source of randomness, on any device. On another device than `images` it seeds a generator
            there for the dense noise; a CPU generator spares the GPU all synchronisation.
        ignore_axes: spatial axes that keep their resolution: `(0,)` for nnU-Net's 3D patches augmented as 2D slices.

    Returns:
        float32, contiguous, of the shape and on the device of `images`, in new storage and without gradient.

    Raises:
        ValueError: `images` is no batch of 2D or 3D images.
    """
    if images.ndim not in (4, 5):
        raise ValueError(f"expected images [N, C, H, W] or [N, C, D, H, W], got shape {list(images.shape)}")
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    rows = images.flatten(0, 1)                                 # [N · C, *sp], a view
    N, C = images.shape[:2]
    for step in draw_steps(N, C, images.ndim - 2, generator, ignore_axes):
        index = step.chosen.nonzero().flatten()
        if len(index) == 0:
            continue
        transform = step.transform
        if transform is gaussian_noise:
            transform = partial(gaussian_noise, generator=_on_device(generator, rows.device))
        where = _beside(index, rows)
        rows.index_copy_(0, where, transform(rows.index_select(0, where), step.strength[index]))
    return images


def _on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """`generator` itself where it lives on `device`, else a new one there, seeded from it."""
    if generator.device == device:
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """`values` on the device of `x`; CUDA takes a copy of them at once and the CPU goes on."""
    return values.to(x.device, non_blocking=x.is_cuda)


def _per_row(values: Tensor, x: Tensor) -> Tensor:
    """[R] -> [R, 1, …] on the device of `x`."""
    return _beside(values, x).view(-1, *[1] * (x.ndim - 1))


def _mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row; the biased std, as only ratios of two matter. (torch.std is ten times slower on the CPU.)"""
    mean = x.mean(_spatial(x), keepdim=True)
    return mean, (x - mean).square().mean(_spatial(x), keepdim=True).sqrt()


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amin(_spatial(x), keepdim=True), x.amax(_spatial(x), keepdim=True)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices beyond an axis mirrored at its first and last voxel, as often as it takes."""
    period = max(2 * (size - 1), 1)
    index = index.abs() % period
    return torch.minimum(index, period - index).clamp(max=size - 1)
