"""KID, the kernel Inception distance: its mean does not depend on the number of images."""

from __future__ import annotations

import numpy as np


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy of features [N, D] and [M, D] under k(x, y) = (xᵀy / D + 1)³.

    Bińkowski et al., Demystifying MMD GANs, ICLR 2018, Eq. 4. It may fall slightly below 0 where the sets are alike.
    They average over subsets of 1000 images because the kernel matrix is quadratic; here the caller hands in as many as
    he can hold, once.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    among_first, among_second = (_kernel(part, part) for part in (first, second))
    n, m = len(first), len(second)
    return float((among_first.sum() - np.trace(among_first)) / (n * (n - 1))
                 + (among_second.sum() - np.trace(among_second)) / (m * (m - 1))
                 - 2 * _kernel(first, second).mean())


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3
