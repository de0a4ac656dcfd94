"""What an image shows, whatever its file is called: equal voxels have equal hashes, near-copies correlate.

A scan of the pool that is also a labelled or a test case leaks, and its name, type and compression may all have
changed, so voxels are compared, as nnU-Net reads them. A copy that was mirrored, windowed or touched up has another
hash. It is told by the correlation of the fine structure of both: the image is clipped to the bulk of its values and
averaged to some thousand cells, and from each cell the mean of its neighbourhood is taken away. Without that, any two
chests, and any two neighbouring slices, correlate.

Measured on real images, the best correlation over all mirrorings:

    different images                                                                           highest
        volumes of different patients (COVID-19-CT-Seg, 20 CTs, 189 pairs)                       0.574
        neighbouring slices as cases of their own (the same CTs, 1,525 slices)                   0.993
        the same with a padding of -3024 HU around the circle of reconstruction                  0.992
        neighbouring slices as pictures (COVID-SemiSeg, 1,698)                                   0.973
        end-diastole and end-systole of one heart (ACDC, 200 MR volumes)                         0.994
        two reconstructions of one scan (COVID-19-CT-Seg, radiopaedia_10_85902_1 and 3)          0.998, rightly named
    copies of these images                                                                     lowest, median
        mirrored, or rounded to 8 bit                                                            0.999, 1.000
        every tenthousandth voxel set to the highest value: volumes                              1.000, 1.000
                                                            slices of 128² and larger            0.980, 0.999
        clipped to the 1st … 99th percentile, CTs to -1350 … 150 HU                              0.954, 1.000
        gamma 0.7 or 1.5                                                                         0.973, 0.993
        noise of 1 % of the range                                                                0.988, 0.997
        the same noise over padding, and the soft-tissue window (-160 … 140 HU)                  0.4 to 0.9: not told
"""

from __future__ import annotations

import hashlib
import itertools
import math
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter

NUM_CELLS, MOST_CELLS = 8192, 64        # of an image, and along one of its axes
CLIPPED_SHARE = 0.02                    # of the values at either end
NUM_SAMPLED = 500_000                   # voxels that decide where to clip
NEARLY_EQUAL = 0.995                    # correlation, see above


@dataclass(frozen=True)
class Content:
    """What one image shows.

    Attributes:
        voxels: SHA-256 of shape and values.
        shape: of the array [C, z, y, x].
        structure: of the first channel, see `fine_structure`; None for an image of one value, which shows nothing: that
            two slices are black makes neither a copy of the other.
    """

    voxels: str
    shape: tuple[int, ...]
    structure: np.ndarray | None

    @classmethod
    def of(cls, image: np.ndarray) -> Content:
        """Of an array [C, z, y, x] of finite numbers, of any type."""
        structure = fine_structure(image[0]) if image.min() < image.max() else None
        return cls(voxels_sha256(image), image.shape, structure)

    def to_json(self) -> dict[str, Any]:
        cells = None if self.structure is None else b64encode(self.structure.tobytes()).decode()
        return {"voxels": self.voxels, "shape": list(self.shape), "structure": cells}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Content | None:
        """What `to_json` wrote; None if it is nothing of the kind."""
        try:
            shape, structure = tuple(map(int, stored["shape"])), None
            if stored["structure"] is not None:
                structure = np.frombuffer(b64decode(stored["structure"]), np.float16).reshape(cells_along(shape[1:]))
            return cls(str(stored["voxels"]), shape, structure)
        except (KeyError, TypeError, ValueError, StopIteration):
            return None


def voxels_sha256(image: np.ndarray) -> str:
    """Hash of shape and values as float32, which is how nnU-Net reads all images."""
    values = np.ascontiguousarray(image, "<f4") + np.float32(0)             # -0 becomes 0
    digest = hashlib.sha256(str(values.shape).encode())
    digest.update(values)
    return digest.hexdigest()


def fine_structure(image: np.ndarray) -> np.ndarray:
    """[z, y, x] → the means of its cells [z', y', x'] without the mean of the 3 × 3 × 3 cells around each, brought to
    mean 0 and norm 1, float16. Mirroring the image mirrors it."""
    cells = _without_outliers(image)
    for axis, (length, number) in enumerate(zip(image.shape, cells_along(image.shape), strict=True)):
        cells = np.moveaxis(np.tensordot(cell_weights(length, number), cells, (1, axis)), 0, axis)
    structure = cells - uniform_filter(cells, 3, mode="nearest")
    structure -= structure.mean()
    return (structure / max(float(np.linalg.norm(structure)), 1e-30)).astype(np.float16)


def _without_outliers(image: np.ndarray) -> np.ndarray:
    """Clipped to the bulk of the values that lie between the lowest and the highest: padding, metal and burnt-in text
    would outweigh all else."""
    image = image.astype(np.float32, copy=False)
    sample = image.ravel()[::max(1, image.size // NUM_SAMPLED)]
    between = sample[(sample > image.min()) & (sample < image.max())]
    if between.size == 0:           # of two values
        return image
    return np.clip(image, *np.quantile(between, [CLIPPED_SHARE, 1 - CLIPPED_SHARE]))


def cells_along(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many cells an image has along its axes: the same number along all that have as many voxels."""
    most = next(most for most in range(MOST_CELLS, 0, -1)
                if math.prod(min(length, most) for length in shape) <= NUM_CELLS)
    return tuple(min(length, most) for length in shape)


def cell_weights(length: int, number: int) -> np.ndarray:
    """[number, length] float32: the share of each voxel in the mean of each cell."""
    edges, voxels = np.linspace(0, length, number + 1), np.arange(length)
    overlap = np.minimum(edges[1:, None], voxels + 1) - np.maximum(edges[:-1, None], voxels)
    return (np.clip(overlap, 0, None) * number / length).astype(np.float32)


def mirrorings(structure: np.ndarray) -> Iterator[np.ndarray]:
    """An image mirrored along every choice of its axes, itself first."""
    axes = [axis for axis, length in enumerate(structure.shape) if length > 1]
    for number in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, number):
            yield np.flip(structure, chosen)


def equal_contents(contents: Mapping[str, Content]) -> list[list[str]]:
    """The names of images with equal voxels, in groups of two or more; black images are left out."""
    groups = defaultdict(list)
    for name, content in contents.items():
        if content.structure is not None:
            groups[content.voxels].append(name)
    return [names for names in groups.values() if len(names) > 1]


def near_copies(contents: Mapping[str, Content], others: Mapping[str, Content]) -> Iterator[tuple[str, str, float]]:
    """(name, the most similar of the others, correlation) of each image that is nearly a copy of one of `others`.

    Images of other shapes are compared too where they have as many cells: a copy may have been resampled. Images with
    equal voxels are not named.
    """
    by_shape = defaultdict(list)
    for name, other in others.items():
        if other.structure is not None:
            by_shape[other.structure.shape].append(name)
    stacks = {shape: np.stack([others[name].structure.ravel() for name in names]).astype(np.float32)
              for shape, names in by_shape.items()}
    for name, content in contents.items():
        if content.structure is None or content.structure.shape not in stacks:
            continue
        mirrored = np.stack([view.ravel() for view in mirrorings(content.structure)]).astype(np.float32)
        correlations = (mirrored @ stacks[content.structure.shape].T).max(axis=0)
        best = int(correlations.argmax())
        other = by_shape[content.structure.shape][best]
        if correlations[best] >= NEARLY_EQUAL and others[other].voxels != content.voxels:
            yield name, other, min(float(correlations[best]), 1.0)
