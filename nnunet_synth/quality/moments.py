"""Mean and covariance of features, gathered batch by batch: the memory does not grow with the number of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Mean and scatter of the feature vectors seen so far.

    The merging formula (Chan, Golub and LeVeque, The American Statistician 37:242, 1983) loses no digits where the mean
    is large against the spread, which sums of squares do.

    Attributes:
        count: of vectors.
        mean: [D] float64.
        scatter: [D, D] float64, the sum of (x − mean)(x − mean)ᵀ.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, num_features: int) -> Moments:
        return cls(0, np.zeros(num_features), np.zeros((num_features, num_features)))

    def add(self, features: np.ndarray) -> None:
        """Features [N, D] of a further batch; N may be 0."""
        if len(features):
            features = features.astype(np.float64)
            mean = features.mean(0)
            centred = features - mean
            self.merge(Moments(len(features), mean, centred.T @ centred))

    def merge(self, other: Moments) -> None:
        """Take in what another one has seen."""
        if other.count == 0:
            return
        count = self.count + other.count
        step = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        self.mean = self.mean + step * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> np.ndarray:
        """[D, D] with n − 1, as `numpy.cov`."""
        assert self.count > 1, "a covariance needs two vectors"
        return self.scatter / (self.count - 1)

    @property
    def mean_deviation(self) -> float:
        """The mean over features of their standard deviation (with n, as the released MM-STD): the variety."""
        return float(np.sqrt(np.diag(self.scatter) / self.count).mean())
