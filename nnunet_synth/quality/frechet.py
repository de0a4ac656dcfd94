"""The Fréchet distance of two Gaussians: FID, where the features are those of an Inception network."""

from __future__ import annotations

import numpy as np

from nnunet_synth.quality.moments import Moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) (Dowson and Landau 1982; Heusel et al. 2017, Eq. 6). 0 or more.

    The trace of the root is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric. Unlike the
    matrix root of the product Σ₁Σ₂, it stays real and exact where the covariances are singular, as they are with fewer
    images than features.

    With few images the distance is too large even between two halves of one set: compare only distances from equally
    many images.
    """
    root = _root(first.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ second.covariance @ root)
    shared = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    step = first.mean - second.mean
    distance = step @ step + np.trace(first.covariance) + np.trace(second.covariance) - 2 * shared
    return max(float(distance), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
