"""Measures of sharpness, term by term."""

import numpy as np


def variance_of_laplacian(image: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Five-point Laplacian with the border repeated, also that of the valid part, pixel by pixel; then its variance."""
    height, width = image.shape
    valid = np.ones((height, width), bool) if valid is None else valid
    laplacian = []
    for y, x in np.argwhere(valid):
        total = -4.0 * image[y, x]
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            there = 0 <= y + dy < height and 0 <= x + dx < width and valid[y + dy, x + dx]
            total += image[y + dy, x + dx] if there else image[y, x]
        laplacian.append(total)
    return float(np.mean((np.array(laplacian) - np.mean(laplacian)) ** 2))


def high_frequency_share(image: np.ndarray, above: float) -> float:
    """Amplitudes of the discrete Fourier transform of image [H, W], faded out at its borders, summed up twice."""
    height, width = image.shape
    fade = np.outer(*[[0.5 - 0.5 * np.cos(2 * np.pi * n / (length - 1)) for n in range(length)]
                      for length in (height, width)])
    faded = (image - (image * fade).sum() / fade.sum()) * fade
    y, x = np.mgrid[:height, :width]
    high = whole = 0.0
    for k in range(height):
        for j in range(width):
            amplitude = abs((faded * np.exp(-2j * np.pi * (k * y / height + j * x / width))).sum())
            vertical, horizontal = (min(n, length - n) / length for n, length in ((k, height), (j, width)))
            whole += amplitude
            high += amplitude if np.sqrt(vertical ** 2 + horizontal ** 2) > above else 0.0
    return high / whole
