"""How well a segmentation matches the truth: overlap, surfaces and lesions of each case and class.

    DSC, precision, recall   of voxels
    NSD, HD95                of surfaces
    lesion_F1                of lesions, see `lesions.py`

and, over all cases, precision and recall of finding a class in a slice (LcGAN; see `detection.py`).

Surfaces follow DeepMind's `surface-distance` (Nikolov et al. 2021, arXiv:1809.04430): a surface element lies at every
corner of the voxel grid around which the 2×2(×2) voxels are not all equal, has the area (in 2D: the length) of the
marching-cubes surface through it, and the distance to the nearest element of the other surface, in mm. NSD is the area
within the tolerance over the whole area of both surfaces, HD95 the larger of the two 95th percentiles by area.

What lies in one plane is measured in that plane: 2D files, in the mm of their header (pictures: pixels), and volumes of
one slice, whose flat faces bound the scan, not the lesion.

Empty cases:
    both empty: nothing to find and nothing found; every measure is NaN and left out of the mean (as in nnU-Net);
    one empty: HD95 is the diagonal of the image in mm, the largest distance there can be, and all others are 0
        (precision and recall too, where one of them would be 0/0).
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import distance_transform_edt

from nnunet_synth.atomic import write_json, write_text
from nnunet_synth.csv_file import to_csv
from nnunet_synth.data.raw_images import check_file, read_segmentation
from nnunet_synth.data.voxel_grid import is_picture, stated_spacing
from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.detection import (
    LOWEST_DICE,
    Detections,
    count_detections,
    smallest_false_positive_of,
)
from nnunet_synth.evaluation.lesions import LesionCounts, count_lesions
from nnunet_synth.evaluation.overlap import dice
from nnunet_synth.progress import progress

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

METRICS = ("DSC", "NSD", "HD95", "precision", "recall", "lesion_F1")
LOWER_IS_BETTER = ("HD95",)
DIGITS = {metric: 2 if metric == "HD95" else 3 for metric in METRICS}        # decimals worth showing
COUNTS = ("true_lesions", "found_lesions", "predicted_lesions", "confirmed_lesions")      # what lesion_F1 was made of
DETECTIONS = ("found_slices", "falsely_found_slices", "missed_slices")


@dataclass(frozen=True)
class Criteria:
    """What the measures call near, found and a lesion.

    Attributes:
        tolerance: of the NSD, in mm; in pixels for pictures (PNG), whose spacing is 1.
        lesion_overlap: the share of a lesion that must be covered, 0 < share ≤ 1.
        min_lesion_volume: mm³ (one slice: mm², pictures: pixels); smaller components are no lesions.
        smallest_false_positive: pixels; a class found in a slice without it counts from this area on. None = LcGAN's
            200 pixels of 512², the same share of a slice of any size.
        lowest_dice: a class counts as found in a slice that has it from this DSC of the slice on.

    Raises:
        UserError: a value out of its range.
    """

    tolerance: float = 1.0
    lesion_overlap: float = 0.1
    min_lesion_volume: float = 0.0
    smallest_false_positive: int | None = None
    lowest_dice: float = LOWEST_DICE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UserError(f"the tolerance is a distance in mm, 0 or more, not {self.tolerance}")
        if not 0 < self.lesion_overlap <= 1:
            raise UserError(f"the lesion overlap is a share above 0 and up to 1, not {self.lesion_overlap}")
        if not (math.isfinite(self.min_lesion_volume) and self.min_lesion_volume >= 0):
            raise UserError(f"the minimal lesion volume is in mm³, 0 or more, not {self.min_lesion_volume}")
        if self.smallest_false_positive is not None and self.smallest_false_positive < 0:
            raise UserError(f"the smallest false detection is an area in pixels, 0 or more, not "
                            f"{self.smallest_false_positive}")
        if not 0 < self.lowest_dice <= 1:
            raise UserError(f"the lowest DSC of a detection is above 0 and up to 1, not {self.lowest_dice}")


def headings(tolerance: float, unit: str = "mm") -> dict[str, str]:
    """What tables and axes call each of METRICS."""
    return {"DSC": "DSC", "NSD": f"NSD at {tolerance:g} {unit}", "HD95": f"HD95 ({unit})", "precision": "precision",
            "recall": "recall", "lesion_F1": "lesion-wise F1"}


# The metrics --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from each element of one surface to the other surface, and the elements' areas (mm², 2D: mm)."""

    from_prediction: np.ndarray
    from_truth: np.ndarray
    prediction_area: np.ndarray
    truth_area: np.ndarray


def surface_distances(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Compare the surfaces of two bool masks [Y, X] or [Z, Y, X] that are not empty; `spacing` in mm, same order."""
    box = _bounding_box(prediction | truth)
    codes_p, codes_t = (_neighbourhoods(mask[box]) for mask in (prediction, truth))
    area = _element_areas(tuple(float(step) for step in spacing))
    surface_p, surface_t = area[codes_p] > 0, area[codes_t] > 0
    # A k-d tree of the elements takes half as long on scattered lesions, but twenty times as long on concentric ones.
    to_prediction, to_truth = (distance_transform_edt(~surface, sampling=spacing) for surface in (surface_p, surface_t))
    return SurfaceDistances(to_truth[surface_p], to_prediction[surface_t],
                            area[codes_p[surface_p]], area[codes_t[surface_t]])


def surface_dice(surfaces: SurfaceDistances, tolerance: float) -> float:
    """NSD: the share of both surfaces that lies within `tolerance` mm of the other one."""
    near = (surfaces.prediction_area[surfaces.from_prediction <= tolerance].sum()
            + surfaces.truth_area[surfaces.from_truth <= tolerance].sum())
    return float(near / (surfaces.prediction_area.sum() + surfaces.truth_area.sum()))


def hausdorff(surfaces: SurfaceDistances, percent: float = 95) -> float:
    """The larger of the two percentiles (by area) of the surface distances, in mm."""
    return max(_percentile(surfaces.from_prediction, surfaces.prediction_area, percent),
               _percentile(surfaces.from_truth, surfaces.truth_area, percent))


def compare(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float],
            criteria: Criteria) -> dict[str, float]:
    """METRICS, COUNTS and DETECTIONS of two bool masks of one shape; empty cases as this module's docstring says."""
    found, exists = bool(prediction.any()), bool(truth.any())
    if not (found or exists):
        return _row(dict.fromkeys(METRICS, math.nan), LesionCounts(0, 0, 0, 0), Detections())
    box = _bounding_box(prediction | truth)
    lesions = count_lesions(prediction[box], truth[box], spacing, criteria.lesion_overlap, criteria.min_lesion_volume)
    smallest = criteria.smallest_false_positive
    if smallest is None:
        smallest = smallest_false_positive_of(*truth.shape[-2:])
    slices = count_detections(*map(_slices, (prediction[box], truth[box])), [True], smallest, criteria.lowest_dice)
    if not (found and exists):
        diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
        return _row(dict.fromkeys(METRICS, 0.0) | {"HD95": diagonal, "lesion_F1": lesions.f1}, lesions, slices)
    prediction, truth = prediction[box], truth[box]
    overlap = int((prediction & truth).sum())
    surfaces = surface_distances(prediction, truth, spacing)
    return _row({"DSC": dice(prediction, truth), "NSD": surface_dice(surfaces, criteria.tolerance),
                 "HD95": hausdorff(surfaces), "precision": overlap / int(prediction.sum()),
                 "recall": overlap / int(truth.sum()), "lesion_F1": lesions.f1}, lesions, slices)


def _row(measures: dict[str, float], lesions: LesionCounts, slices: Detections) -> dict[str, float]:
    counts = (lesions.true, lesions.found, lesions.predicted, lesions.confirmed,
              slices.true_positives, slices.false_positives, slices.false_negatives)
    return measures | dict(zip((*COUNTS, *DETECTIONS), counts, strict=True))


def _slices(mask: np.ndarray) -> np.ndarray:
    return mask if mask.ndim == 3 else mask[None]


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    occupied = [np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
                for axis in range(mask.ndim)]
    return tuple(slice(index[0], index[-1] + 1) for index in occupied)


def _neighbourhoods(mask: np.ndarray) -> np.ndarray:
    """uint8, one longer than `mask` along each axis: the voxels set around each grid corner, one bit each."""
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([length + 1 for length in mask.shape], np.uint8)
    for bit, corner in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        box = tuple(slice(start, start + length + 1) for start, length in zip(corner, mask.shape, strict=True))
        codes |= padded[box] << bit
    return codes


@lru_cache(maxsize=64)
def _element_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """[4 or 256] area of the surface through each pattern of 2×2 (mm) or 2×2×2 (mm²) voxels.

    An ambiguous pattern and its complement have the same area: that of the pattern with fewer voxels set, taken as
    separate corners (as in DeepMind's table).
    """
    num_corners = 2 ** len(spacing)
    measure = _contour_length if len(spacing) == 2 else _triangle_area
    area = np.zeros(2 ** num_corners)
    for code in range(1, len(area) - 1):
        pattern = np.array([code >> bit & 1 for bit in range(num_corners)]).reshape((2,) * len(spacing))
        area[code] = measure(1 - pattern if pattern.sum() > num_corners / 2 else pattern, spacing)
    return area


def _contour_length(pattern: np.ndarray, spacing: tuple[float, ...]) -> float:
    if pattern.sum() == 1 or pattern[0, 0] == pattern[1, 1]:        # corners cut off, one or two
        return float(pattern.sum()) * math.hypot(*spacing) / 2
    return spacing[1] if pattern[0, 0] == pattern[0, 1] else spacing[0]


def _triangle_area(pattern: np.ndarray, spacing: tuple[float, ...]) -> float:
    from skimage.measure import marching_cubes, mesh_surface_area
    vertices, faces, *_ = marching_cubes(pattern.astype(np.float32), 0.5, spacing=spacing, method="lorensen")
    return float(mesh_surface_area(vertices, faces))


def _percentile(distance: np.ndarray, area: np.ndarray, percent: float) -> float:
    order = np.argsort(distance)
    share = np.cumsum(area[order]) / area.sum()
    return float(distance[order][min(np.searchsorted(share, percent / 100), len(distance) - 1)])


# Folders ------------------------------------------------------------------------------------------------------------

def evaluate_folders(predictions: Path, truths: Path, classes: dict[str, list[int]] | None = None,
                     ignore: int | None = None, declared: Sequence[int] | None = None,
                     criteria: Criteria | None = None) -> dict:
    """Compare each prediction with the truth of the same file name.

    Args:
        predictions, truths: folders of label maps.
        classes: name → label values (several = a region); by default each value that occurs in the truth.
        ignore: voxels of this value in the truth do not count.
        declared: the values that may occur; any other is an error.
        criteria: of NSD and lesion_F1; None = the defaults.

    Returns:
        {"cases": [{"case", "class", METRICS, COUNTS, DETECTIONS}…], "summary": {class: …}, the criteria, "unit" (mm or
        pixel), "single_slices" (the cases that were measured in their plane), "coarsest_spacing" (of all cases)}.

    Raises:
        UserError: names, geometry or labels do not match, or a file is unreadable.
    """
    criteria = criteria or Criteria()
    ending, names = matching_names(predictions, truths)
    reader = reader_of(ending, truths / (names[0] + ending))
    if classes is None:
        classes = _classes_in([truths / (name + ending) for name in names], reader)
    rows, single_slices, coarsest = [], [], 0.0
    for name in progress(names, "evaluating"):
        truth = LabelMap.read(truths / (name + ending), reader)
        prediction = LabelMap.read(predictions / (name + ending), reader)
        prediction.check_same_grid(truth)
        if declared is not None:
            truth.check_values({0, *declared})
            prediction.check_values({0, *declared} - {ignore})
        counted = np.full(truth.array.shape, True) if ignore is None else truth.array != ignore
        single_slices += [name] if truth.array.ndim == 2 else []
        coarsest = max(coarsest, *truth.spacing)
        for class_name, values in classes.items():
            masks = (np.isin(labels.array, values) & counted for labels in (prediction, truth))
            rows.append({"case": name, "class": class_name, **compare(*masks, truth.spacing, criteria)})
    return {"cases": rows, "summary": {name: summarise([row for row in rows if row["class"] == name])
                                       for name in classes}, **asdict(criteria),
            "unit": "pixel" if is_picture(reader) else "mm", "single_slices": single_slices,
            "coarsest_spacing": coarsest}


def summarise(rows: Sequence[dict]) -> dict:
    """Mean and standard deviation (n - 1) of each metric over the cases that have it, and the number of empty cases.

    A case whose lesions are all below the minimal volume has no lesion_F1; each metric says over how many cases it is.
    Slices are counted over all cases: they have one precision and recall, not a mean.
    """
    summary: dict = {"num_cases": len(rows), "num_both_empty": sum(math.isnan(row["DSC"]) for row in rows)}
    for metric in METRICS:
        values = [row[metric] for row in rows if not math.isnan(row[metric])]
        summary[metric] = {"mean": float(np.mean(values)) if values else math.nan,
                           "sd": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                           "num_cases": len(values)}
    slices = Detections(*(sum(row[count] for row in rows) for count in DETECTIONS))
    summary["slices"] = {"precision": slices.precision, "recall": slices.recall}
    return summary


def write_results(results: dict, folder: Path) -> None:
    """`evaluation.csv` (a line a case and class) and `evaluation.json`; NaN is an empty cell, and null in JSON."""
    rows = [{key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
            for row in results["cases"]]
    write_text(to_csv(["case", "class", *METRICS, *COUNTS, *DETECTIONS], rows), folder / "evaluation.csv")
    write_json(_without_nan(results), folder / "evaluation.json")


def _without_nan(content: object) -> object:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def classes_of(dataset_json: Path) -> tuple[dict[str, list[int]], int | None, list[int]]:
    """Foreground classes or regions (name → values), the ignore label and all declared values of a `dataset.json`."""
    try:
        labels = json.loads(dataset_json.read_text(encoding="utf-8"))["labels"]
        values = {name: [int(v) for v in (value if isinstance(value, list | tuple) else [value])]
                  for name, value in labels.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{dataset_json} cannot be used: it must be a dataset.json with "labels": {{"name": value}} '
                        f"({type(error).__name__}: {error})") from error
    ignore = values.get("ignore", [None])[0]
    classes = {name: value for name, value in values.items() if name != "ignore" and value != [0]}
    return classes, ignore, sorted({v for value in values.values() for v in value})


def matching_names(predictions: Path, truths: Path) -> tuple[str, list[str]]:
    """File ending and case names that both folders hold; UserError where they differ."""
    files = {folder: _label_maps(folder) for folder in (predictions, truths)}
    endings = {ending for found in files.values() for ending in found.values()}
    if len(endings) > 1:
        raise UserError(f"{predictions} and {truths} hold files of several kinds ({', '.join(sorted(endings))}): "
                        "one file ending is needed")
    for folder, other in ((predictions, truths), (truths, predictions)):
        missing = sorted(files[other].keys() - files[folder].keys())
        if missing:
            listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise UserError(f"{folder} lacks {len(missing)} of the {len(files[other])} cases of {other} ({listed}): "
                            "both folders must hold the same file names")
    return endings.pop(), sorted(files[truths])


def _label_maps(folder: Path) -> dict[str, str]:
    """Case name → file ending, of all files that an nnU-Net reader knows."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    endings = sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings},
                     key=len, reverse=True)
    found = {}
    for path in folder.iterdir():
        ending = next((ending for ending in endings if path.name.endswith(ending)), None)
        if ending and path.is_file() and not path.name.startswith("."):
            found[path.name.removesuffix(ending)] = ending
    if not found:
        raise UserError(f"{folder} holds no label maps ({', '.join(endings)})")
    return found


def reader_of(ending: str, example: Path) -> BaseReaderWriter:
    """nnU-Net's reader for this kind of file.

    Raises:
        UserError: none can read the example.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
    check_file(example)     # the look-up tries all readers and says only that none works
    # Only readers of this ending: that of pictures opens .mha and .nrrd too, and loses their spacing. The look-up has
    # none for a 2D .nii, which is read like a .nii.gz.
    known = ".nii.gz" if ending == ".nii" else ending
    try:
        with redirect_stderr(io.StringIO()):        # a traceback for each reader that was tried in vain
            return determine_reader_writer_from_file_ending(known, str(example), verbose=False)()
    except RuntimeError as error:
        raise UserError(f"{example} is truncated or corrupt, none of nnU-Net's readers for {ending} opens it: copy it "
                        "again") from error


@dataclass(frozen=True)
class LabelMap:
    """Integers [Z, Y, X] or, of one slice, [Y, X]; the spacing in the same order; where known, origin and direction.

    Attributes:
        spacing: mm, of pictures pixels.
        slice_axis: along which a single slice lies in what nnU-Net's reader gives, [Z, Y, X].
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    placement: tuple[float, ...]
    path: Path
    slice_axis: int = 0

    @classmethod
    def read(cls, path: Path, reader: BaseReaderWriter) -> LabelMap:
        array, properties = read_segmentation(path, reader)
        spacing = stated_spacing(properties, reader)
        header = properties.get("sitk_stuff", {})
        placement = (*header.get("origin", ()), *header.get("direction", ()))
        array = array[0].astype(np.int64)
        if len(spacing) == 2:
            return cls(array[0], spacing, placement, path)
        if 1 in array.shape:
            axis = array.shape.index(1)
            return cls(array.squeeze(axis), spacing[:axis] + spacing[axis + 1:], placement, path, axis)
        return cls(array, spacing, placement, path)

    def check_values(self, allowed: set[int]) -> None:
        unknown = sorted(set(np.unique(self.array).tolist()) - allowed)
        if unknown:
            raise UserError(f"{self.path} holds the value(s) {', '.join(map(str, unknown[:5]))} that dataset.json does "
                            "not declare: repair the file, or give another --dataset-json")

    def check_same_grid(self, other: LabelMap) -> None:
        """Raise UserError unless both cover the same voxels: shape, spacing (1 µm), origin (10 µm), direction."""
        differing = [name for name, mine, theirs, tolerance in (
            ("shape", (*self.array.shape, self.slice_axis), (*other.array.shape, other.slice_axis), 0),
            ("spacing", self.spacing, other.spacing, 1e-3),
            ("origin or direction", self.placement, other.placement, 1e-2))
            if len(mine) != len(theirs) or not np.allclose(mine, theirs, rtol=1e-4, atol=tolerance)]
        if differing:
            raise UserError(f"{self.path} and {other.path} do not lie on the same voxels ({' and '.join(differing)} "
                            "differ): resample one onto the other's grid")


def _classes_in(truths: Sequence[Path], reader: BaseReaderWriter) -> dict[str, list[int]]:
    values = set()
    for path in truths:
        values |= set(np.unique(LabelMap.read(path, reader).array).tolist())
    return {str(value): [value] for value in sorted(values - {0})}
