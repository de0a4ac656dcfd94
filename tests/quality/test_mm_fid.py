"""The cells of MM-FID and MM-STD, their normalisation and the tests between methods."""

import tracemalloc

import numpy as np
import pytest
import torch

from nnunet_synth.quality import mm_fid
from nnunet_synth.quality.extractor import batch_size_for, resize_batch
from nnunet_synth.quality.measure import QualityOptions, measure_quality
from nnunet_synth.quality.mm_fid import compare, extract, normalise, score_cell, second_half
from nnunet_synth.quality.window import Window
from tests.quality.sets import image_set, toy_extractor
from tests.reference import frechet as reference


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return [image_set(name, rng.normal(shift, deviation, (40, 16, 16)))
            for name, shift, deviation in (("real", 0, 1), ("near", 0.1, 1), ("far", 3, 2))]


def test_a_cell_holds_the_distances_of_the_features(sets):
    extractor = toy_extractor()
    features = {one.name: extractor(one.images, 128).astype(float) for one in sets}
    assert features["real"].shape == (40, 8)
    cell, kept = score_cell(sets[0], sets[1:], extractor, 128)
    assert (cell.extractor, cell.resolution, cell.num_features) == ("toy", 128, 8)
    for name in ("near", "far"):
        assert cell.fid[name] == pytest.approx(reference.frechet_distance(features["real"], features[name]), rel=1e-5)
        assert cell.kid[name] == pytest.approx(reference.kernel_distance(features["real"], features[name]), rel=1e-5)
    for name, found in features.items():
        assert cell.deviation[name] == pytest.approx(found.std(0).mean(), rel=1e-5)
        assert np.array_equal(kept[name].astype(float), found)
    assert cell.floor < cell.fid["far"] and cell.fid["near"] < cell.fid["far"]


def test_images_are_resized_to_the_cell():
    images = torch.rand(2, 1, 20, 30)
    assert resize_batch(images, 128).shape == (2, 1, 128, 128)
    assert resize_batch(images[..., :20], 20) is not None and resize_batch(images, 20).shape[-1] == 20
    fine = torch.from_numpy((np.indices((64, 64)).sum(0) % 2).astype(np.float32))[None, None]
    assert (resize_batch(fine, 16)[..., 1:-1, 1:-1] - 0.5).abs().max() < 0.05       # smoothed, not picked
    assert [batch_size_for(side) for side in (128, 256, 512, 1024)] == [64, 64, 16, 4]


def test_batches_change_nothing(sets, monkeypatch):
    whole = extract(sets[0], toy_extractor(), 128)
    monkeypatch.setattr(mm_fid, "batch_size_for", lambda resolution: 7)
    parts = extract(sets[0], toy_extractor(), 128)
    np.testing.assert_allclose(parts.moments.covariance, whole.moments.covariance, rtol=1e-6)
    assert np.array_equal(parts.kept, whole.kept)


def test_halves_are_halves_of_the_cases():
    cases = [f"case_{number // 5}" for number in range(30)]
    chosen = second_half(cases, seed=3)
    assert chosen.sum() == 15
    assert all(len(set(chosen[start:start + 5])) == 1 for start in range(0, 30, 5))
    assert not np.array_equal(chosen, second_half(cases, seed=4)) and np.array_equal(chosen, second_half(cases, seed=3))
    assert second_half(["one"] * 10, 0).sum() == 5


def test_two_images_are_enough():
    rng = np.random.default_rng(0)
    real, other = (image_set(name, rng.normal(0, 1, (2, 16, 16))) for name in ("real", "other"))
    cell, _ = score_cell(real, [other], toy_extractor(), 128)
    assert cell.fid["other"] > 0 and np.isnan(cell.floor)


def test_ten_thousand_images_take_no_more_memory_than_two_thousand(tmp_path):
    """They lie on the disk; what is kept is bounded."""
    def peak(number):
        images = np.memmap(tmp_path / f"{number}.raw", np.float32, "w+", shape=(number, 1, 16, 16))
        images[:] = np.random.default_rng(0).normal(0, 1, (number, 1, 1, 1))
        images.flush()
        big = image_set("big", images, cases=[f"case_{image % 500}" for image in range(number)])
        tracemalloc.start()
        found = extract(big, toy_extractor(), 75)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.moments.count == number and len(found.kept) == mm_fid.MAX_KEPT
        return highest

    small = peak(2000)
    # The features of 8000 images alone would be 256 kB, the images 8 MB; choices are a few bytes an image.
    assert peak(10_000) - small < 8000 * 25


# ----------------------------------------------------------------------------------------------------------------------
# All cells


def test_four_networks_at_the_published_resolutions_are_16_cells():
    """2⁷ … 2¹⁰ (III.C), unless others are asked for."""
    assert mm_fid.RESOLUTIONS == QualityOptions().resolutions == (128, 256, 512, 1024)
    rng = np.random.default_rng(0)
    real, other = (image_set(name, rng.uniform(0, 1, (4, 40, 40))) for name in ("real", "other"))
    names = ["one", "two", "three", "four"]
    options = QualityOptions(extractors=("imagenet",), num_probed=1)        # none is trained on the spot
    found = measure_quality(real, [other], Window(0.0, 1.0), [toy_extractor(name) for name in names], {}, options)
    assert [(cell.extractor, cell.resolution) for cell in found.cells] == [
        (name, resolution) for name in names for resolution in (128, 256, 512, 1024)]
    assert len(found.fid["other"]) == len(found.deviation["real"]) == len(found.deviation["other"]) == 16


def test_normalisation_by_hand():
    found = normalise({"a": [10.0, 0.2, 0.0], "b": [5.0, 0.4, 0.0], "c": [2.5, 0.1, 0.0]})
    assert found == {"a": [1, 0.5, 0], "b": [0.5, 1, 0], "c": [0.25, 0.25, 0]}


def test_a_method_ten_times_as_bad_has_ten_times_the_score():
    """The released code's norm over the resolutions gives both the same."""
    good = [1.0, 2.0, 4.0, 8.0]
    found = normalise({"good": good, "bad": [10 * value for value in good]})
    assert found["bad"] == [1] * 4 and found["good"] == pytest.approx([0.1] * 4)


def test_pairs_are_tested_over_the_cells():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.6, 16)
    tests = compare({"a": base.tolist(), "b": (base + rng.uniform(0.1, 0.3, 16)).tolist(), "c": base.tolist()})
    assert [(test.first, test.second) for test in tests] == [("a", "b"), ("a", "c"), ("b", "c")]
    first = tests[0]
    assert first.num_cells == 16 and -0.3 < first.difference < -0.1
    assert first.p == pytest.approx(2 / 2 ** 16)            # all 16 differ in one direction
    assert first.p_holm == pytest.approx(3 * first.p) and tests[1].p == 1 and tests[1].difference == 0


def test_one_cell_or_one_method_is_not_tested():
    assert compare({"a": [0.1] * 4}) == []
    single, = compare({"a": [0.1], "b": [0.4]})
    assert single.difference == pytest.approx(-0.3) and np.isnan(single.p) and np.isnan(single.p_holm)
