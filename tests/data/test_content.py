"""What two images show: equal voxels in other clothes, near-copies, and neighbours that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own convention
from scipy.ndimage import gaussian_filter

from nnunet_synth.data.content import (
    NEARLY_EQUAL,
    Content,
    cells_along,
    equal_contents,
    fine_structure,
    mirrorings,
    near_copies,
    voxels_sha256,
)
from tests.reference import content as reference


def chest_like(seed: int, shape: tuple[int, ...] = (1, 12, 40, 44)) -> np.ndarray:
    """Structure of several sizes on a common shape, HU."""
    rng = np.random.default_rng(seed)
    body = np.hypot(*np.meshgrid(np.linspace(-1, 1, shape[2]), np.linspace(-1, 1, shape[3]), indexing="ij")) < 0.8
    texture = sum(width * gaussian_filter(rng.standard_normal(shape[1:]), width) for width in (1, 2, 4))
    return np.round(np.where(body, 300 * texture, -1000))[None].astype(np.int16)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    own, other = (fine_structure(image[0]).astype(np.float64) for image in (first, second))
    return max(float((view * other).sum()) for view in mirrorings(own))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64, ">f4", ">i2"])
def test_the_type_does_not_matter(dtype: object) -> None:
    image = chest_like(0)
    assert voxels_sha256(image.astype(dtype)) == voxels_sha256(image)
    assert voxels_sha256(np.asfortranarray(image)) == voxels_sha256(image)


def test_minus_zero_is_zero() -> None:
    assert voxels_sha256(np.array([[[[-0.0, 1.0]]]])) == voxels_sha256(np.array([[[[0, 1]]]]))


@pytest.mark.parametrize("change", [
    lambda image: image[..., ::-1], lambda image: image.reshape(1, 40, 12, 44), lambda image: np.repeat(image, 2, 0),
    lambda image: image + (np.arange(image.size) == 777).reshape(image.shape)],
    ids=["mirrored", "another shape", "two channels", "one voxel"])
def test_what_has_another_hash(change) -> None:
    image = chest_like(0)
    assert voxels_sha256(change(image)) != voxels_sha256(image)


@pytest.mark.parametrize("shape", [(1, 7, 9), (10, 30, 41), (3, 70, 90), (25, 26, 27)])
def test_structure_is_that_of_the_equation(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    cells = cells_along(shape)
    assert np.prod(cells) <= 8192 and fine_structure(image).shape == cells
    np.testing.assert_allclose(fine_structure(image).astype(float), reference.fine_structure(image, cells), atol=2e-4)


def test_cells() -> None:
    assert cells_along((1, 512, 512)) == (1, 64, 64) and cells_along((300, 512, 512)) == (20, 20, 20)
    assert cells_along((10, 256, 216)) == (10, 28, 28) and cells_along((4, 48, 48)) == (4, 45, 45)


COPIES = {
    "mirrored left to right": lambda image: image[..., ::-1],
    "mirrored up and down": lambda image: image[:, :, ::-1],
    "mirrored along the slices": lambda image: image[:, ::-1],
    "turned by 180 degrees": lambda image: image[..., ::-1, ::-1],
    "other unit": lambda image: image * 0.5 + 1024,
    "8 bit": lambda image: np.round((image + 1000.0) / 3000 * 255),
    "window": lambda image: np.clip(image, -1350, np.quantile(image, 0.99)),
    "a few voxels": lambda image: np.where(np.arange(image.size).reshape(image.shape) % 9973 == 5, 3000, image),
    "padding": lambda image: np.where(image == -1000, -3024, image),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_near_copies_are_named(change) -> None:
    image = chest_like(0)
    contents = {"copy": Content.of(change(image)), "stranger": Content.of(chest_like(9))}
    (name, other, found), = near_copies(contents, {"a": Content.of(image), "b": Content.of(chest_like(1))})
    assert (name, other) == ("copy", "a") and NEARLY_EQUAL <= found <= 1
    assert found == pytest.approx(correlation(image, change(image)), abs=2e-3)


def test_resampled_copies_are_named() -> None:
    image = chest_like(0, (1, 30, 80, 80))
    twice = image.repeat(2, 2).repeat(2, 3)
    assert [pair[:2] for pair in near_copies({"copy": Content.of(twice)}, {"a": Content.of(image)})] == [("copy", "a")]


def test_strangers_of_one_outline_are_not() -> None:
    images = {str(seed): Content.of(chest_like(seed)) for seed in range(12)}
    for name, content in images.items():
        assert not list(near_copies({name: content}, {other: images[other] for other in images if other != name}))


def test_equal_voxels_are_told_apart_from_near_copies() -> None:
    image = Content.of(chest_like(0))
    assert not list(near_copies({"copy": image}, {"a": image}))
    assert equal_contents({"a": image, "b": Content.of(chest_like(1)), "c": image}) == [["a", "c"]]


def test_black_images_are_no_copies_of_each_other() -> None:
    black = Content.of(np.zeros((1, 1, 20, 20)))
    assert black.structure is None and equal_contents({"a": black, "b": black}) == []
    assert not list(near_copies({"a": black}, {"b": black, "c": Content.of(chest_like(0))}))


def test_an_image_of_two_values() -> None:
    image = np.zeros((1, 1, 20, 20))
    image[..., 3:9, 5:8] = 1
    assert correlation(image, image[..., ::-1]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("image", [chest_like(0), np.zeros((2, 1, 5, 5))])
def test_on_disk(image: np.ndarray) -> None:
    content = Content.of(image)
    stored = Content.from_json(json.loads(json.dumps(content.to_json())))
    assert (stored.voxels, stored.shape) == (content.voxels, content.shape)
    assert np.array_equal(stored.structure, content.structure) if content.structure is not None \
        else stored.structure is None


@pytest.mark.parametrize("damage", [
    {}, {"structure": "!"}, {"structure": "AAAA"}, {"shape": "x"}, {"shape": []}, {"shape": [1, 0, 5, 5]},
    {"structure": 3}, {"shape": None}], ids=str)
def test_damaged_notes_are_no_contents(damage: dict) -> None:
    assert Content.from_json({**Content.of(chest_like(0)).to_json(), **damage} if damage else {}) is None


# -- real images -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chests(shared_data: Path) -> dict[str, np.ndarray]:
    files = sorted((shared_data / "covid20").glob("images*/*_0000.nii.gz"))
    return {file.name.removesuffix("_0000.nii.gz"): sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[None]
            for file in files}


def test_of_twenty_chests_two_show_one_scan(chests: dict[str, np.ndarray]) -> None:
    """radiopaedia_10…1 and …3 are reconstructions of one scan with other slices; no other two are alike."""
    contents = {name: Content.of(image) for name, image in chests.items()}
    found = {frozenset(pair[:2]) for name in contents
             for pair in near_copies({name: contents[name]}, {other: contents[other] for other in contents if
                                                              other != name})}
    assert found == {frozenset({"radiopaedia_10_85902_1", "radiopaedia_10_85902_3"})}


@pytest.mark.parametrize("padding", [None, -3024], ids=["as they are", "padded around a circle"])
def test_neighbouring_slices_are_no_copies(chests: dict[str, np.ndarray], padding: int | None) -> None:
    axis = np.linspace(-1, 1, 128)
    outside = np.hypot(axis[:, None], axis) > 1
    slices = {}
    for name in list(chests)[:6]:
        for z, image in enumerate(chests[name][0]):
            shown = image if padding is None else np.where(outside, padding, image)
            slices[f"{name}_{z}"] = Content.of(shown[None, None])
    for odd in (0, 1):
        some = {name: content for name, content in slices.items() if int(name.split("_")[-1]) % 2 == odd}
        assert not list(near_copies(some, {name: slices[name] for name in slices.keys() - some}))


def test_a_mirrored_or_windowed_chest_is_named(chests: dict[str, np.ndarray]) -> None:
    others = {name: Content.of(image) for name, image in list(chests.items())[:4]}
    for change in (lambda image: image[:, ::-1, :, ::-1], lambda image: np.clip(image, -1350, 80),
                   lambda image: np.round((image + 1200) / 5)):
        copies = {f"copy of {name}": Content.of(change(chests[name])) for name in others}
        assert {pair[:2] for pair in near_copies(copies, others)} == {(f"copy of {name}", name) for name in others}
