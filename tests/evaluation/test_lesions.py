"""Lesion-wise F1 by hand and against a flood fill."""

import math

import numpy as np
import pytest
from numpy.random import default_rng
from scipy.ndimage import gaussian_filter

from nnunet_synth.evaluation.lesions import LesionCounts, count_lesions
from tests.reference import lesions as reference


def spots(shape, seed, quantile=0.8):
    noise = gaussian_filter(default_rng(seed).standard_normal(shape), 0.8)
    return noise > np.quantile(noise, quantile)


@pytest.mark.parametrize("shape, spacing", [((14, 15), (1.0, 2.0)), ((5, 9, 9), (5.0, 0.7, 0.7))])
@pytest.mark.parametrize("min_overlap", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("min_voxels", [0, 3])
def test_equals_the_flood_fill(shape, spacing, min_overlap, min_voxels):
    min_volume = min_voxels * math.prod(spacing)
    for seed in range(4):
        prediction, truth = spots(shape, seed), spots(shape, seed + 100)
        if seed % 2:
            prediction |= truth & spots(shape, seed + 200, 0.4)
        counts = count_lesions(prediction, truth, spacing, min_overlap, min_volume)
        true, predicted = (reference.large_components(mask, spacing, min_volume) for mask in (truth, prediction))
        assert counts == LesionCounts(len(true), reference.num_covered(true, predicted, min_overlap),
                                      len(predicted), reference.num_covered(predicted, true, min_overlap))
        assert counts.true > 1 and counts.predicted > 1
        assert counts.f1 == pytest.approx(reference.lesion_f1(prediction, truth, spacing, min_overlap, min_volume))


def test_by_hand():
    truth, prediction = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    truth[0:2, 0:10] = True             # 20 pixels, 2 of them covered: just found
    truth[5:7, 0:10] = True             # 1 of 20 covered: missed
    truth[10:12, 0:10] = True           # in two pieces: found once
    truth[15, 0] = truth[16, 1] = True  # one lesion across the corner, missed
    prediction[0:2, 9] = True
    prediction[5, 9] = True
    prediction[10, 0:4] = prediction[10, 6:10] = True
    prediction[18, 20] = True           # invented
    prediction[0:2, 20:29] = True       # invented
    counts = count_lesions(prediction, truth, (1, 1))
    assert counts == LesionCounts(true=4, found=2, predicted=6, confirmed=4)
    assert counts.recall == 2 / 4 and counts.precision == 4 / 6
    assert counts.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))


def test_marking_everything_finds_everything_and_loses_precision():
    truth = np.zeros((30, 30), bool)
    truth[2:4, 2:4] = truth[20:22, 20:22] = True
    counts = count_lesions(np.ones_like(truth), truth, (1, 1))
    assert (counts.recall, counts.precision, counts.f1) == (1, 0, 0)


def test_exchanging_the_masks_exchanges_precision_and_recall():
    prediction, truth = spots((6, 12, 12), 1), spots((6, 12, 12), 2)
    counts, exchanged = (count_lesions(*pair, (2, 1, 1)) for pair in ((prediction, truth), (truth, prediction)))
    assert counts.precision != counts.recall
    assert (counts.precision, counts.recall, counts.f1) == (exchanged.recall, exchanged.precision, exchanged.f1)


def test_minimal_volume_is_in_mm3_and_counts_on_both_sides():
    truth, prediction = np.zeros((3, 10, 10), bool), np.zeros((3, 10, 10), bool)
    truth[0, 0, 0:3] = truth[0, 5, 0:8] = True
    prediction[0, 0, 0:3] = prediction[2, 9, 9] = prediction[0, 5, 0:8] = True
    spacing = (5.0, 0.7, 0.7)           # 2.45 mm³ a voxel
    assert count_lesions(prediction, truth, spacing) == LesionCounts(2, 2, 3, 2)
    assert count_lesions(prediction, truth, spacing, min_volume=3 * 2.45) == LesionCounts(2, 2, 2, 2)
    assert count_lesions(prediction, truth, spacing, min_volume=7.36) == LesionCounts(1, 1, 1, 1)


def test_empty_masks():
    lesion, empty = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    lesion[2:4, 2:4] = True
    both = count_lesions(empty, empty, (1, 1))
    assert all(math.isnan(score) for score in (both.precision, both.recall, both.f1))
    for pair in ((lesion, empty), (empty, lesion)):
        counts = count_lesions(*pair, (1, 1))
        assert (counts.precision, counts.recall, counts.f1) == (0, 0, 0)
    assert math.isnan(count_lesions(empty, lesion, (1, 1), min_volume=5).f1)
    apart = np.roll(lesion, 3, axis=0)
    assert count_lesions(apart, lesion, (1, 1)).f1 == 0
