"""LcGAN's detections: what counts, what is ignored, and what becomes of its lesion."""

import math

import numpy as np
import pytest

from nnunet_synth.evaluation.detection import Detections, count_detections
from tests.reference import detection as reference


def square(side, label=1, corner=0, size=40):
    image = np.zeros((size, size), np.uint8)
    image[corner:corner + side, corner:corner + side] = label
    return image


def rectangle(height, width, label=1):
    image = np.zeros((40, 40), np.uint8)
    image[:height, :width] = label
    return image


def count(prediction, truth, classes=(1,), **thresholds):
    return count_detections([prediction], [truth], classes, **thresholds)


def test_false_positives_count_from_200_pixels_on():
    nothing = rectangle(0, 0)
    assert count(rectangle(1, 40), nothing) == Detections()
    almost = rectangle(5, 40)
    almost[4, 39] = 0
    assert almost.sum() == 199 and count(almost, nothing) == Detections()
    assert count(rectangle(5, 40), nothing) == Detections(false_positives=1)
    assert count(nothing, nothing, smallest_false_positive=0) == Detections()


def test_true_positives_count_from_a_dice_of_a_quarter_on():
    truth = rectangle(7, 1)                     # 2·1 / (7 + 1) = 0.25
    assert count(rectangle(1, 1), truth) == Detections(true_positives=1)
    # Below it the prediction is ignored, so its lesion is missed; neither is it a false positive.
    assert count(rectangle(1, 1), rectangle(8, 1)) == Detections(false_negatives=1)
    assert count(rectangle(40, 40), rectangle(5, 5)) == Detections(false_negatives=1)
    assert count(square(5, corner=20), square(5)) == Detections(false_negatives=1)


def test_precision_and_recall_are_of_all_images_and_classes_together():
    predictions = [square(20), square(20), square(20), rectangle(0, 0), square(20, label=2)]
    truths = [square(20), rectangle(0, 0), square(20), square(3), square(20, label=2)]
    total = count_detections(predictions, truths, (1, 2))
    assert total == Detections(true_positives=3, false_positives=1, false_negatives=1)
    assert total.precision == 0.75 and total.recall == 0.75
    parts = [count_detections([p], [t], (1, 2)) for p, t in zip(predictions, truths, strict=True)]
    assert sum(parts, Detections()) == total
    assert math.isnan(Detections().precision) and math.isnan(Detections().recall)


def test_as_the_reference_counts():
    rng = np.random.default_rng(0)
    predictions, truths = [], []
    for _ in range(60):
        predictions.append(square(rng.integers(0, 25), rng.integers(1, 3), rng.integers(0, 12)))
        truths.append(square(rng.integers(0, 25), rng.integers(1, 3), rng.integers(0, 12)))
    total = count_detections(np.stack(predictions), np.stack(truths), (1, 2))
    assert (total.true_positives, total.false_positives, total.false_negatives) == \
        reference.detections(predictions, truths, (1, 2))
    assert min(total.true_positives, total.false_positives, total.false_negatives) > 5


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        count(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ValueError):
        count_detections([np.zeros((4, 4))], [], (1,))
