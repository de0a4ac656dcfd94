"""CCT (Ouali et al. 2020), Eq. 2: the mean over K decoders of the mean squared error, one value after another."""

import numpy as np


def unsupervised_loss(main: np.ndarray, auxiliary: list[np.ndarray]) -> float:
    """1/K Σ_k d(g(z), g_k(z̃_k)), d the mean over samples, classes and pixels of the squared difference."""
    total = 0.0
    for answer in auxiliary:
        total += sum((answer[index] - main[index]) ** 2 for index in np.ndindex(*main.shape)) / main.size
    return total / len(auxiliary)


def feature_drop(z: np.ndarray, gamma: float) -> np.ndarray:
    """F-Drop of one sample [C, H, W]: z' is the channels' mean, scaled to 0…1; M = {z' < γ}; z̃ = z ⊙ M."""
    activity = z.mean(0)
    activity = (activity - activity.min()) / (activity.max() - activity.min())
    return np.where(activity < gamma, z, 0)
