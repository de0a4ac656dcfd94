"""The report of a comparison, and the results behind it."""

import json
import math

import numpy as np
import pytest

from nnunet_synth.errors import UserError
from nnunet_synth.quality.classifier import ClassifierOptions
from nnunet_synth.quality.measure import QualityOptions, measure_quality
from nnunet_synth.quality.report import GAP, grid, write_quality
from nnunet_synth.quality.window import Window
from tests.evaluation.browser import chromium
from tests.quality.sets import image_set, toy_extractor

WINDOW = Window(0.0, 1.0, "given")


def pictures(name, level, number=24, labelled=True, seed=0):
    """Noise with a bright square each, a case for every second image."""
    rng = np.random.default_rng(seed)
    images, labels = rng.normal(0.3, 0.05, (number, 40, 40)), np.zeros((number, 40, 40), np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = rng.integers(4, 24, 2)
        image[top:top + 10, left:left + 10] = level + rng.normal(0, 0.05, (10, 10))
        label[top:top + 10, left:left + 10] = 1
    return image_set(name, images, labels if labelled else None, [f"{name}_{index // 2}" for index in range(number)])


@pytest.fixture(scope="module")
def quality():
    """Two methods, one of them too bright and without labels; all networks are toys or trained for a few steps."""
    real = pictures("real", 0.7)
    methods = [pictures("near <&>", 0.7, seed=1), pictures("a set with a rather long name", 0.95, 20, False, seed=2)]
    metadata = {case: {"sex": "F" if number % 2 else "M", "age": str(30 + 4 * number)}
                for number, case in enumerate(dict.fromkeys(real.cases))}
    options = QualityOptions(resolutions=(75, 96), num_probed=3,
                             classifier=ClassifierOptions("resnet18", steps=3, batch_size=6, resolution=40))
    return measure_quality(real, methods, WINDOW, [toy_extractor("segmentation"), toy_extractor("imagenet", 5.0)],
                           {}, options, metadata)


@pytest.fixture
def written(quality, tmp_path):
    return write_quality(quality, tmp_path / "out", {"device": "cpu", "options": {"seed": 0}})


def test_every_network_meets_every_resolution(quality):
    assert list(quality.extractors) == ["segmentation", "imagenet", "real-or-synthetic", "sex", "age"]
    assert quality.missing == {}
    assert [(cell.extractor, cell.resolution) for cell in quality.cells] == [
        (name, resolution) for name in quality.extractors for resolution in (75, 96)]
    near, bright = (method.name for method in quality.methods)
    assert len(quality.fid[near]) == 10 and max(max(scores) for scores in quality.fid.values()) == 1
    assert set(quality.deviation) == {"real", near, bright}
    assert all(cell.fid[near] < cell.fid[bright] for cell in quality.cells if cell.extractor in ("imagenet",
                                                                                                "segmentation"))
    assert 0 < quality.kl[near] < 1 and math.isnan(quality.kl[bright])
    assert [trained.classes for trained in quality.classifiers] == [
        ["real", near, bright], ["F", "M"], ["≤ 44", "45–64", "65–74"]]


def test_the_report_warns_of_few_images(quality):
    assert any("fewer images than features (20 or 24 in a set" in warning for warning in quality.warnings)
    assert any("different numbers of images" in warning for warning in quality.warnings)


def test_the_files_hold_all_numbers(quality, written):
    content = json.loads((written.parent / "quality.json").read_text())
    assert content["extractors"] == quality.extractors and len(content["cells"]) == 10
    assert content["cells"][0]["fid"] == quality.cells[0].fid and content["mm_fid"] == quality.fid
    assert content["sets"]["real"]["cases"] == 12 and content["sets"]["real"]["lesion_kl"] is None
    assert content["sets"]["real"]["average_jpeg_bytes"] == quality.jpeg_bytes["real"]
    assert len(content["mm_fid_tests"]) == 1 and len(content["mm_std_tests"]) == 3
    text = (written.parent / "report.md").read_text()
    for words in ("near <&>", "real halves", "Wilcoxon", "lossless JPEG", "Under-segmentation error",
                  "means and deviations × 5"):
        assert words in text


def test_in_a_browser(quality, written, tmp_path):
    with chromium(tmp_path / "profile", width=1280) as browser:
        browser.open(written)
        assert browser.problems == []
        page, *others = browser.requests
        assert page.startswith("file://") and others and all(url.startswith("data:image/") for url in others)
        shown = browser.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        # Of each set six pictures, an average and a grid; curves of five networks, histograms, maps, three trainings.
        assert shown == [True] * (3 * 8 + 5 + 2 + 2 + 3)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 1280
        sizes = browser.evaluate("[...document.images].map(image => [image.naturalWidth, image.alt])")
        side = 4 * (40 + GAP) - GAP
        assert [side, "real"] in sizes              # a grid of 4 × 4 images, every pixel as it is


def test_a_grid_shows_images_side_by_side(quality):
    picture = grid(quality.real, WINDOW)
    assert picture.shape == (4 * 42 - GAP,) * 2 and picture.dtype == np.uint8
    assert np.array_equal(picture[:40, :40], WINDOW.to_gray(quality.real.images[0, 0]))
    assert (picture[:, 40:42] == 255).all()


# ----------------------------------------------------------------------------------------------------------------------
# What cannot be measured


def test_networks_that_cannot_be_trained_are_named():
    real, other = pictures("real", 0.7, 6), pictures("other", 0.7, 6, seed=1)
    options = QualityOptions(extractors=None, resolutions=(75,), num_probed=1,
                             classifier=ClassifierOptions("resnet18", steps=1, batch_size=2, resolution=40))
    found = measure_quality(real, [other], WINDOW, [], {"imagenet": "no weights"}, options)
    assert set(found.missing) == {"imagenet", "sex", "age"} and found.headline is None
    assert "two classes of sex" in found.missing["sex"]
    assert found.fid == {"other": [1.0]} and found.fid_tests == []


@pytest.mark.parametrize("settings, words", [
    ({"extractors": ["vgg"]}, "--extractors vgg is unknown; known: imagenet, segmentation"),
    ({"resolutions": (64,)}, "at least 75"), ({"resolutions": (128, 128)}, "different numbers"),
    ({"num_probed": 0}, "--num-probed 0")])
def test_mistakes_get_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        QualityOptions(**settings)


def test_what_was_asked_for_and_cannot_be_had():
    real, other = pictures("real", 0.7, 4), pictures("other", 0.7, 4)
    with pytest.raises(UserError, match="--extractors age: no metadata.*--metadata FILE"):
        measure_quality(real, [other], WINDOW, [toy_extractor()], {}, QualityOptions(extractors=["imagenet", "age"]))
    with pytest.raises(UserError, match="no network to extract features with: imagenet: no weights"):
        measure_quality(real, [other], WINDOW, [], {"imagenet": "no weights"}, QualityOptions(extractors=["imagenet"]))


def test_no_fid_headline_from_few_images():
    """As many images as features make a singular covariance: the terminal has KID, the table FID with its caveat."""
    from dataclasses import replace

    from nnunet_synth.commands.quality import summary
    from nnunet_synth.quality.report import _overview
    sets = [pictures("real", 0.7), pictures("drawn", 0.7, 20, seed=1)]
    quality = measure_quality(sets[0], sets[1:], WINDOW, [toy_extractor("imagenet")], {},
                              QualityOptions(["imagenet"], (75,), num_probed=1))
    cell = replace(quality.cells[0], kid=dict.fromkeys(quality.fid, 0.5))
    few, enough = (replace(quality, headline=replace(cell, num_features=number)) for number in (20, 19))
    assert not few.has_enough_for_fid and enough.has_enough_for_fid         # the smallest set has 20
    assert " FID " not in summary(few).split("FID stands in the report only")[0].replace("MM-FID", "")
    assert "KID 0.5" in summary(few) and "): FID " in summary(enough)
    assert "FID ↓" in _overview(few).columns and "do not quote it" in _overview(few).caption
    assert "do not quote it" not in _overview(enough).caption
