"""One slice as NumPy arrays, and random crops of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import affine_transform

P_ROTATION, MAX_ROTATION = 0.2, np.deg2rad(15)
P_SCALING, SCALING = 0.2, (0.8, 1.25)


@dataclass(frozen=True)
class SliceArrays:
    """One clean slice or crop of it.

    Attributes:
        image: [C, H, W] float32, network intensities; 0 outside the array, as nnU-Net pads.
        label: [H, W] int16, 0 where the annotation is −1 or ignored.
        layout: [H, W] int16 anatomy, 0 = none.
        cluster: [H, W] int16 cached cluster ids, 0 = none.
        valid: [H, W] bool, False where the annotation is −1 (but for holes) or ignored, and outside the array.
    """

    image: np.ndarray
    label: np.ndarray
    layout: np.ndarray
    cluster: np.ndarray
    valid: np.ndarray

    def map(self, function: Callable[[np.ndarray, int], np.ndarray]) -> SliceArrays:
        """`function(array [n, H, W], order of interpolation)` for each of the five."""
        maps = (function(array[None], 0)[0] for array in (self.label, self.layout, self.cluster, self.valid))
        return SliceArrays(function(self.image, 1), *maps)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.image, self.label, self.layout, self.cluster, self.valid))


# ----------------------------------------------------------------------------------------------------------------------
# Random crops


def random_crop(whole: SliceArrays, patch_size: tuple[int, int], focus: tuple[int, int] | None,
                 rng: np.random.Generator) -> SliceArrays:
    """A crop of `patch_size` that holds the pixel `focus`, flipped, rotated and scaled at random."""
    corner = [_random_start(length, size, None if focus is None else focus[axis], rng)
              for axis, (length, size) in enumerate(zip(whole.label.shape, patch_size, strict=True))]
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION) if rng.random() < P_ROTATION else 0.0
    scale = np.exp(rng.uniform(*np.log(SCALING))) if rng.random() < P_SCALING else 1.0
    flipped = [axis - 2 for axis in (0, 1) if rng.random() < 0.5]
    if angle or scale != 1:
        cropped = whole.map(lambda array, order: _turn(array, corner, patch_size, angle, scale, order))
    else:
        cropped = whole.map(lambda array, order: _cut(array, corner, patch_size))
    return cropped.map(lambda array, order: np.flip(array, flipped))


def random_position(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """(y, x) of one of the pixels of a mask."""
    chosen = rng.choice(np.flatnonzero(mask))
    return divmod(int(chosen), mask.shape[1])


def _random_start(length: int, size: int, focus: int | None, rng: np.random.Generator) -> int:
    """Where a crop of `size` begins on an axis of `length`; a smaller axis is centred (negative start)."""
    if length <= size:
        return -((size - length) // 2)
    lowest, highest = 0, length - size
    if focus is not None:
        lowest, highest = max(lowest, focus - size + 1), min(highest, focus)
    return int(rng.integers(lowest, highest + 1))


def _cut(array: np.ndarray, corner: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """[n, H, W] → [n, *size] beginning at `corner`, zeros outside."""
    cropped = np.zeros((len(array), *size), array.dtype)
    source = [slice(max(start, 0), start + length) for start, length in zip(corner, size, strict=True)]
    found = array[:, source[0], source[1]]
    top, left = (max(-start, 0) for start in corner)
    cropped[:, top:top + found.shape[1], left:left + found.shape[2]] = found
    return cropped


def _turn(array: np.ndarray, corner: Sequence[int], size: tuple[int, int], angle: float, scale: float,
          order: int) -> np.ndarray:
    """`_cut` after turning by `angle` (radians) and magnifying by `scale` about the crop's centre."""
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.asarray(size) - 1) / 2
    offset = np.asarray(corner) + centre - matrix @ centre
    numbers = array.astype(np.uint8) if array.dtype == bool else array
    return np.stack([affine_transform(channel, matrix, offset, output_shape=size, order=order, cval=0)
                     for channel in numbers]).astype(array.dtype)
