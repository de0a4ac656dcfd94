"""Measures of sharpness, term by term."""

import numpy as np


def variance_of_laplacian(image: np.ndarray) -> float:
    """Five-point Laplacian with the border repeated, pixel by pixel; then its variance."""
    height, width = image.shape
    laplacian = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            total = -4.0 * image[y, x]
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                total += image[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
            laplacian[y, x] = total
    return float(np.mean((laplacian - laplacian.mean()) ** 2))


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
