"""Superpixels (SLIC in torch, batched, the same code on CPU and GPU) and the unsupervised masks made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synth.errors import UserError

Method = Literal["slic", "slic_skimage", "felzenszwalb"]
METHODS: tuple[Method, ...] = ("slic", "slic_skimage", "felzenszwalb")
WHITE = 255.0       # unsupervised masks hold gray values from 0 to this (UM2I, Algorithm 1)

# Which cell of the grid a pixel may go to, relative to its own: (rows down, columns right).
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
# Centres are updated from every `stride`-th pixel in both directions, other ones each time (as S-SLIC does in hardware:
# Hong et al., DAC 2016). The stride leaves at least 5 × 5 pixels of a cell and is 4 at most.
MIN_SAMPLES_ACROSS, MAX_STRIDE = 5, 4
# Colours are rounded to these steps (1/16 of a gray value of 255). Their sums over cells of up to 64 × 64 pixels are
# then exact in float32, so that the result depends neither on the order of summation nor on the rest of the batch.
COLOUR_STEP = 2.0 ** -12
Subset = tuple[slice, slice]    # of the pixels of a cell
_WHOLE: Subset = (slice(None), slice(None))
_FAR = 1e3                      # features of the centres that would lie outside the grid
_CPU_PIXELS = 2 ** 18           # pixels at a time on the CPU, whose cache then holds what is computed from them


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
        raise UserError(f"{num_segments} superpixels in an image of {height} × {width}: choose 1 to {height * width}")
    rows = min(max(1, round(math.sqrt(num_segments * height / width))), height, num_segments)
    columns = min(max(1, round(num_segments / rows)), width)
    # Cells are of whole pixels, so fewer of them may do.
    return math.ceil(height / math.ceil(height / rows)), math.ceil(width / math.ceil(width / columns))


def slic(image: Tensor, num_segments: int, compactness: float = 0.1, num_iterations: int = 10,
         valid: Tensor | None = None) -> Tensor:
    """SLIC superpixels (Achanta et al., IEEE TPAMI 34(11):2274, 2012): k-means in colour and position.

    The squared distance is Σ_c (v_c − μ_c)² / C + (compactness / S)² ‖p − p_μ‖², with S the side of a cell of the grid.
    A pixel chooses among the centres of its own cell and the eight around it; connectivity is not enforced.

    Args:
        image: [N, C, H, W] float in [0, 1].
        num_segments: about how many; `grid_shape` makes it the same grid for every image of the batch.
        valid: [N, H, W] bool; other pixels get an id, too, but pull at no centre.

    Returns:
        [N, H, W] int64, ids 0 … K − 1 of the K = rows × columns cells of the grid. Not every id need occur.

    Raises:
        UserError: see `grid_shape`; compactness or number of iterations not positive; `valid` of another shape.
    """
    if not (compactness > 0 and num_iterations > 0):
        raise UserError(f"compactness {compactness:g} and {num_iterations} iterations: both must be more than 0")
    if valid is not None:
        _check_shape(valid, "valid", image)
    rows, columns = grid_shape(*image.shape[2:], num_segments)
    return _slic(image.detach(), rows, columns, float(compactness), num_iterations, valid)


# One operator for torch.compile, which would unroll the iterations into hundreds of kernels and take minutes for them.
@torch.library.custom_op("nnunet_synth::slic", mutates_args=(), schema="(Tensor image, int rows, int columns, "
                         "float compactness, int num_iterations, Tensor? valid) -> Tensor")
@torch.no_grad()
def _slic(image: Tensor, rows: int, columns: int, compactness: float, num_iterations: int,
          valid: Tensor | None) -> Tensor:
    num_images, _, height, width = image.shape
    on_cpu = image.device.type == "cpu"
    at_once = max(1, _CPU_PIXELS // (height * width) if on_cpu else num_images)
    ids = torch.empty_like(image[:, 0], dtype=torch.int64, memory_format=torch.contiguous_format)
    for part in (slice(start, start + at_once) for start in range(0, num_images, at_once)):
        cells = _Cells(len(image[part]), height, width, rows, columns)
        colour = cells.split(image[part].float())
        outside = cells.beyond(image.device) if valid is None else cells.excluded(valid[part])
        kmeans = _KMeans(cells, colour, outside, compactness)
        centres = kmeans.first_centres()
        for iteration in range(num_iterations - 1):
            centres = kmeans.update(centres, kmeans.subsets[iteration % len(kmeans.subsets)])
        ids[part] = cells.join(kmeans.assign(centres, kmeans.subsets if on_cpu else [_WHOLE]))
    return ids


@_slic.register_fake
def _(image: Tensor, rows: int, columns: int, compactness: float, num_iterations: int, valid: Tensor | None) -> Tensor:
    return image.new_empty((image.shape[0], *image.shape[2:]), dtype=torch.int64)


def _check_shape(pixels: Tensor, name: str, image: Tensor) -> None:
    if pixels.shape != image[:, 0].shape:
        raise UserError(f"{name} has shape {tuple(pixels.shape)}, the image {tuple(image.shape)}: it must have one "
                        "value for each pixel")


@dataclass(frozen=True)
class _Cells:
    """The grid: images cut into K cells of one size.

    Pixels are kept as [C, cell height, cell width, N · K] ("split"), what belongs to cells as [F, N · K]: the same
    pixel of all cells is one contiguous row, as long as the row of the cells' centres.
    """

    num_images: int
    height: int
    width: int
    rows: int
    columns: int

    @property
    def size(self) -> tuple[int, int]:
        return math.ceil(self.height / self.rows), math.ceil(self.width / self.columns)

    def split(self, pixels: Tensor, fill: float = 0.0) -> Tensor:
        """[N, C, H, W] → a new [C, cell height, cell width, N · K], filled up below and on the right."""
        height, width = self.size
        padded = F.pad(pixels, (0, self.columns * width - self.width, 0, self.rows * height - self.height), value=fill)
        parts = padded.reshape(self.num_images, -1, self.rows, height, self.columns, width)
        return parts.permute(1, 3, 5, 0, 2, 4).clone(memory_format=torch.contiguous_format).flatten(3)

    def beyond(self, device: torch.device) -> list[Tensor]:
        """`_FAR` where cells were filled up, else 0: [cell height, 1, N · K] below, [1, cell width, N · K] right."""
        y, x = (torch.arange(number * side, device=device).unflatten(0, (number, side)).T
                for number, side in zip((self.rows, self.columns), self.size, strict=True))
        below = (y >= self.height)[:, :, None].expand(-1, -1, self.columns).flatten(1)
        right = (x >= self.width)[:, None].expand(-1, self.rows, -1).flatten(1)
        return [(below * _FAR).repeat(1, self.num_images)[:, None], (right * _FAR).repeat(1, self.num_images)[None]]

    def excluded(self, valid: Tensor) -> list[Tensor]:
        """The same, and where [N, H, W] `valid` is not."""
        return [_FAR * self.split((~valid[:, None]).float(), fill=1.0)[0]]

    def join(self, ids: Tensor) -> Tensor:
        """[cell height, cell width, N · K] → [N, H, W]."""
        parts = ids.unflatten(2, (self.num_images, self.rows, self.columns)).permute(2, 3, 0, 4, 1)
        return parts.flatten(3).flatten(1, 2)[:, :self.height, :self.width]

    def around(self, values: Tensor, fill: float) -> Tensor:
        """[F, N · K] → [9, F, N · K]: of the neighbours of each cell, `fill` beyond the border."""
        padded = self._padded(values, fill)
        return torch.stack([self._window(padded, dy, dx) for dy, dx in NEIGHBOURS]).flatten(2)

    def collect(self, values: Tensor) -> Tensor:
        """[9, F, N · K], what each cell has for its neighbours → [F, N · K], the sum of what each cell is given."""
        padded = self._padded(values, 0.0)
        given = [self._window(padded[k], -dy, -dx) for k, (dy, dx) in enumerate(NEIGHBOURS)]
        return torch.stack(given).sum(0).flatten(1)

    def _padded(self, values: Tensor, fill: float) -> Tensor:
        return F.pad(values.unflatten(-1, (self.num_images, self.rows, self.columns)), (1, 1, 1, 1), value=fill)

    def _window(self, padded: Tensor, dy: int, dx: int) -> Tensor:
        return padded[..., 1 + dy:1 + dy + self.rows, 1 + dx:1 + dx + self.columns]


class _KMeans:
    """The two steps of SLIC.

    A centre is (y, x, colours): [2 + C, N · K], positions in pixels from the middle of the centre's cell.

    Args:
        colour: [C, cell height, cell width, N · K], is overwritten.
        outside: maps that broadcast to [cell height, cell width, N · K]; a pixel counts where all are 0.
    """

    def __init__(self, cells: _Cells, colour: Tensor, outside: list[Tensor], compactness: float) -> None:
        device = colour.device
        self.cells, self.outside = cells, [far.expand_as(colour[0]) for far in outside]
        self.colour = colour.div_(COLOUR_STEP).round_().mul_(COLOUR_STEP)
        self.y, self.x = (torch.arange(side, device=device) - (side - 1) / 2 for side in cells.size)
        self.position_weight = compactness ** 2 / math.prod(cells.size)
        # Of NEIGHBOURS, as arithmetic: a GPU would have to wait for a table to be copied.
        number = torch.arange(len(NEIGHBOURS), device=device, dtype=torch.float32)
        self.down, self.right = number.div(3, rounding_mode="floor") - 1, number % 3 - 1
        height, width = cells.size
        self.offsets = torch.stack([self.down * height, self.right * width], dim=1)[:, :, None]
        self.subsets = _subsets(*(min(max(1, side // MIN_SAMPLES_ACROSS), MAX_STRIDE) for side in cells.size))

    def first_centres(self) -> Tensor:
        """The mean of each cell's pixels; the middle of a cell without any."""
        outside = torch.zeros_like(self.colour[:1])
        for far in self.outside:
            outside += far
        totals = self._totals(outside.eq_(0), _WHOLE)[0]
        return totals[1:] / totals[0].clamp_min(1)

    def update(self, centres: Tensor, subset: Subset) -> Tensor:
        """The mean of those pixels of the subset that are nearest to each centre; one without any stays.

        A pixel at the same distance from two centres counts for both.
        """
        distance = self._distances(self._planes(centres), subset)
        nearest = distance.amin(0)
        for far in self.outside:                # no distance is as small as that
            nearest -= far[subset]
        totals = self._totals(distance.eq_(nearest), subset)
        totals[:, 1:3] -= totals[:, :1] * self.offsets          # positions from the middle of the centre's own cell
        totals = self.cells.collect(totals)
        return torch.where(totals[0] > 0, totals[1:] / totals[0].clamp_min(1), centres)

    def assign(self, centres: Tensor, subsets: list[Subset]) -> Tensor:
        """[cell height, cell width, N · K]: the nearest centre of each pixel, of equally near ones the first.

        Args:
            subsets: how to go through all pixels, one after the other; the more, the less memory.
        """
        rows, columns = self.cells.rows, self.cells.columns
        last = columns + 2
        rank = last - self.down * columns - self.right          # the largest for the first
        home = torch.arange(rows * columns, device=centres.device, dtype=torch.float32) + last
        home = home.repeat(self.cells.num_images)
        planes = self._planes(centres)
        ids = torch.empty_like(self.colour[0])
        for subset in subsets:
            distance = self._distances(planes, subset)
            first = distance.eq_(distance.amin(0)).mul_(rank[:, None, None, None]).amax(0)
            ids[subset] = home - first
        return ids

    def _planes(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distance to the centre μ around a cell, less that to the cell's middle, is linear in the features:

        ‖f − μ‖² − ‖f‖² = ‖μ‖² − 2 μ·f. Returns ‖μ‖² [9, N · K] and −2 μ [9, 2 + C, N · K], weighted.
        """
        around = self.cells.around(centres, _FAR)
        around[:, :2] += self.offsets
        weighted = torch.cat([around[:, :2] * self.position_weight, around[:, 2:] / len(self.colour)], dim=1)
        return (weighted * around).sum(1), -2 * weighted

    def _distances(self, planes: tuple[Tensor, Tensor], subset: Subset) -> Tensor:
        """[9, y, x, N · K]: see `_planes`."""
        constant, slopes = planes
        over_y = torch.addcmul(constant[:, None], slopes[:, 0, None], self.y[subset[0], None])
        over_x = slopes[:, 1, None] * self.x[subset[1], None]
        distance = over_y[:, :, None] + over_x[:, None]
        for channel, colour in enumerate(self.colour, start=2):
            distance.addcmul_(colour[subset], slopes[:, channel, None, None])
        return distance

    def _totals(self, belongs: Tensor, subset: Subset) -> Tensor:
        """[n, 1 + 2 + C, N · K]: number, Σ y, Σ x and Σ colours of n groups of pixels.

        Args:
            belongs: [n, y, x, N · K] 0 or 1, is overwritten.
        """
        in_rows, in_columns = belongs.sum(2), belongs.sum(1)
        totals = [in_rows.sum(1), in_rows.mul_(self.y[subset[0], None]).sum(1),
                  in_columns.mul_(self.x[subset[1], None]).sum(1)]
        for colour in self.colour[:-1]:
            totals.append((belongs * colour[subset]).sum((1, 2)))
        totals.append(belongs.mul_(self.colour[-1][subset]).sum((1, 2)))
        return torch.stack(totals, dim=1)


def _subsets(stride_y: int, stride_x: int) -> list[Subset]:
    """Every `stride`-th row and column of a cell, from each pair of starts once, so that successive ones lie apart."""
    starts = [(step % stride_y, (step // stride_y + step % stride_y) % stride_x) for step in range(stride_y * stride_x)]
    return [(slice(y, None, stride_y), slice(x, None, stride_x)) for y, x in starts]


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
    """int(mean / t) · t of UM2I's Algorithm 1, for gray values from 0 to 255; takes `num_levels(t)` values at most.

    Raises:
        UserError: unless 0 < t ≤ 255.
    """
    highest = num_levels(step) - 1
    # A mean that is a multiple of t must not fall to the level below by rounding.
    tolerance = 1e-3 * min(step, 1.0)
    return ((mean + tolerance) / step).floor().clamp(0, highest) * step


def num_levels(step: float) -> int:
    """floor(255 / t) + 1: how many values quantised gray may have. Raises UserError unless 0 < t ≤ 255."""
    if not 0 < step <= WHITE:
        raise UserError(f"step t = {step:g} between gray values: choose more than 0 and at most 255")
    return math.floor(WHITE / step) + 1


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
        _check_shape(segments, "segments", image)
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

    Raises:
        UserError: unknown method; see `slic`.
    """
    if method == "slic":
        return slic(image, num_segments, compactness, num_iterations)
    if method not in METHODS:
        raise UserError(f"unknown superpixels {method!r}: choose one of {', '.join(METHODS)}")
    if method == "slic_skimage":
        grid_shape(*image.shape[2:], num_segments)      # for its errors
    from skimage import segmentation
    found = []
    for one in image.float().cpu().numpy():
        if method == "slic_skimage":
            ids = segmentation.slic(one, num_segments, compactness, num_iterations, channel_axis=0, start_label=0,
                                    convert2lab=False)
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
