"""Measures of image quality, slow and obvious."""

import numpy as np


def best_interval(values: np.ndarray, is_lesion: np.ndarray, edges: np.ndarray) -> tuple[float, float, float]:
    """(low, high, Dice) of the pair of bin edges with the highest Dice, every pair tried."""
    best = (edges[0], edges[-1], -1.0)
    for first in range(len(edges) - 1):
        for last in range(first + 1, len(edges)):
            upper = values <= edges[last] if last == len(edges) - 1 else values < edges[last]
            chosen = (values >= edges[first]) & upper
            dice = 2 * (chosen & is_lesion).sum() / (chosen.sum() + is_lesion.sum())
            if dice > best[2]:
                best = (edges[first], edges[last], dice)
    return best


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Σ p log(p / q)."""
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
