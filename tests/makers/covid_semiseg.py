"""A tiny tree in the layout of the public COVID-SemiSeg release, drawn from ellipses.

Rows run from the patient's right to the left in all slices, columns from anterior to posterior, except in the
`coronacases` volumes, which are mirrored and dark, as in the release.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NUM_LABELLED = 4
NUM_TEST = 2
SLICES_OF = {"Data-1_coronacases_org_001": 4, "Data-1_radiopaedia_org_covid-19-pneumonia-4_85506_1-dcm": 3}
GROUND_GLASS, CONSOLIDATION = (128, 0, 0), (0, 128, 0)


def draw_slice(seed: int, shape: tuple[int, int] = (120, 96)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gray values, lesions (1 ground glass, 2 consolidation) and lungs (1 left, 2 right), each [H, W] uint8."""
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / height, x / width

    def ellipse(cy: float, cx: float, ry: float, rx: float) -> np.ndarray:
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

    picture = np.full(shape, 215.0)
    lungs = np.zeros(shape, np.uint8)
    lungs[ellipse(0.27, 0.5, 0.2, 0.42)] = 2
    lungs[ellipse(0.73, 0.5, 0.2, 0.42)] = 1
    lungs[ellipse(0.56, 0.3, 0.16, 0.22)] = 0                       # the heart reaches to the left
    picture[lungs > 0] = 45
    picture[ellipse(0.5, 0.86, 0.08, 0.1)] = 250                    # vertebra
    lesions = np.zeros(shape, np.uint8)
    for value, gray in ((1, 120), (2, 190)):
        cy, cx = rng.choice([0.25, 0.78]), rng.uniform(0.4, 0.65)
        here = ellipse(cy, cx, rng.uniform(0.06, 0.1), rng.uniform(0.06, 0.12)) & (lungs > 0)
        lesions[here], picture[here] = value, gray
    noise = rng.normal(0, 4, shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8), lesions, lungs


def write_tree(root: Path, has_test: bool = True, has_test_masks: bool = False) -> Path:
    """Write `root/Dataset` and return it."""
    train, test = root / "Dataset" / "TrainingSet", root / "Dataset" / "TestingSet"
    for index in range(NUM_LABELLED):
        picture, lesions, _ = draw_slice(index, (120 + 2 * index, 96 + index))
        for folder in (train / "LungInfection-Train" / "Doctor-label", train / "MultiClassInfection-Train"):
            _save(picture, folder / "Imgs" / f"{index}.jpg", quality=95)
        _save((lesions > 0).astype(np.uint8) * 255, train / "LungInfection-Train" / "Doctor-label" / "GT"
              / f"{index}.png")
        _save(colour(lesions), train / "MultiClassInfection-Train" / "GT" / f"{index}.png")
    for volume, num_slices in SLICES_OF.items():
        for index in range(1, num_slices + 1):
            picture = draw_slice(100 + index)[0]
            if "coronacases" in volume:
                picture = (picture[:, ::-1] * 0.45).astype(np.uint8)
            _save(picture, train / "LungInfection-Train" / "Pseudo-label" / "Imgs" / f"{volume}_{index}.jpg",
                  quality=95)
    for index in range(NUM_TEST if has_test else 0):
        picture, lesions, _ = draw_slice(200 + index)
        for folder in (test / "LungInfection-Test", test / "MultiClassInfection-Test"):
            _save(picture, folder / "Imgs" / f"{50 + index}.jpg", quality=95)
        if has_test_masks:
            _save((lesions > 0).astype(np.uint8) * 255, test / "LungInfection-Test" / "GT" / f"{50 + index}.png")
            _save(colour(lesions), test / "MultiClassInfection-Test" / "GT" / f"{50 + index}.png")
    return root / "Dataset"


def colour(lesions: np.ndarray) -> np.ndarray:
    return np.array([(0, 0, 0), GROUND_GLASS, CONSOLIDATION], np.uint8)[lesions]


def _save(pixels: np.ndarray, path: Path, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
