"""Precision and recall of detections: is a class found in an image at all? LcGAN's measure, without its noise.

"By only accounting for each prediction that passes certain thresholds. … A false positive detection with less than 200
pixels area and a true positive detection where DSC score is less than .25 are not included" (LcGAN, 4.1). A detection
is a class predicted in an image. What the paper leaves open: a prediction that does not pass is no prediction, so the
lesion of a true positive that is left out counts as missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_synth.evaluation.overlap import dice

SMALLEST_FALSE_POSITIVE = 200       # pixels of a picture of 512²
PICTURE_AREA = 512 ** 2
LOWEST_DICE = 0.25


def smallest_false_positive_of(height: int, width: int) -> int:
    """Pixels: the paper's share of the picture, whatever its size (128²: 13), at least one."""
    return max(1, math.ceil(SMALLEST_FALSE_POSITIVE * height * width / PICTURE_AREA))


@dataclass(frozen=True)
class Detections:
    """Images in which a class was found rightly, found wrongly, and missed; they add up over classes and images."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: Detections) -> Detections:
        return Detections(self.true_positives + other.true_positives, self.false_positives + other.false_positives,
                          self.false_negatives + other.false_negatives)

    @property
    def precision(self) -> float:
        """NaN where nothing was found."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """NaN where there is nothing to find."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)


def count_detections(predictions: Iterable[np.ndarray], truths: Iterable[np.ndarray], classes: Sequence[int],
                     smallest_false_positive: int = SMALLEST_FALSE_POSITIVE,
                     lowest_dice: float = LOWEST_DICE) -> Detections:
    """All detections in a set of images; of a volume, its slices are the images.

    Args:
        predictions, truths: label maps [H, W], image by image (an array [N, H, W] does).
        smallest_false_positive: in pixels; a class found where there is none counts from this area on.
        lowest_dice: a class found where there is some counts from this Dice coefficient on.

    Raises:
        ValueError: the two are not equally many, or differ in shape.
    """
    total = Detections()
    for prediction, truth in zip(predictions, truths, strict=True):
        if prediction.shape != truth.shape:
            raise ValueError(f"prediction and truth differ in shape: {prediction.shape} and {truth.shape}")
        for label in classes:
            total += _detection(prediction == label, truth == label, smallest_false_positive, lowest_dice)
    return total


def _detection(prediction: np.ndarray, truth: np.ndarray, smallest_false_positive: int,
               lowest_dice: float) -> Detections:
    """Of one class in one image."""
    if not truth.any():
        return Detections(false_positives=int(prediction.any() and prediction.sum() >= smallest_false_positive))
    is_found = bool(prediction.any()) and dice(prediction, truth) >= lowest_dice
    return Detections(true_positives=int(is_found), false_negatives=int(not is_found))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
