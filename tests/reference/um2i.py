"""UM2I in NumPy, slow and plain, from the paper (Xing et al., "Less is More", III.B) and synthesizers.md §2.

Everything is for one image; loops are over pixels, superpixels and classes.
"""

from __future__ import annotations

import math

import numpy as np


def quantise(mean: float, step: float) -> float:
    """Algorithm 1: H = int(mean / t) · t."""
    return int(mean / step) * step


def unsupervised_mask(image: np.ndarray, segments: np.ndarray, step: float) -> np.ndarray:
    """Algorithm 1 on a gray image [H, W] in [0, 255], its superpixels given."""
    mask = np.zeros(image.shape)
    for number in np.unique(segments):
        mean = np.mean(image[segments == number])
        mask[segments == number] = mean if step == 0 else quantise(mean, step)
    return mask


def edges(mask: np.ndarray) -> np.ndarray:
    """[H, W] 1 where a pixel differs from one of its four neighbours."""
    height, width = mask.shape
    found = np.zeros(mask.shape)
    for y in range(height):
        for x in range(width):
            for other_y, other_x in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= other_y < height and 0 <= other_x < width and mask[y, x] != mask[other_y, other_x]:
                    found[y, x] = 1
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Losses


def least_squares_generator(fake: list[np.ndarray]) -> float:
    """Mean over the scales of E (D(G(·)) − 1)²."""
    return float(np.mean([np.mean((logits - 1) ** 2) for logits in fake]))


def least_squares_discriminator(real: list[np.ndarray], fake: list[np.ndarray]) -> float:
    """Mean over the scales of ½ E (D(x) − 1)² + ½ E D(G(·))²."""
    return float(np.mean([np.mean((x - 1) ** 2) / 2 + np.mean(y ** 2) / 2 for x, y in zip(real, fake, strict=True)]))


def cross_entropy(logits: np.ndarray, target: np.ndarray, trusted: np.ndarray) -> float:
    """Mean of −log softmax of the target's class over the trusted pixels; 0 where there are none.

    logits [N, K, H, W], target [N, H, W], trusted [N, H, W].
    """
    terms = []
    for n, y, x in zip(*np.nonzero(trusted), strict=True):
        values = [float(value) for value in logits[n, :, y, x]]
        terms.append(math.log(sum(math.exp(value) for value in values)) - values[target[n, y, x]])
    return sum(terms) / len(terms) if terms else 0.0


def soft_dice_loss(probability: np.ndarray, target: np.ndarray, trusted: np.ndarray, smooth: float = 1e-5) -> float:
    """1 − mean over the foreground classes of (2 tp + s) / (2 tp + fp + fn + s), over the trusted pixels."""
    scores = []
    for k in range(1, probability.shape[1]):
        tp = fp = fn = 0.0
        for n, y, x in zip(*np.nonzero(trusted), strict=True):
            p, t = float(probability[n, k, y, x]), float(target[n, y, x] == k)
            tp, fp, fn = tp + p * t, fp + p * (1 - t), fn + (1 - p) * t
        scores.append((2 * tp + smooth) / (2 * tp + fp + fn + smooth))
    return 1 - sum(scores) / len(scores)


# ----------------------------------------------------------------------------------------------------------------------
# The edit by a pseudo-label


def most_frequent(values: np.ndarray) -> float:
    """The darkest of the most frequent values."""
    found, counts = np.unique(values, return_counts=True)
    return float(found[np.argmax(counts)])


def edit(mask: np.ndarray, label: np.ndarray, layout: np.ndarray, drawn: dict[int, float],
         typical: dict[int, tuple[float, float]], organs: dict[int, set[int]],
         of_lesions: dict[int, dict[float, float]], of_healthy: dict[int, dict[float, float]]) -> np.ndarray:
    """synthesizers.md §2.2 on one quantised mask [H, W].

    For each label that labelled slices have, `drawn` is the quantised gray value to paint, `typical` the quantised
    range of its gray values, `organs` the organs it lies in; `of_lesions` and `of_healthy` tell which share of its
    pixels, and of those without a label in these organs, has a level.
    """
    edited = mask.copy()
    for y, x in np.ndindex(mask.shape):
        organ, level = layout == layout[y, x], mask[y, x]
        if label[y, x] in drawn:
            edited[y, x] = drawn[label[y, x]]
        elif label[y, x] == 0 and layout[y, x] > 0:
            own = most_frequent(mask[organ & (label == 0)])
            if level != own and any(low <= level <= high and layout[y, x] in organs[one]
                                    and of_lesions[one].get(level, 0) >= of_healthy[one].get(level, 0)
                                    for one, (low, high) in typical.items()):
                edited[y, x] = own
    return edited
