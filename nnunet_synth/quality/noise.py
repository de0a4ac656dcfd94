"""How much noise does an image carry? What two denoisers take out of it: non-local means, and BM3D's first stage.

UM2I's Table IV gives noise levels "using NLM and BM3D" without saying how; here the level is the standard deviation of
the difference between an image and its denoised self. Fine texture counts as noise too, and correlated noise counts
less than its strength: compare levels, do not take them for a scanner's.

The BM3D here is the hard-thresholding stage of K. Dabov et al., Image Denoising by Sparse 3-D Transform-Domain
Collaborative Filtering, IEEE TIP 16:2080, 2007, with a DCT and without the Kaiser window and the second (Wiener) stage.
The authors' own package may not be used commercially, so this one depends on none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from scipy.fft import dct
from scipy.ndimage import uniform_filter

BLOCK = 8               # pixels a side, BM3D's N₁
GROUP = 16              # blocks that are filtered together, N₂; a power of 2 for Haar
SEARCH = 9              # pixels in each direction where similar blocks are looked for (the authors' window is ± 19)
STEP = 4                # pixels between two reference blocks
THRESHOLD = 2.7         # σ, λ₃D
CHUNK = 4096            # reference blocks at a time: bounds the memory


def noise_level_nlm(image: np.ndarray) -> float:
    """Standard deviation of what non-local means removes from image [H, W] (Buades, Coll and Morel, CVPR 2005)."""
    from skimage.restoration import denoise_nl_means
    sigma = guess_sigma(image)
    if sigma == 0:
        return 0.0
    image = image.astype(np.float64)
    calm = denoise_nl_means(image, patch_size=7, patch_distance=9, h=0.8 * sigma, sigma=sigma, fast_mode=True)
    return float((image - calm).std())


def noise_level_bm3d(image: np.ndarray) -> float:
    """Standard deviation of what BM3D's first stage removes from image [H, W]; H and W ≥ 8."""
    return float((image - denoise_bm3d(image, guess_sigma(image))).std())


def guess_sigma(image: np.ndarray) -> float:
    """The deviation of white noise from the median size of the finest diagonal Haar details (Donoho and Johnstone,
    Biometrika 81:425, 1994), to tell the denoisers what to look for.

    Squares of four equal pixels are left out: where an intensity window cuts, there is nothing to estimate from.
    """
    even = image[:image.shape[0] // 2 * 2, :image.shape[1] // 2 * 2].astype(np.float64)
    corners = np.stack([even[::2, ::2], even[::2, 1::2], even[1::2, ::2], even[1::2, 1::2]])
    details = (corners[0] - corners[1] - corners[2] + corners[3]) / 2
    details = details[np.ptp(corners, axis=0) > 0]
    return float(np.median(np.abs(details)) / 0.6745) if len(details) else 0.0


# ----------------------------------------------------------------------------------------------------------------------
# BM3D, first stage


def denoise_bm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    """Image [H, W] float64 without noise of deviation `sigma`.

    Similar blocks are stacked, the stack is transformed (DCT in the plane, Haar across), small coefficients are set to
    0, and the blocks go back to their places, averaged with the weight 1 / number of coefficients kept.
    """
    if sigma == 0:
        return image.astype(np.float64)
    image = image.astype(np.float64)
    rows, columns = (_reference_positions(length) for length in image.shape)
    row, column = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    group_row, group_column = _similar_blocks(image, row, column)
    blocks = np.lib.stride_tricks.sliding_window_view(image, (BLOCK, BLOCK))
    total, weights = np.zeros(image.size), np.zeros(image.size)
    for part in _chunks(len(row)):
        stack, weight = _filter_stacks(blocks[group_row[part], group_column[part]], THRESHOLD * sigma)
        places = _pixels(group_row[part], group_column[part], image.shape[1])
        weight = np.broadcast_to(weight, stack.shape)
        total += np.bincount(places.ravel(), (weight * stack).ravel(), image.size)
        weights += np.bincount(places.ravel(), weight.ravel(), image.size)
    return (total / weights).reshape(image.shape)


def _reference_positions(length: int) -> np.ndarray:
    """Every STEP-th start of a block, and the last one, so that every pixel is covered."""
    last = length - BLOCK
    return np.unique(np.append(np.arange(0, last + 1, STEP), last))


def _similar_blocks(image: np.ndarray, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns [R, GROUP] of the blocks nearest to each reference block, itself first: where a window cut, many
    are equal to it, and its own pixels need a value."""
    height, width = image.shape
    distances, shifts = [], []
    for down in range(-SEARCH, SEARCH + 1):
        for right in range(-SEARCH, SEARCH + 1):
            there_row, there_column = row + down, column + right
            inside = (there_row >= 0) & (there_row <= height - BLOCK) & (there_column >= 0) \
                & (there_column <= width - BLOCK)
            # Rolled-in pixels reach only blocks that lie outside.
            difference = (image - np.roll(image, (-down, -right), (0, 1))) ** 2
            means = uniform_filter(difference, BLOCK, mode="nearest", origin=-(BLOCK // 2))
            distances.append(np.where(inside, means[row, column], np.inf) if down or right else np.full(len(row), -1.0))
            shifts.append((down, right))
    nearest = np.argsort(np.array(distances), axis=0, kind="stable")[:GROUP].T
    chosen = np.array(shifts)[nearest]
    return row[:, None] + chosen[..., 0], column[:, None] + chosen[..., 1]


def _filter_stacks(blocks: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Stacks [R, GROUP, BLOCK, BLOCK] → the same, filtered, and their weights [R, 1, 1, 1]."""
    plane, across = _transforms()
    spectrum = across @ (blocks.reshape(*blocks.shape[:2], -1) @ plane.T)
    kept = np.abs(spectrum) >= threshold
    filtered = across.T @ (spectrum * kept) @ plane
    return filtered.reshape(blocks.shape), 1 / np.maximum(kept.sum((1, 2)), 1)[:, None, None, None]


@lru_cache
def _transforms() -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal DCT of a flattened block [BLOCK², BLOCK²] and Haar [GROUP, GROUP]; each row is a basis vector."""
    cosines = dct(np.eye(BLOCK), axis=0, norm="ortho")
    haar = np.ones((1, 1))
    while len(haar) < GROUP:
        haar = np.vstack([np.kron(haar, [1, 1]), np.kron(np.eye(len(haar)), [1, -1])]) / np.sqrt(2)
    return np.kron(cosines, cosines), haar


def _pixels(row: np.ndarray, column: np.ndarray, width: int) -> np.ndarray:
    """Flat index [R, GROUP, BLOCK, BLOCK] of every pixel of the blocks that start at row, column [R, GROUP]."""
    down, right = np.mgrid[:BLOCK, :BLOCK]
    return (row[..., None, None] + down) * width + column[..., None, None] + right


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, length, CHUNK))
