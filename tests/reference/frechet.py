"""Distances between sets of features, slow and obvious."""

import numpy as np
import scipy.linalg


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Heusel et al. 2017, Eq. 6, from features [N, D], with SciPy's matrix root of the product of the covariances."""
    mean_1, mean_2 = first.mean(0), second.mean(0)
    covariance_1, covariance_2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(covariance_1 @ covariance_2)
    return float(np.sum((mean_1 - mean_2) ** 2) + np.trace(covariance_1 + covariance_2 - 2 * root).real)


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Bińkowski et al. 2018, Eq. 4: every pair once, none with itself."""
    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    n, m = len(first), len(second)
    among_first = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j)
    among_second = sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j)
    between = sum(kernel(x, y) for x in first for y in second)
    return among_first / (n * (n - 1)) + among_second / (m * (m - 1)) - 2 * between / (n * m)
