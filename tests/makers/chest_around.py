"""A CT-like volume around a lung mask: real shapes of lungs where only the masks are published."""

from __future__ import annotations

import numpy as np
from numpy.random import default_rng
from scipy.ndimage import gaussian_filter

ADULT_LUNGS_MM = 260.0      # side to side; everything else is drawn in proportion


def chest_around(lungs: np.ndarray, spacing: tuple[float, float, float], seed: int = 0,
                 is_prone: bool = False) -> np.ndarray:
    """Body, fat, spine, windpipe, gas in the stomach, and a table of foam in a shell, behind or (prone) in front.

    Args:
        lungs: [z, y, x] with axes S, P, L; > 0 is lung.
        spacing: mm.

    Returns:
        float32 [z, y, x] in HU, with noise.
    """
    rng = default_rng(seed)
    lungs = lungs > 0
    z, y, x = (np.arange(n) * step for n, step in zip(lungs.shape, spacing, strict=True))
    low, high = (np.array(ends) for ends in zip(*(axis[np.flatnonzero(lungs.any(axis=other))][[0, -1]] for axis, other
                                                  in ((z, (1, 2)), (y, (0, 2)), (x, (0, 1)))), strict=True))
    scale = (high[2] - low[2]) / ADULT_LUNGS_MM
    z, y, x = (axis - (a + b) / 2 for axis, a, b in zip((z, y, x), low, high, strict=True))
    z, y = z[:, None, None] / scale, y[:, None] / scale
    x = x / scale                                               # mm of an adult, from the middle of the lungs
    depth = (high[1] - low[1]) / scale / 2

    def ellipsoid(centre: tuple[float, ...], radius: tuple[float, ...], power: float = 2) -> np.ndarray:
        return sum(np.abs((axis - c) / r) ** power
                   for axis, c, r in zip((z, y, x), centre, radius, strict=True)) < 1

    hu = np.full(lungs.shape, -1000, np.float32)
    table_y = -(depth + 58) if is_prone else depth + 58
    hu[np.broadcast_to((np.abs(y - table_y) < 18) & (np.abs(x) < 240), lungs.shape)] = -150      # the shell
    hu[np.broadcast_to((np.abs(y - table_y) < 15) & (np.abs(x) < 237), lungs.shape)] = -900      # its foam
    hu[ellipsoid((0, 0, 0), (1e6, depth + 40, 175), 2.5)] = -100
    hu[ellipsoid((0, 0, 0), (1e6, depth + 32, 165), 2.5)] = 40
    hu[ellipsoid((0, depth - 4, 0), (1e6, 22, 20))] = 350
    height = (high[0] - low[0]) / scale / 2
    gas = ellipsoid((-height, -20, 70), (30, 35, 40)) & ~lungs
    windpipe = ellipsoid((height, 0, 0), (height, 9, 9)) & ~lungs
    hu[lungs] = -850 + 25 * _texture(rng, lungs.shape)[lungs]
    apart = ~(gaussian_filter(lungs.astype(np.float32), (0, *(4 * scale / step for step in spacing[1:]))) > 0.02)
    hu[(gas | windpipe) & apart] = -1000
    hu = gaussian_filter(hu, (0, 0.5, 0.5))
    return hu + rng.normal(0, 25, hu.shape).astype(np.float32)


def _texture(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (1, 4, 4))
    return noise / noise.std()
