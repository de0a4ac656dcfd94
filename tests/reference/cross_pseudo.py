"""SA-CPS Eq. 5–14 (Lyu et al.), one pixel loop at a time, for a single foreground class with probabilities p."""

import math

import numpy as np


def bce(p: np.ndarray, y: np.ndarray) -> float:
    """Eq. 7, as the mean over all pixels."""
    total = 0.0
    for probability, label in zip(p.ravel(), y.ravel(), strict=True):
        total += -(label * math.log(probability) + (1 - label) * math.log(1 - probability))
    return total / p.size


def dice(p: np.ndarray, y: np.ndarray, smooth: float) -> float:
    """Eq. 8."""
    intersection = sum(probability * label for probability, label in zip(p.ravel(), y.ravel(), strict=True))
    return 1 - 2 * intersection / (p.sum() + y.sum() + smooth)


def segmentation_loss(p: np.ndarray, y: np.ndarray, smooth: float = 1e-5) -> float:
    """Eq. 6."""
    return bce(p, y) + dice(p, y, smooth)


def pseudo_label(p: np.ndarray, tau: float) -> np.ndarray:
    """Eq. 9."""
    return np.array([1.0 if probability >= tau else 0.0 for probability in p.ravel()]).reshape(p.shape)


def sa_cps_loss(f_1, f_2, x_l, y_l, x_u, decode, tau: float, weight: float) -> float:
    """Eq. 14 for two functions image → probabilities and a decoder label → image."""
    supervised = segmentation_loss(f_1(x_l), y_l) + segmentation_loss(f_2(x_l), y_l)                    # Eq. 5
    y_1, y_2 = pseudo_label(f_1(x_u), tau), pseudo_label(f_2(x_u), tau)
    pseudo = segmentation_loss(f_1(x_u), y_2) + segmentation_loss(f_2(x_u), y_1)                        # Eq. 11
    x_1, x_2 = decode(y_2), decode(y_1)                                                                 # Eq. 10
    synthetic = segmentation_loss(f_1(x_1), y_2) + segmentation_loss(f_2(x_2), y_1)                     # Eq. 12
    return supervised + weight * (pseudo + synthetic)                                                   # Eq. 13, 14
