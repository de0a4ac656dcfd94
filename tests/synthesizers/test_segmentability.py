"""Acceptance: after a few hundred steps on the phantom, lesions that were asked for can be found in what was drawn."""

import pytest

from benchmarks.segmentability import run


@pytest.mark.slow
def test_tiny_sean_draws_lesions_that_can_be_found() -> None:
    """The short version of benchmarks/segmentability.py: labels of patients that were never seen in training.

    Nothing here is learned but the synthesizer: the segmenters are intensity intervals inside the lungs.
    """
    result = run("sean", "tiny", steps=300)
    for segmenter in ("fitted_interval", "given_interval"):
        measured = result[segmenter]
        assert measured["ratio"] >= 0.9, measured
        assert measured["dice_permuted"] < 0.3, measured
    # Painting constants would satisfy the segmenters as well.
    assert 0.5 <= result["sharpness_ratio"] <= 2, result["sharpness_ratio"]
    assert result["lesion_mean_hu_between_two_styles"] > 5, "another style code must give lesions of another density"
