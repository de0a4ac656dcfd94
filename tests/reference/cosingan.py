"""CoSinGAN in NumPy, slow and plain, from the paper (Zhang et al. 2020, 2.1.2 and 3.1) and, for MS-SSIM, from the
papers that it cites (Zhao et al., IEEE TCI 2016, Eq. 7 and 8; Wang et al. 2003)."""

from __future__ import annotations

import math

import numpy as np

SCALES = (32, 48, 64, 96, 128, 192, 256, 384, 512)
DOWNSAMPLINGS = (4, 4, 5, 5, 6, 6, 7, 7, 7)
DISCRIMINATOR_CONVOLUTIONS = (6, 6, 7, 7, 8, 8, 9, 9, 9)


def weighted_pixel_loss(condition: np.ndarray, output: np.ndarray, image: np.ndarray, weight_of: dict[int, float]
                        ) -> float:
    """Eq. 7 of one gray image, all [H, W]."""
    total = 0.0
    for place in np.ndindex(condition.shape):
        total += weight_of[int(condition[place])] * abs(output[place] - image[place])
    return total / condition.size


def learning_rate(epoch: int, first: float, steady: int, decay: float) -> float:
    """3.1.1: `first`, "linearly decayed by" `decay` of it "each epoch after" `steady` epochs."""
    return first if epoch <= steady else first * (1 - decay * (epoch - steady))


def gaussian_window(sigma: float, radius: int) -> np.ndarray:
    """[2·radius + 1, 2·radius + 1], sum 1."""
    weights = np.array([math.exp(-(step ** 2) / (2 * sigma ** 2)) for step in range(-radius, radius + 1)])
    weights /= weights.sum()
    return np.outer(weights, weights)


def local_mean(image: np.ndarray, window: np.ndarray, border: str = "constant") -> np.ndarray:
    """Weighted mean around each pixel; beyond the image stand zeros, or its mirror image ("reflect")."""
    radius = len(window) // 2
    padded = np.pad(image, radius, mode=border)
    result = np.zeros_like(image)
    for dy in range(len(window)):
        for dx in range(len(window)):
            result += window[dy, dx] * padded[dy:dy + image.shape[0], dx:dx + image.shape[1]]
    return result


def structure(x: np.ndarray, y: np.ndarray, window: np.ndarray, data_range: float, border: str = "constant"
              ) -> tuple[np.ndarray, np.ndarray]:
    """SSIM's luminance l and contrast-structure cs at each pixel."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y = local_mean(x, window, border), local_mean(y, window, border)
    variance_x = local_mean(x * x, window, border) - mean_x ** 2
    variance_y = local_mean(y * y, window, border) - mean_y ** 2
    covariance = local_mean(x * y, window, border) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x ** 2 + mean_y ** 2 + c1)
    contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return luminance, contrast


def zhao_ms_ssim_loss(x: np.ndarray, y: np.ndarray, sigmas: tuple[float, ...], data_range: float = 2.0) -> float:
    """1 − l_M Π_j cs_j, averaged over the pixels of one gray image; all Gaussians at full resolution, in windows of the
    widest one's radius 2σ_M."""
    radius = int(2 * sigmas[-1])
    product = np.ones_like(x)
    for sigma in sigmas:
        luminance, contrast = structure(x, y, gaussian_window(sigma, radius), data_range)
        product = product * contrast
    return float(np.mean(1 - luminance * product))


def wang_ms_ssim_loss(x: np.ndarray, y: np.ndarray, exponents: tuple[float, ...], data_range: float = 2.0) -> float:
    """1 − (l·cs)_M^α_M Π_j<M cs_j^α_j with 11 × 11 windows (σ = 1.5), each level at half the resolution of the one
    before (2 × 2 means). Each factor is a mean over pixels: at the last level over all of them, with mirrored borders
    (the paper does not say; torchmetrics'), before over those whose window lies inside."""
    result = 1.0
    for level, exponent in enumerate(exponents):
        luminance, contrast = structure(x, y, gaussian_window(1.5, 5), data_range, "reflect")
        inner = (slice(5, -5), slice(5, -5))
        if level == len(exponents) - 1:
            result *= max(float((luminance * contrast).mean()), 0) ** exponent
        else:
            result *= max(float(contrast[inner].mean()), 0) ** exponent
        x, y = (image[:len(image) // 2 * 2, :image.shape[1] // 2 * 2].reshape(len(image) // 2, 2, -1, 2).mean((1, 3))
                for image in (x, y))
    return 1 - result


def randomised_range(name: str) -> tuple[float, float]:
    """Eq. 10 with δ_b, δ_l, δ_i = 16, 16, 32."""
    return {"background": (0, 16), "lung": (128 - 16, 128 + 16), "infection": (255 - 32, 255)}[name]
