"""The worst, the median and the best case, with the contours of truth and prediction on the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

from nnunet_synth.data.raw_images import read_image
from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.report import Gallery, Picture
from nnunet_synth.evaluation.segmentation import LabelMap

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

TRUTH, PREDICTION = (86, 180, 233), (230, 80, 0)        # blue and orange, for colour-blind readers too
SIDE = 256              # pixels of the report that the longer side of a picture has at least
MARGIN = 0.25           # of the lesions' extent, shown around them
SMALLEST_VIEW = 0.4     # of the image's longer side: a lesion of five pixels is shown with its surroundings


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies: its channels in order, its truth, and method → the prediction of the run that is shown."""

    images: Sequence[Path]
    truth: Path
    predictions: Mapping[str, Path]


def pick_cases(scores: Mapping[str, float], lower_is_better: bool = False) -> dict[str, str]:
    """"worst", "median" (the worse of two in the middle) and "best" → case, as far as there are so many.

    Cases without a score (NaN) are passed over; equal ones come in the order of their names.
    """
    known = {case: -score if lower_is_better else score for case, score in scores.items() if not math.isnan(score)}
    order = sorted(known, key=lambda case: (known[case], case))
    if len(order) < 3:
        return dict(zip([[], ["only"], ["worst", "best"]][len(order)], order, strict=True))
    return {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}


def case_galleries(scores: Mapping[str, Mapping[str, float]], chosen_by: str, locate: Callable[[str], CaseFiles],
                   reader: BaseReaderWriter, measure: str = "DSC", values: Sequence[int] = (1,),
                   window: tuple[float, float] | None = None, lower_is_better: bool = False) -> list[Gallery]:
    """A row of pictures for the worst, the median and the best case of one method, each method in it.

    Args:
        scores: method → case → score of the run that is shown.
        chosen_by: the method whose scores decide which cases are shown.
        locate: case → its files.
        reader: nnU-Net's, for images and label maps (`segmentation.reader_of`).
        measure: what the scores are called in captions.
        values: the labels that make up the class.
        window: intensities shown as black and white (lung CT: −1250, 250 HU); None = what is in the picture.

    Raises:
        UserError: a file is missing or unreadable, or the files of a case do not lie on the same voxels.
    """
    galleries = []
    for name, case in pick_cases(scores[chosen_by], lower_is_better).items():
        captions = {method: f"{method}: {measure} {_shown(of_method[case])}" for method, of_method in scores.items()}
        galleries.append(_gallery(f"{name.capitalize()} case of {chosen_by}, {case}", locate(case), captions, reader,
                                  values, window))
    return galleries


def _shown(score: float) -> str:
    return "–" if math.isnan(score) else f"{score:.3f}"


def _gallery(title: str, files: CaseFiles, captions: Mapping[str, str], reader: BaseReaderWriter,
             values: Sequence[int], window: tuple[float, float] | None) -> Gallery:
    truth_map = LabelMap.read(files.truth, reader)
    maps = {method: LabelMap.read(path, reader) for method, path in files.predictions.items()}
    for label_map in maps.values():
        label_map.check_same_grid(truth_map)
    image = np.moveaxis(read_image(files.images, reader)[0][0], truth_map.slice_axis, 0)
    truth = _mask(truth_map, values)
    if image.shape != truth.shape:
        raise UserError(f"{files.images[0]} and {files.truth} differ in shape: {image.shape} and {truth.shape}")
    predictions = {method: _mask(label_map, values) for method, label_map in maps.items()}
    number = widest_slice(truth, predictions.values())
    truth, predictions = truth[number], {method: mask[number] for method, mask in predictions.items()}
    view = view_around(np.logical_or.reduce([truth, *predictions.values()]))
    gray = to_gray(image[number][view], window)
    pictures = [Picture.from_array(enlarged(gray), "image")] + [
        Picture.from_array(contoured(gray, truth[view], mask[view]), captions[method])
        for method, mask in predictions.items()]
    where = f", slice {number + 1} of {len(image)}" if len(image) > 1 else ""
    return Gallery(pictures, "Blue: truth; orange: prediction.", f"{title}{where}")


def _mask(label_map: LabelMap, values: Sequence[int]) -> np.ndarray:
    """bool [Z, Y, X], also of a map of one slice."""
    mask = np.isin(label_map.array, values)
    return mask[None] if mask.ndim == 2 else mask


def widest_slice(truth: np.ndarray, predictions: Iterable[np.ndarray]) -> int:
    """The slice of bool [Z, Y, X] with the most truth; where there is none, with the most of any prediction."""
    shown = truth if truth.any() else np.logical_or.reduce(list(predictions))
    return int(shown.sum((1, 2)).argmax())


def view_around(mask: np.ndarray) -> tuple[slice, slice]:
    """The part of the picture [Y, X] that shows the mask and its surroundings, square as far as the picture is."""
    rows, columns = mask.nonzero()
    if not len(rows):
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    side = round(max(extent * (1 + 2 * MARGIN), SMALLEST_VIEW * max(mask.shape)))
    return _span(rows, side, mask.shape[0]), _span(columns, side, mask.shape[1])


def _span(positions: np.ndarray, side: int, length: int) -> slice:
    """`side` pixels around the middle of the positions, moved into the picture."""
    start = (int(positions.min()) + int(positions.max()) + 1 - side) // 2
    start = max(0, min(start, length - side))
    return slice(start, min(start + side, length))


def to_gray(image: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """[Y, X] → uint8; without a window, from the 0.5th to the 99.5th percentile of what is shown."""
    low, high = window or np.percentile(image, (0.5, 99.5))
    return np.clip((image - low) / max(high - low, 1e-6) * 255, 0, 255).round().astype(np.uint8)


def contoured(gray: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """uint8 [Y, X] and two masks → uint8 [e·Y, e·X, 3], enlarged, with contours.

    That of the truth runs just outside its mask, that of the prediction just inside: where the masks agree, both are
    seen.
    """
    picture = np.repeat(enlarged(gray)[..., None], 3, axis=2)
    truth, prediction = enlarged(truth), enlarged(prediction)
    thickness = max(1, _factor(gray.shape) // 2)
    picture[binary_dilation(truth, iterations=thickness) & ~truth] = TRUTH
    picture[prediction & ~binary_erosion(prediction, iterations=thickness)] = PREDICTION
    return picture


def enlarged(picture: np.ndarray) -> np.ndarray:
    """[Y, X], every pixel repeated until the longer side has SIDE pixels or more."""
    factor = _factor(picture.shape)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _factor(shape: Sequence[int]) -> int:
    return math.ceil(SIDE / max(shape))
