"""The Fréchet distance of two Gaussians: FID, where the features are those of an Inception network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnunet_synth.quality.moments import Moments


@dataclass(frozen=True, eq=False)
class Gaussian:
    """mean [D] and covariance [D, D]."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> Gaussian:
        return cls(moments.mean, moments.covariance)

    @cached_property
    def root(self) -> np.ndarray:
        """Σ^½, symmetric [D, D]; the dearest part of a distance, made once for all that are compared with this one."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) (Dowson and Landau 1982; Heusel et al. 2017, Eq. 6). 0 or more.

    The trace of the root is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric. Unlike the
    matrix root of the product Σ₁Σ₂, it stays real and exact where the covariances are singular, as they are with fewer
    images than features.

    With few images the distance is too large even between two halves of one set: compare only distances from equally
    many images.
    """
    eigenvalues = np.linalg.eigvalsh(first.root @ second.covariance @ first.root)
    shared = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    step = first.mean - second.mean
    distance = step @ step + np.trace(first.covariance) + np.trace(second.covariance) - 2 * shared
    return max(float(distance), 0.0)
