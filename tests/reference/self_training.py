"""SA-ST Eq. 15–18 (Lyu et al., III.D) for a single foreground class, one sample after another."""

import numpy as np

from tests.reference.cross_pseudo import pseudo_label, segmentation_loss


def teach(f_t, x_u, tau: float) -> np.ndarray:
    """Algorithm 1, line 2: y^p of every unlabelled sample, by a teacher image → probabilities (τ of IV.A.4)."""
    return np.stack([pseudo_label(f_t(x), tau) for x in x_u])


def sa_st_loss(f_s, x_l, y_l, x_u, y_p, decode, weight: float) -> float:
    """Eq. 18 for a student image → probabilities and a decoder label → image, on batches of equal size."""
    assert len(x_l) == len(x_u) == len(y_p)
    x_hat = np.stack([decode(y) for y in y_p])                      # Algorithm 1, line 3
    supervised = segmentation_loss(f_s(x_l), y_l)                   # Eq. 15
    pseudo = segmentation_loss(f_s(x_u), y_p)                       # Eq. 16
    synthetic = segmentation_loss(f_s(x_hat), y_p)                  # Eq. 17
    return supervised + weight * (pseudo + synthetic)               # Eq. 18
