"""DICOM series: which files belong together, and how their slices lie.

The first of four steps, so that a converter can choose between them:

    scan_series(files)      here: reads headers only (dicom_header.py) and groups them by SeriesInstanceUID
    without_strays(series)  stray_images.py: the series without a scout that shares its UID
    check_series(series)    dicom_checks.py: why a series is no axial CT volume on a regular grid, or None
    read_series(series)     dicom_voxels.py: its voxels in HU, as an LPS image

Messages name files by `str(file)` only, and never a patient, a study or a series.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from nnunet_synth.dataset_conversion.case import PassedOver
from nnunet_synth.dataset_conversion.dicom_header import NotDicomError, Slice, SliceHeader, read_slice
from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.errors import UserError

DUPLICATE = "duplicate slice"
_POSITION_TOLERANCE = 0.1       # mm: positions are often written with one decimal, ...
_GRID_TOLERANCE = 0.1           # ... or of the slice spacing, if that is more: far below what interpolation blurs


@dataclass(frozen=True)
class Series:
    """The files of one SeriesInstanceUID, duplicates dropped, in the order of their paths.

    Attributes:
        uid: empty for files that cannot be read, which `defect` names.
        dropped: files that share the UID and are no slices of the volume, each with its reason.
        defect: what scanning found wrong; `check_series` returns it.
    """

    uid: str
    slices: tuple[Slice, ...]
    dropped: tuple[PassedOver, ...] = ()
    defect: str = ""

    @property
    def header(self) -> SliceHeader:
        """Of the first slice: what is the same for all of them in a series that passes `check_series`."""
        return self.slices[0].header

    @property
    def is_original(self) -> bool:
        """Reconstructed by the scanner, not reformatted from other slices."""
        return "DERIVED" not in self.header.image_type

    @property
    def slice_spacing(self) -> float:
        """Mean distance of the slices, mm; for a single one what its header says, or its thickness.

        Only for a series that passes `check_series`.
        """
        if len(self.slices) == 1:
            return self.header.declared_spacing or self.header.thickness or 0.0
        heights = slice_heights(self.slices)
        return float((heights[-1] - heights[0]) / (len(heights) - 1))


# ----------------------------------------------------------------------------------------------------------------------
# Scanning


def scan_series(files: Iterable[SourceFile]) -> list[Series]:
    """The series of `scan_files`."""
    return scan_files(files)[0]


def scan_files(files: Iterable[SourceFile]) -> tuple[list[Series], list[PassedOver]]:
    """Read the headers of `files` and group them by series.

    Files that are not DICOM are passed over, except those named like one (`.dcm`); what is broken becomes the defect
    of the series beside it, because a slice is missing there.

    Returns:
        The series in the order of their UIDs, then the folders in which nothing could be read (`uid` is empty); and
        the files that were passed over or are broken.
    """
    slices: dict[str, list[Slice]] = {}
    broken: dict[PurePosixPath, str] = {}           # by folder, the first one
    passed_over: list[PassedOver] = []
    for file in files:
        try:
            one = read_slice(file)
            slices.setdefault(one.series_uid, []).append(one)
        except NotDicomError as what:
            passed_over.append(PassedOver(str(file), str(what)))
        except UserError as error:
            broken.setdefault(file.path.parent, str(error))
            passed_over.append(PassedOver(str(file), str(error).removeprefix(f"{file} ")))
    result = []
    for uid in sorted(slices):
        folders = {one.file.path.parent for one in slices[uid]}
        beside = [reason for folder, reason in broken.items() if folder in folders]
        series = _one_series(uid, slices[uid])
        result.append(replace(series, defect=beside[0]) if beside else series)
    used = {one.file.path.parent for group in slices.values() for one in group}
    return result + [Series("", (), defect=reason) for folder, reason in broken.items() if folder not in used], \
        passed_over


def _one_series(uid: str, slices: list[Slice]) -> Series:
    patients = {one.patient for one in slices} - {""}
    if len(patients) > 1:
        return Series(uid, tuple(slices), defect=f"{len(patients)} patients share one series UID: give the scan of "
                                                 "each a UID of its own, or convert them one by one")
    try:
        return _without_duplicates(uid, slices)
    except UserError as error:                      # a copy that cannot be compared
        return Series(uid, tuple(slices), defect=str(error))


def _without_duplicates(uid: str, slices: list[Slice]) -> Series:
    """A series without the slices that it has twice, which must be the same then."""
    unique: dict[str, Slice] = {}
    copies: list[PassedOver] = []
    folders: dict[PurePosixPath, set[str]] = {}
    for one in sorted(slices, key=lambda one: one.file.path):
        folders.setdefault(one.file.path.parent, set()).add(one.uid)
        first = unique.setdefault(one.uid, one)
        if first is one:
            continue
        if not _is_the_same(first, one):
            return Series(uid, tuple(unique.values()), defect=f"{first.file} and {one.file} have the same UID and "
                                                              "different content: remove one of them")
        copies.append(PassedOver(str(one.file), DUPLICATE))
    largest = max(folders.values(), key=len)
    defect = "" if largest == unique.keys() else (
        f"the same series UID is used in {len(folders)} folders with different slices: remove all but one")
    return Series(uid, tuple(unique.values()), tuple(copies), defect)


def _is_the_same(one: Slice, other: Slice) -> bool:
    return one.header == other.header and _pixel_digest(one.file) == _pixel_digest(other.file)


def _pixel_digest(file: SourceFile) -> str:
    import pydicom
    with file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return hashlib.sha256(pydicom.dcmread(stream, force=True).get("PixelData") or b"").hexdigest()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{file} is truncated or corrupt: copy it again ({type(error).__name__})") from error


# ----------------------------------------------------------------------------------------------------------------------
# Geometry


def slice_axes(series: Series) -> np.ndarray:
    """Unit vectors along rows, along columns and from slice to slice, exactly perpendicular, as the rows of [3, 3]."""
    row, column = np.array(series.header.orientation).reshape(2, 3)
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)])


def _height(one: Slice) -> float:
    """mm along the normal of the slice itself."""
    row, column = np.array(one.header.orientation).reshape(2, 3)
    return float(np.array(one.header.position) @ np.cross(row, column))


def sorted_slices(slices: tuple[Slice, ...]) -> list[Slice]:
    """By position: InstanceNumber may run either way, or anyhow."""
    return sorted(slices, key=lambda one: (_height(one), one.uid))


def slice_heights(slices: tuple[Slice, ...]) -> np.ndarray:
    return np.array([_height(one) for one in sorted_slices(slices)])


def is_regular(heights: np.ndarray) -> bool:
    """Whether every slice lies where a regular grid from the first to the last one has it."""
    grid = np.linspace(heights[0], heights[-1], len(heights))
    spacing = (heights[-1] - heights[0]) / max(1, len(heights) - 1)
    return bool(np.abs(heights - grid).max() <= position_tolerance(spacing))


def position_tolerance(spacing: float) -> float:
    """mm that a slice may lie beside its place on a grid of this spacing."""
    return max(_POSITION_TOLERANCE, _GRID_TOLERANCE * spacing)
