"""Image quality against slow references, and on images whose quality is known."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch

from nnunet_synth.evaluation.image_quality import (
    ThresholdSegmenter,
    _best_interval,
    lesion_histogram_kl,
    measure_synthesizer,
    segmentability,
)
from nnunet_synth.evaluation.overlap import dice
from nnunet_synth.synthesizers.pretrain import pretrain
from tests.reference import image_quality as reference
from tests.synthesizers.toy import ToySlices, build_toy


@pytest.fixture
def slices():
    """All with a disc, at different places."""
    source = ToySlices(num_slices=24, size=48)
    return list(source.iterate(only_targets=True))


# ----------------------------------------------------------------------------------------------------------------------
# The segmenter


def test_the_interval_is_the_best_of_all():
    rng = np.random.default_rng(0)
    is_lesion = rng.random(800) < 0.3
    values = np.where(is_lesion, rng.normal(0.5, 0.2, 800), rng.normal(0, 0.4, 800)).clip(-0.99, 0.99)
    edges = np.linspace(-1, 1, 17)
    _, _, best = reference.best_interval(values, is_lesion, edges)
    low, high = _best_interval(np.histogram(values[is_lesion], edges)[0], np.histogram(values, edges)[0], edges,
                               int(is_lesion.sum()))
    assert 0.4 < best < 0.95 and dice((values >= low) & (values < high), is_lesion) == pytest.approx(best)


def test_of_equally_good_intervals_the_widest_is_taken():
    """Bins 3 and 6 are empty: nothing real speaks against them. Beyond the last bin nothing does either."""
    everything, lesions = np.array([5, 9, 9, 0, 4, 4, 0, 2]), np.array([0, 0, 0, 0, 4, 4, 0, 0])
    assert _best_interval(lesions, everything, np.arange(9.0), 8) == (3, 7)
    assert _best_interval(lesions[:7], everything[:7], np.arange(8.0), 8) == (3, np.inf)


def test_it_finds_real_lesions_it_was_not_fitted_on(slices):
    segmenter = ThresholdSegmenter.fit(slices[:9], [1])
    low, high = segmenter.intervals[1]
    assert -0.2 < low < 0.6 <= high
    scores = segmentability(segmenter, slices[9:], slices[9:])
    assert scores["dice_real"] > 0.9 and scores["ratio"] == 1


def test_only_the_inside_counts(slices):
    """A bright ring around the lung must neither be found nor be smeared into its rim."""
    ringed = [replace(part, image=torch.where(part.layout[:, None] > 0, part.image, 0.6)) for part in slices]
    segmenter = ThresholdSegmenter.fit(ringed, [1])
    assert segmentability(segmenter, ringed, ringed)["dice_real"] > 0.9
    prediction = segmenter.segment(ringed[0].image[0, 0].numpy(), (ringed[0].layout[0] > 0).numpy(), 1)
    assert not prediction[ringed[0].layout[0].numpy() == 0].any()


def test_without_a_layout_it_looks_everywhere_that_is_valid(slices):
    bare = [replace(part, layout=torch.zeros_like(part.layout)) for part in slices]
    masked = [replace(part, valid=torch.zeros_like(part.valid)) for part in bare]
    segmenter = ThresholdSegmenter.fit(bare, [1])
    assert segmentability(segmenter, bare, bare)["dice_real"] > 0.9
    assert segmentability(segmenter, bare, masked)["dice_synthetic"] == 0


def test_lesions_that_are_drawn_elsewhere_are_not_found(slices):
    """The case that segmentability exists for: lesions that look right in the wrong place."""
    segmenter = ThresholdSegmenter.fit(slices, [1])
    exchanged = [replace(part, image=other.image) for part, other in
                 zip(slices, slices[1:] + slices[:1], strict=True)]
    missing = [replace(part, image=part.image.clamp(max=-0.2)) for part in slices]
    right = segmentability(segmenter, slices, slices)
    wrong = segmentability(segmenter, slices, exchanged)
    assert right["dice_permuted"] < 0.3 < 0.9 < right["dice_synthetic"]
    assert wrong["dice_synthetic"] == pytest.approx(right["dice_permuted"], abs=0.15) and wrong["ratio"] < 0.3
    assert segmentability(segmenter, slices, missing)["dice_synthetic"] < 0.05


def test_nothing_to_be_found_is_nan_and_no_crash(slices):
    segmenter = ThresholdSegmenter.fit(slices, [1])
    empty = [replace(slices[0], label=torch.zeros_like(slices[0].label))]
    scores = segmentability(segmenter, empty, slices[:1])
    assert np.isnan(scores["dice_real"]) and np.isnan(scores["dice_permuted"]) and np.isnan(scores["ratio"])


def test_dice():
    a, b = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice(a, b) == pytest.approx(2 / 3) and dice(a, a) == 1 and np.isnan(dice(a & False, b & False))


# ----------------------------------------------------------------------------------------------------------------------
# Intensities and sharpness


def test_kl_of_histograms():
    rng = np.random.default_rng(0)
    real = rng.normal(0, 1, 20_000)
    assert lesion_histogram_kl(real, real) == 0
    same, shifted, far = (lesion_histogram_kl(real, rng.normal(mean, 1, 20_000)) for mean in (0, 1, 3))
    assert same < 0.01 and same < shifted < far
    # KL between N(0,1) and N(1,1) is 1/2 in closed form; 64 smoothed bins come close.
    assert shifted == pytest.approx(0.5, rel=0.1)
    collapsed = lesion_histogram_kl(real, np.full(20_000, 0.1))
    assert collapsed > 2 and np.isfinite(collapsed)
    assert lesion_histogram_kl(np.ones(5), np.ones(7)) == 0


def test_kl_is_not_symmetric_and_weighs_by_the_real_histogram():
    counts_p, counts_q = np.array([900, 100]), np.array([500, 500])
    p, q = (np.repeat([0.0, 1.0], counts) for counts in (counts_p, counts_q))
    forwards, backwards = lesion_histogram_kl(p, q, num_bins=2), lesion_histogram_kl(q, p, num_bins=2)

    def smoothed(counts):
        smooth = scipy.ndimage.gaussian_filter1d(counts.astype(float), 1.0, mode="reflect") + 0.5
        return smooth / smooth.sum()

    assert forwards == pytest.approx(reference.kl(smoothed(counts_p), smoothed(counts_q)), rel=1e-9)
    assert backwards == pytest.approx(reference.kl(smoothed(counts_q), smoothed(counts_p)), rel=1e-9)
    assert forwards != pytest.approx(backwards, rel=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# A whole synthesizer


def test_a_trained_synthesizer_is_measured_better_than_an_untrained_one(tmp_path):
    slices = ToySlices(num_slices=16)

    def train(**changes):
        return pretrain(build_toy(noise=False), slices, tmp_path, steps=120, samples_every=999, **changes)

    trained = measure_synthesizer(train(), slices, num_images=16)
    untrained = measure_synthesizer(build_toy(noise=False).eval(), slices, num_images=16)
    assert trained["ratio"] > 0.9 and trained["dice_permuted"] < 0.4 and trained["drawable"] == 1
    assert untrained["ratio"] < 0.5
    assert trained["lesion_intensity_kl"] < 0.5 * untrained["lesion_intensity_kl"]
    assert trained == measure_synthesizer(train(resume=True), slices, num_images=16)
