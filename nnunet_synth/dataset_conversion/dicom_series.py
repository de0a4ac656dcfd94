"""DICOM series: which files belong together, and how their slices lie.

The first of three steps, so that a converter can choose between them:

    scan_series(files)      here: reads headers only and groups them by SeriesInstanceUID
    check_series(series)    dicom_checks.py: why a series is no axial CT volume on a regular grid, or None
    read_series(series)     dicom_voxels.py: its voxels in HU, as an LPS image

Messages name files by `str(file)` only, and never a patient, a study or a series.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"               # a DICOMDIR
_POSITION_TOLERANCE = 0.1       # mm: positions are often written with one decimal, ...
_GRID_TOLERANCE = 0.1           # ... or of the slice spacing, if that is more: far below what interpolation blurs

_TAGS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "NumberOfFrames",
         "PhotometricInterpretation", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient",
         "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "GantryDetectorTilt", "ConvolutionKernel",
         "RescaleSlope", "RescaleIntercept", "RescaleType", "BitsAllocated", "PixelRepresentation",
         "PixelPaddingValue", "PixelPaddingRangeLimit")


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """What the header of one file says about its pixels; None where it does not.

    Attributes:
        modality, sop_class, transfer_syntax: as in the file.
        image_type: the words of ImageType, in capitals.
        num_frames: 1 for a plain slice.
        photometric: MONOCHROME2 for a CT.
        shape: rows, columns.
        position: mm, LPS, of the centre of the first pixel.
        orientation: direction cosines of a row, then of a column.
        pixel_spacing: mm between rows, mm between columns.
        thickness: mm.
        declared_spacing: SpacingBetweenSlices, mm; only for a series of a single slice.
        tilt: degrees.
        kernel: ConvolutionKernel.
        slope, intercept, unit: HU = slope · stored value + intercept.
        padding: lowest and highest stored value that stand for "not reconstructed".
    """

    modality: str
    sop_class: str
    transfer_syntax: str
    image_type: frozenset[str]
    num_frames: int
    photometric: str
    shape: tuple[int, int]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    thickness: float | None
    declared_spacing: float | None
    tilt: float
    kernel: str
    slope: float | None
    intercept: float | None
    unit: str
    padding: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Slice:
    """One file of a series; `uid` is its SOPInstanceUID."""

    file: SourceFile
    uid: str
    header: SliceHeader


@dataclass(frozen=True)
class Series:
    """The files of one SeriesInstanceUID, duplicates dropped, in the order of their paths.

    Attributes:
        uid: empty for files that cannot be read, which `defect` names.
        num_duplicates: files that were dropped because another one is the same slice.
        defect: what scanning found wrong; `check_series` returns it.
    """

    uid: str
    slices: tuple[Slice, ...]
    num_duplicates: int = 0
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
    """Read the headers of `files` and group them by series.

    Files that are not DICOM are passed over, except those named like one (`.dcm`); what is broken becomes the defect
    of the series beside it, because a slice is missing there.

    Returns:
        The series in the order of their UIDs, then the folders in which nothing could be read (`uid` is empty).
    """
    slices: dict[str, list[Slice]] = {}
    broken: dict[PurePosixPath, str] = {}           # by folder, the first one
    for file in files:
        try:
            found = _read_header(file)
        except UserError as error:
            broken.setdefault(file.path.parent, str(error))
            continue
        if found is not None:
            slices.setdefault(found[0], []).append(found[1])
    result = []
    for uid in sorted(slices):
        folders = {one.file.path.parent for one in slices[uid]}
        beside = [reason for folder, reason in broken.items() if folder in folders]
        try:
            series = _without_duplicates(uid, slices[uid])
        except UserError as error:                  # a copy that cannot be compared
            series = Series(uid, tuple(slices[uid]), defect=str(error))
        result.append(replace(series, defect=beside[0]) if beside else series)
    used = {one.file.path.parent for group in slices.values() for one in group}
    return result + [Series("", (), defect=reason) for folder, reason in broken.items() if folder not in used]


def _read_header(file: SourceFile) -> tuple[str, Slice] | None:
    """The series UID and the slice of a file; None for files that do not claim to be a DICOM image."""
    import pydicom
    from pydicom.errors import InvalidDicomError
    with file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")             # pydicom comments on every value that bends the standard
        try:
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
            if dataset.file_meta.get("MediaStorageSOPClassUID") == _MEDIA_DIRECTORY:
                return None
            uid, sop_uid, header = (str(dataset.get("SeriesInstanceUID", "")), str(dataset.get("SOPInstanceUID", "")),
                                    _header(dataset))
        except UserError:
            raise
        except InvalidDicomError as error:
            if file.path.suffix.lower() not in (".dcm", ".dicom", ".ima"):
                return None
            raise UserError(f"{file} is not a DICOM file, whatever its name says: copy it again") from error
        except Exception as error:                  # pydicom has no class of its own for what truncated bytes cause
            raise UserError(f"{file} is truncated or corrupt: copy it again ({type(error).__name__})") from error
    if not uid or not sop_uid:
        raise UserError(f"{file} is truncated or holds no image: its header names no series")
    return uid, Slice(file, sop_uid, header)


def _header(dataset: Dataset) -> SliceHeader:
    padding = _numbers(dataset, "PixelPaddingValue", 1)
    limit = _numbers(dataset, "PixelPaddingRangeLimit", 1)
    if padding:
        ends = [_as_stored(value, dataset) for value in (*padding, *(limit or ()))]
        padding = min(ends), max(ends)
    words = " ".join(map(str, dataset.get("ImageType") or [])).upper()
    tilt = _numbers(dataset, "GantryDetectorTilt", 1)
    return SliceHeader(
        modality=str(dataset.get("Modality", "")),
        sop_class=str(dataset.get("SOPClassUID", "")),
        transfer_syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        image_type=frozenset(re.findall(r"[A-Z0-9]+", words)),
        num_frames=int((_numbers(dataset, "NumberOfFrames", 1) or (1,))[0]),
        photometric=str(dataset.get("PhotometricInterpretation", "")),
        shape=(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)),
        position=_numbers(dataset, "ImagePositionPatient", 3),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        pixel_spacing=_numbers(dataset, "PixelSpacing", 2),
        thickness=(_numbers(dataset, "SliceThickness", 1) or (None,))[0],
        declared_spacing=(_numbers(dataset, "SpacingBetweenSlices", 1) or (None,))[0],
        tilt=tilt[0] if tilt else 0.0,
        kernel=str(dataset.get("ConvolutionKernel") or ""),
        slope=(_numbers(dataset, "RescaleSlope", 1) or (None,))[0],
        intercept=(_numbers(dataset, "RescaleIntercept", 1) or (None,))[0],
        unit=str(dataset.get("RescaleType") or "HU"),
        padding=padding)


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers, or None where the header has anything else."""
    try:
        value = dataset.get(keyword)
        numbers = tuple(float(part) for part in (value if count > 1 else [value]))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _as_stored(padding: float, dataset: Dataset) -> float:
    """A padding value as the pixels hold it: often it is written as if they were unsigned, 63536 for -2000."""
    bits = int(dataset.get("BitsAllocated") or 16)
    if dataset.get("PixelRepresentation") == 1 and padding >= 1 << (bits - 1):
        return padding - (1 << bits)
    if dataset.get("PixelRepresentation") == 0 and padding < 0:
        return padding + (1 << bits)
    return padding


def _without_duplicates(uid: str, slices: list[Slice]) -> Series:
    """A series without the slices that it has twice, which must be the same then."""
    unique: dict[str, Slice] = {}
    folders: dict[PurePosixPath, set[str]] = {}
    for one in sorted(slices, key=lambda one: one.file.path):
        folders.setdefault(one.file.path.parent, set()).add(one.uid)
        first = unique.setdefault(one.uid, one)
        if first is not one and not _is_the_same(first, one):
            return Series(uid, tuple(unique.values()), defect=f"{first.file} and {one.file} have the same UID and "
                                                              "different content: remove one of them")
    largest = max(folders.values(), key=len)
    defect = "" if largest == unique.keys() else (
        f"the same series UID is used in {len(folders)} folders with different slices: remove all but one")
    return Series(uid, tuple(unique.values()), len(slices) - len(unique), defect)


def _is_the_same(one: Slice, other: Slice) -> bool:
    return one.header == other.header and _pixel_digest(one.file) == _pixel_digest(other.file)


def _pixel_digest(file: SourceFile) -> str:
    import pydicom
    with file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return hashlib.sha256(pydicom.dcmread(stream).get("PixelData") or b"").hexdigest()
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
