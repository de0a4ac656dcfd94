"""Sets of images on disk, and which of them can be compared."""

import numpy as np
import pytest

from nnunet_synth.errors import UserError
from nnunet_synth.quality.image_set import ImageStore, check_comparable
from tests.quality.sets import image_set


def test_what_is_stored_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(0, 500, (5, 2, 16, 20)).astype(np.float32), rng.integers(0, 3, (5, 16, 20))
    store = ImageStore("set", tmp_path / "set")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        store.add(image, label if number else None, f"case_{number // 2}")
    found = store.finish("nowhere", has_labels=True)
    assert np.array_equal(found.images, images) and np.array_equal(found.labels[1:], labels[1:])
    assert not found.labels[0].any() and found.cases == ["case_0", "case_0", "case_1", "case_1", "case_2"]
    assert found.shape == (2, 16, 20) and [len(found.images[part]) for part in found.batches(2)] == [2, 2, 1]


def test_images_can_be_resized(tmp_path):
    store = ImageStore("set", tmp_path / "set", size=16)
    checkerboard = (np.indices((64, 64)).sum(0) % 2).astype(np.float32)[None]
    store.add(checkerboard, np.ones((64, 64)), "fine")
    store.add(np.ones((1, 20, 30)), None, "other")
    found = store.finish("nowhere", has_labels=True)
    assert found.shape == (1, 16, 16) and (found.labels[0] == 1).all()
    assert np.abs(found.images[0][0, 1:-1, 1:-1] - 0.5).max() < 0.05        # smoothed, not picked


def test_images_of_mixed_sizes(tmp_path):
    store = ImageStore("set", tmp_path / "set")
    store.add(np.zeros((1, 32, 32)), None, "first")
    with pytest.raises(UserError, match="set mixes images of different sizes: second has 32 × 40.*--size 32"):
        store.add(np.zeros((1, 32, 40)), None, "second")
    with pytest.raises(UserError, match="third has 32 × 32 pixels and 3 channels"):
        store.add(np.zeros((3, 32, 32)), None, "third")


def test_tiny_images_and_single_ones_are_refused(tmp_path):
    store = ImageStore("set", tmp_path / "set")
    with pytest.raises(UserError, match="at least 16"):
        store.add(np.zeros((1, 8, 40)), None, "tiny")
    store.add(np.zeros((1, 16, 16)), None, "first")
    with pytest.raises(UserError, match=r"holds 1 image\(s\).*two or more"):
        store.finish("nowhere", has_labels=False)


def test_only_sets_of_one_kind_are_compared():
    real = image_set("real", np.zeros((3, 32, 32)))
    check_comparable([real, image_set("good", np.zeros((2, 32, 32)))])
    for other, words in ((np.zeros((3, 16, 16)), "16 × 16.*32 × 32.*--size 32"),
                         (np.zeros((3, 2, 32, 32)), r"2 channel\(s\)"), (np.zeros((1, 32, 32)), "two or more")):
        with pytest.raises(UserError, match=words):
            check_comparable([real, image_set("other", other)])
