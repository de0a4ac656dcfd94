"""Superpixels (SLIC in torch, batched, the same code on CPU and GPU) and the unsupervised masks made from them."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synth.errors import UserError

Method = Literal["slic", "slic_skimage", "felzenszwalb"]
METHODS: tuple[Method, ...] = ("slic", "slic_skimage", "felzenszwalb")
WHITE = 255.0       # unsupervised masks hold gray values from 0 to this (UM2I, Algorithm 1)

# Which cell of the grid, relative to its own, a pixel may go to: (rows down, columns right).
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
_FAR = 1e6          # squared distance of a centre that does not exist


# ----------------------------------------------------------------------------------------------------------------------
# SLIC


def scaled_num_segments(height: int, width: int, per_512: int = 512) -> int:
    """Superpixels for an image of this size, when one of 512 × 512 has `per_512`: of one area at any size, at least 1.

    UM2I has 512 on a montage of four slices, which is `per_512=128`; 512 keep smaller lesions.
    """
    return max(1, round(per_512 * height * width / 512 ** 2))


def grid_shape(height: int, width: int, num_segments: int) -> tuple[int, int]:
    """Rows and columns of the grid of about `num_segments` nearly square cells that SLIC starts from.

    Raises:
        UserError: fewer than one segment, or more than pixels.
    """
    if not 1 <= num_segments <= height * width:
        raise UserError(f"{num_segments} superpixels for an image of {height} × {width}: choose from 1 to "
                        f"{height * width}")
    rows = min(max(1, round(math.sqrt(num_segments * height / width))), height, num_segments)
    columns = min(max(1, round(num_segments / rows)), width)
    # Cells are whole pixels, so the last ones may be left without any.
    return math.ceil(height / math.ceil(height / rows)), math.ceil(width / math.ceil(width / columns))


@torch.no_grad()
def slic(image: Tensor, num_segments: int, compactness: float = 0.1, num_iterations: int = 10,
         valid: Tensor | None = None) -> Tensor:
    """SLIC superpixels (Achanta et al., IEEE TPAMI 34(11):2274, 2012), without enforced connectivity.

    Args:
        image: [N, C, H, W] float in [0, 1]; distances in colour are divided by C.
        num_segments: about how many; the grid is the same for every image of the batch.
        valid: [N, H, W] bool; other pixels get an id, too, but pull at no centre.

    Returns:
        [N, H, W] int64, ids 0 … K − 1 of the K = rows × columns cells of `grid_shape`. Not every id need occur.

    Raises:
        UserError: see `grid_shape`.
    """
    num_images, num_channels, height, width = image.shape
    rows, columns = grid_shape(height, width, num_segments)
    cell_height, cell_width = math.ceil(height / rows), math.ceil(width / columns)
    below, right = rows * cell_height - height, columns * cell_width - width
    inside = torch.ones_like(image[:, 0], dtype=torch.bool) if valid is None else valid
    inside = F.pad(inside, (0, right, 0, below), value=False)
    padded = F.pad(image.float(), (0, right, 0, below))

    def cells(pixels: Tensor) -> Tensor:
        split = pixels.reshape(num_images, -1, rows, cell_height, columns, cell_width)
        return split.permute(1, 3, 5, 0, 2, 4).contiguous()

    scale = compactness / math.sqrt(cell_height * cell_width)
    y = ((torch.arange(cell_height, device=image.device) - (cell_height - 1) / 2) * scale)[:, None, None, None, None]
    x = ((torch.arange(cell_width, device=image.device) - (cell_width - 1) / 2) * scale)[None, :, None, None, None]
    colour = cells(padded) / math.sqrt(num_channels)
    weight = cells(inside).float()[0]
    features = [*colour, y, x]
    count = weight.sum((0, 1))
    centres = torch.stack([(weight * feature).sum((0, 1)) / count.clamp_min(1) for feature in features])
    shift = torch.tensor(NEIGHBOURS, device=image.device) * torch.tensor([cell_height, cell_width],
                                                                          device=image.device) * scale
    for iteration in range(num_iterations):
        around = F.pad(centres, (1, 1, 1, 1))
        exists = F.pad(torch.ones_like(centres[0]), (1, 1, 1, 1))
        best = torch.full_like(weight, torch.inf)
        label = torch.zeros_like(weight)
        for k, (dy, dx) in enumerate(NEIGHBOURS):
            view = (..., slice(1 + dy, 1 + dy + rows), slice(1 + dx, 1 + dx + columns))
            centre = around[view]
            distance = (y - centre[-2] - shift[k, 0]) ** 2 + (x - centre[-1] - shift[k, 1]) ** 2
            distance = distance + (1 - exists[view]) * _FAR
            for channel in range(num_channels):
                distance = distance + (colour[channel] - centre[channel]) ** 2
            closer = distance < best
            label = torch.where(closer, k, label)
            best = torch.minimum(distance, best)
        if iteration == num_iterations - 1:
            break
        totals = F.pad(torch.zeros_like(torch.cat([centres[:1], centres])), (1, 1, 1, 1))
        for k, (dy, dx) in enumerate(NEIGHBOURS):
            view = (..., slice(1 + dy, 1 + dy + rows), slice(1 + dx, 1 + dx + columns))
            mine = weight * (label == k)
            sums = [mine.sum((0, 1))]
            for index, feature in enumerate(features):
                offset = 0 if index < num_channels else shift[k, index - num_channels]
                sums.append((mine * (feature - offset)).sum((0, 1)))
            totals[view] += torch.stack(sums)
        count, total = totals[:1, ..., 1:-1, 1:-1], totals[1:, ..., 1:-1, 1:-1]
        centres = torch.where(count > 0, total / count.clamp_min(1), centres)

    home = torch.arange(rows * columns, device=image.device).reshape(rows, columns)
    label = label.long()
    ids = home + (label // 3 - 1) * columns + label % 3 - 1
    return ids.permute(2, 3, 0, 4, 1).reshape(num_images, rows * cell_height, -1)[:, :height, :width].contiguous()


# ----------------------------------------------------------------------------------------------------------------------
# Means and unsupervised masks


def segment_means(image: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """Mean of each channel over each segment; 0 for a segment without pixels.

    Args:
        image: [N, C, H, W] float.
        segments: [N, H, W] int64 in [0, num_segments).

    Returns:
        [N, C, num_segments] float32, accumulated in float64.
    """
    num_images, num_channels = image.shape[:2]
    index = segments.reshape(num_images, 1, -1)
    total = image.new_zeros((num_images, num_channels, num_segments), dtype=torch.float64)
    total.scatter_add_(2, index.expand(-1, num_channels, -1), image.flatten(2).double())
    count = torch.zeros_like(total[:, :1])
    count.scatter_add_(2, index, torch.ones_like(index, dtype=torch.float64))
    return (total / count.clamp_min(1)).float()


def paint(values: Tensor, segments: Tensor) -> Tensor:
    """[N, C, K] values of segments → [N, C, H, W]: each pixel gets its segment's."""
    index = segments.flatten(1)[:, None].expand(-1, values.shape[1], -1)
    return values.gather(2, index).unflatten(2, segments.shape[1:])


def quantise(mean: Tensor, step: float) -> Tensor:
    """int(mean / t) · t of UM2I's Algorithm 1, for gray values from 0 to 255; at most floor(255 / t) + 1 values.

    Raises:
        UserError: unless 0 < t ≤ 255.
    """
    if not 0 < step <= WHITE:
        raise UserError(f"step t = {step:g} between gray values: choose more than 0 and at most 255")
    # A mean that is a multiple of t must not fall to the level below by rounding.
    tolerance = 1e-3 * min(step, 1.0)
    return torch.floor((mean + tolerance).clamp(0, WHITE) / step) * step


def unsupervised_mask(image: Tensor, num_segments: int = 512, step: float = 50, compactness: float = 0.1,
                      num_iterations: int = 10, segments: Tensor | None = None) -> Tensor:
    """UM2I, Algorithm 1: the mean of each superpixel, quantised.

    Args:
        image: [N, C, H, W] float in [0, 1].
        num_segments: M.
        step: t, a gap between gray values; 0 = no quantisation (t = 0 of Table V).
        segments: [N, H, W] int64 to use instead of SLIC.

    Returns:
        [N, C, H, W] float32 in [0, 255].

    Raises:
        UserError: t outside [0, 255]; see `slic`; segments of another shape than the image.
    """
    if segments is None:
        rows, columns = grid_shape(*image.shape[2:], num_segments)
        segments = slic(image, num_segments, compactness, num_iterations)
        num_ids = rows * columns
    else:
        num_ids = int(segments.max()) + 1
    means = segment_means(image.float() * WHITE, segments, num_ids)
    return paint(means if step == 0 else quantise(means, step), segments)


# ----------------------------------------------------------------------------------------------------------------------
# Other superpixels, offline, and how good any are


def segment(image: Tensor, method: Method = "slic", num_segments: int = 512, compactness: float = 0.1,
            num_iterations: int = 10, scale: float = 32, sigma: float = 0.5, min_size: int = 64) -> Tensor:
    """Superpixels by any method, [N, H, W] int64; those of scikit-image are computed one image after another.

    Args:
        image: [N, C, H, W] float in [0, 1].
        num_segments, compactness, num_iterations: of both SLICs.
        scale, sigma, min_size: of Felzenszwalb and Huttenlocher's method, which chooses the number itself; the defaults
            are CS2's.
    """
    if method == "slic":
        return slic(image, num_segments, compactness, num_iterations)
    if method not in METHODS:
        raise UserError(f"unknown superpixels {method!r}: choose one of {', '.join(METHODS)}")
    from skimage import segmentation
    found = []
    for one in image.float().cpu().numpy():
        if method == "slic_skimage":
            ids = segmentation.slic(one, num_segments, compactness, num_iterations, channel_axis=0, start_label=0)
        else:
            ids = segmentation.felzenszwalb(one, scale, sigma, min_size, channel_axis=0)
        found.append(torch.from_numpy(ids.astype(np.int64)))
    return torch.stack(found).to(image.device)


def under_segmentation_error(segments: Tensor, reference: Tensor) -> Tensor:
    """[N] share of pixels that leak over the reference's borders (Neubert and Protzel 2012)."""
    num_segments, num_regions = int(segments.max()) + 1, int(reference.max()) + 1
    pair = (segments * num_regions + reference).flatten(1)
    overlap = torch.zeros(len(pair), num_segments * num_regions, device=pair.device)
    overlap.scatter_add_(1, pair, torch.ones_like(pair, dtype=overlap.dtype))
    overlap = overlap.unflatten(1, (num_segments, num_regions))
    leaking = torch.minimum(overlap, overlap.sum(2, keepdim=True) - overlap)
    return leaking.sum((1, 2)) / pair.shape[1]
