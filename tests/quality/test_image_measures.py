"""What single images tell, average images, histograms and the map."""

import imagecodecs
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nnunet_synth.evaluation.sharpness import high_frequency_share, variance_of_laplacian
from nnunet_synth.quality.average_image import average_image, lossless_jpeg_size
from nnunet_synth.quality.embedding_map import embed
from nnunet_synth.quality.histograms import (
    histogram_of,
    intensity_histogram,
    lesion_edges,
    lesion_values,
    window_edges,
)
from nnunet_synth.quality.image_measures import measure_images
from nnunet_synth.quality.noise import noise_level_bm3d, noise_level_nlm
from nnunet_synth.quality.window import Window
from nnunet_synth.superpixels import slic, under_segmentation_error
from tests.quality.sets import image_set

WINDOW = Window(-1000.0, 1000.0)


@pytest.fixture
def images():
    """Twenty images of 24 × 24 with two channels, noise of growing strength; every second one with a lesion."""
    rng = np.random.default_rng(0)
    images = np.stack([rng.normal(0, 20 * (1 + number), (2, 24, 24)) for number in range(20)])
    labels = np.zeros((20, 24, 24), np.uint8)
    labels[::2, 4:12, 4:12] = 1
    images[::2, :, 4:12, 4:12] += 400
    return image_set("set", images, labels)


def test_every_measure_is_taken_in_the_window(images):
    measures = measure_images(images, WINDOW, num_probed=3)
    unit = WINDOW.to_unit(torch.from_numpy(images.images))
    assert np.array_equal(measures.values["variance_of_laplacian"], variance_of_laplacian(unit).numpy())
    assert np.array_equal(measures.values["high_frequency_share"], high_frequency_share(unit).numpy())
    probed = unit[[0, 10, 19]].numpy()          # evenly spread; NumPy rounds 9.5 to the even number
    for name, level in (("noise_nlm", noise_level_nlm), ("noise_bm3d", noise_level_bm3d)):
        wanted = [np.mean([level(channel) for channel in image]) for image in probed]
        np.testing.assert_allclose(measures.values[name], wanted)
    with_lesions = [0, 8, 18]                   # of those with lesions, 0, 2, …, 18
    wanted = [under_segmentation_error(slic(unit[[index]], 24 * 24 // 16),
                                       torch.from_numpy(images.labels[[index]]).long()).item()
              for index in with_lesions]
    np.testing.assert_allclose(measures.values["under_segmentation"], wanted)
    assert measures.mean("noise_nlm") == measures.values["noise_nlm"].mean()


def test_without_labels_there_is_no_under_segmentation(images):
    measures = measure_images(image_set("set", images.images), WINDOW, num_probed=1)
    assert len(measures.values["under_segmentation"]) == 0 and np.isnan(measures.mean("under_segmentation"))
    assert np.isnan(measures.deviation("noise_nlm"))


# ----------------------------------------------------------------------------------------------------------------------
# The average image


def test_the_average_is_that_of_all_images_cut_off_at_the_window():
    images = image_set("set", np.stack([np.full((16, 16), value) for value in (-5000, 0, 500, 1500)]))
    assert (average_image(images, WINDOW) == round((0 + 0.5 + 0.75 + 1) / 4 * 255)).all()
    colours = image_set("set", np.stack([np.full((3, 16, 16), value) for value in (0, 500)]))
    assert average_image(colours, WINDOW).shape == (16, 16, 3)


def test_the_size_is_that_of_a_lossless_jpeg():
    picture = np.random.default_rng(0).integers(0, 255, (32, 40)).astype(np.uint8)
    encoded = imagecodecs.jpeg8_encode(picture, lossless=True)
    assert b"\xff\xc3" in encoded                                       # SOF3: lossless, sequential
    assert np.array_equal(imagecodecs.jpeg8_decode(encoded), picture)
    assert lossless_jpeg_size(picture) == len(encoded) > 0.9 * picture.size
    assert lossless_jpeg_size(np.stack([picture] * 3, -1)) > len(encoded)


def test_varied_images_have_a_smaller_average():
    """What ImageNet's measure claims: without noise, the blurrier the average, the smaller the file."""
    texture = 400 * gaussian_filter(np.random.default_rng(0).normal(0, 1, (30, 64, 64)), (0, 1, 1)) * 3
    varied, same = (lossless_jpeg_size(average_image(image_set("set", images), WINDOW))
                    for images in (texture, np.repeat(texture[:1], 30, 0)))
    assert varied < 0.8 * same


# ----------------------------------------------------------------------------------------------------------------------
# Histograms


def test_histograms_count_every_pixel_of_the_first_channel(images):
    edges = window_edges(WINDOW)
    shares = intensity_histogram(images, edges)
    clipped = np.clip(images.images[:, 0], -1000, 1000)
    np.testing.assert_allclose(shares, np.histogram(clipped, edges)[0] / clipped.size)
    assert shares.sum() == pytest.approx(1)


def test_lesion_values_are_those_below_the_labels(images):
    found = lesion_values(images)
    assert np.array_equal(np.sort(found), np.sort(images.images[:, 0][images.labels > 0]))
    assert len(lesion_values(image_set("set", images.images))) == 0
    shares = histogram_of(found, lesion_edges([found, found + 1]))
    assert shares.sum() == pytest.approx(1)


def test_of_very_many_lesion_pixels_a_random_part_is_kept(images, monkeypatch):
    monkeypatch.setattr("nnunet_synth.quality.histograms.MAX_VALUES", 200)
    found = lesion_values(images)
    assert 120 < len(found) < 280 and set(found) <= set(images.images[:, 0][images.labels > 0])


# ----------------------------------------------------------------------------------------------------------------------
# The map


def test_sets_that_differ_lie_apart_and_equal_ones_mix():
    rng = np.random.default_rng(0)
    maps = embed({"a": rng.normal(0, 1, (40, 20)), "b": rng.normal(0, 1, (40, 20)), "c": rng.normal(6, 1, (40, 20))})
    assert list(maps) == ["PCA", "t-SNE"]
    for points in maps.values():
        assert {name: found.shape for name, found in points.items()} == dict.fromkeys("abc", (40, 2))
        middle = {name: found.mean(0) for name, found in points.items()}
        spread = np.linalg.norm(points["a"] - middle["a"], axis=1).mean()
        assert np.linalg.norm(middle["a"] - middle["b"]) < spread < np.linalg.norm(middle["a"] - middle["c"])


def test_too_few_points_make_no_map():
    assert embed({"a": np.zeros((3, 5)), "b": np.ones((2, 5))}) == {}
