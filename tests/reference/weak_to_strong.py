"""UniMatch (Yang et al. 2023, Eq. 2, 5 and 7) on FixMatch's masked cross entropy, one pixel after another."""

import math

import numpy as np


def pseudo_label(p_w: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """[B, C, …] probabilities of the weak view → hard labels and 1(max p ≥ τ), both [B, …]."""
    label = np.zeros((len(p_w), *p_w.shape[2:]), int)
    sure = np.zeros(label.shape, bool)
    for index in np.ndindex(*label.shape):
        sample, *pixel = index
        p = [p_w[(sample, c, *pixel)] for c in range(p_w.shape[1])]
        label[index], sure[index] = int(np.argmax(p)), max(p) >= tau
    return label, sure


def cutmix(values: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Sample b carries, inside its box, what sample b − 1 has there."""
    mixed = values.copy()
    for index in np.ndindex(*boxes.shape):
        if boxes[index]:
            mixed[index] = values[(index[0] - 1, *index[1:])]
    return mixed


def masked_cross_entropy(p: np.ndarray, label: np.ndarray, sure: np.ndarray) -> float:
    """1/(B·H·W) Σ 1(max p_w ≥ τ) · H(y, p)."""
    total = 0.0
    for index in np.ndindex(*label.shape):
        sample, *pixel = index
        if sure[index]:
            total -= math.log(p[(sample, label[index], *pixel)])
    return total / label.size


def unlabelled_loss(p_w, p_fp, p_s1, p_s2, boxes_1, boxes_2, tau: float) -> float:
    """λ L_fp + μ/2 (L_s1 + L_s2) with λ = μ = ½."""
    label, sure = pseudo_label(p_w, tau)
    loss = 0.5 * masked_cross_entropy(p_fp, label, sure)
    for p, boxes in ((p_s1, boxes_1), (p_s2, boxes_2)):
        loss += 0.25 * masked_cross_entropy(p, cutmix(label, boxes), cutmix(sure, boxes))
    return loss
