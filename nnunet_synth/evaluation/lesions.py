"""Which lesions are found and which are invented: a score that one large lesion cannot decide.

A lesion is a connected component, neighbours at edges and corners included (26 in 3D, 8 in 2D). A true lesion is found
if the predicted mask covers at least a tenth of it; a predicted lesion is confirmed if at least a tenth of it lies in
the true mask. The tenth is α of the MICCAI 2016 MS lesion challenge (O. Commowick et al., Scientific Reports 8:13650,
2018), and as there precision is recall with the roles exchanged, F1 is the harmonic mean of the two, and components
below a minimal volume can be removed from both masks first.

No lesion is matched to one other: the masks of pneumonia merge and fall apart with a few voxels, and matching one to
one, by an IoU above ½ say, would punish the number of pieces instead of what was missed. We leave out the challenge's
second condition (the predicted lesions that cover a true one must not reach far beyond it): whoever marks everything
finds everything, and loses precision here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import generate_binary_structure, label


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of the truth and of the prediction, and how many of each the other one knows."""

    true: int
    found: int
    predicted: int
    confirmed: int

    @property
    def recall(self) -> float:
        return self._share(self.found, self.true)

    @property
    def precision(self) -> float:
        return self._share(self.confirmed, self.predicted)

    @property
    def f1(self) -> float:
        """2 · precision · recall / (precision + recall); NaN where there is nothing on either side."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else total

    def _share(self, part: int, whole: int) -> float:
        """Nothing on either side: NaN. Nothing on this side alone: 0, as for DSC."""
        if whole:
            return part / whole
        return 0.0 if self.true or self.predicted else math.nan


def count_lesions(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], min_overlap: float = 0.1,
                  min_volume: float = 0.0) -> LesionCounts:
    """Count the lesions of two bool masks of one shape, [Y, X] or [Z, Y, X].

    Args:
        spacing: mm, in the order of the axes.
        min_overlap: share of a lesion that the other mask must cover, 0 < share ≤ 1.
        min_volume: mm³ (2D: mm²); smaller components are removed from both masks first.
    """
    smallest = min_volume / math.prod(spacing) * (1 - 1e-9)     # voxels; a lesion of just that volume stays
    true_lesions, predicted_lesions = (_components(mask, smallest) for mask in (truth, prediction))
    return LesionCounts(*_count_covered(true_lesions, predicted_lesions > 0, min_overlap),
                        *_count_covered(predicted_lesions, true_lesions > 0, min_overlap))


def _components(mask: np.ndarray, smallest: float) -> np.ndarray:
    """int32 of the mask's shape: the number of the component, 0 outside and in components below `smallest` voxels."""
    numbers, _ = label(mask, generate_binary_structure(mask.ndim, mask.ndim))
    too_small = np.bincount(numbers.ravel()) < smallest
    return np.where(too_small[numbers], 0, numbers) if too_small.any() else numbers


def _count_covered(lesions: np.ndarray, other: np.ndarray, min_overlap: float) -> tuple[int, int]:
    """The number of lesions, and of those that `other` covers by `min_overlap`."""
    sizes = np.bincount(lesions.ravel())
    covered = np.bincount(lesions[other], minlength=len(sizes))
    exists = sizes[1:] > 0
    share = covered[1:][exists] / sizes[1:][exists]
    return int(exists.sum()), int((share >= min_overlap).sum())
