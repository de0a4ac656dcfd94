"""DICOM series: which files belong together, whether they make one axial CT volume, and that volume in HU.

Three steps, so that a converter can choose between the first and the last:

    scan_series(files)      reads headers only and groups them by SeriesInstanceUID
    check_series(series)    why a series is no axial CT volume on a regular grid, or None
    read_series(series)     its voxels in HU, as an LPS image

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
from nnunet_synth.dataset_conversion.volumes import to_lps, turned
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK
    from pydicom import Dataset

# A chest is 200 mm high or more, and 10 mm are the thickest slices in use. Scouts have one or two, bolus tracking a
# few at one height.
MIN_SLICES = 20
PADDING_HU = -1024              # what scanners write where nothing was reconstructed

_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"               # a DICOMDIR
_NO_SCAN_WORDS = {"LOCALIZER": "a scout (localizer), no scan", "SCOUT": "a scout, no scan",
                  "TOPOGRAM": "a scout (topogram), no scan", "MIP": "a projection (MIP), no CT numbers",
                  "MINIP": "a projection (MinIP), no CT numbers", "IP": "a projection, no CT numbers"}
# Defined terms of Rescale Type that are not Hounsfield units (PS3.3 C.11.1.1.2); free text is "HU" in other words.
_OTHER_UNITS = {"OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"}
# What GDCM decodes: uncompressed, deflated, RLE, JPEG (8 and 12 bits, lossless), JPEG-LS, JPEG 2000.
_GDCM_READS = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
               "1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91))}

_ORIENTATION_TOLERANCE = 1e-3   # of direction cosines: 0.06 degrees, half a pixel at the rim of the picture
_SPACING_TOLERANCE = 1e-3       # mm
_MAX_OBLIQUITY = 15.0           # degrees between the slices' normal and the body's axis: a patient lies askew
_MAX_TILT = 0.5                 # degrees
_POSITION_TOLERANCE = 0.1       # mm: positions are often written with one decimal, ...
_GRID_TOLERANCE = 0.1           # ... or of the slice spacing, if that is more: far below what interpolation blurs
_MAX_HU = 32767                 # extended CT numbers end at 31743; beyond, sign or padding were misread

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
        heights = _heights(self.slices)
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
# Checking


def check_series(series: Series, min_slices: int = MIN_SLICES, allow_gaps: bool = False) -> str | None:
    """Why a series is no axial CT volume on a regular grid; None if it is one.

    Args:
        min_slices: with fewer it is no scan of a chest.
        allow_gaps: accept irregular spacing and missing slices, which `read_series` then fills.
    """
    if series.defect or not series.slices:
        return series.defect or "no slices"
    return (_wrong_kind(series) or _incomplete_header(series) or _mixed(series) or _wrong_plane(series)
            or _tilted(series) or _too_few(series, min_slices) or _irregular(series, allow_gaps))


def _wrong_kind(series: Series) -> str | None:
    for header in (one.header for one in series.slices):
        if header.modality != "CT":
            return f"modality {header.modality or 'not given'}, not CT"
        if header.num_frames > 1 or header.sop_class.startswith((f"{_CT_IMAGE_STORAGE}.1", f"{_CT_IMAGE_STORAGE}.2")):
            return "multi-frame (enhanced) DICOM: convert it to one slice a file (for example by dcm4che's emf2sf)"
        if header.sop_class != _CT_IMAGE_STORAGE:
            return f"no CT image but {_uid_name(header.sop_class)}"
        for word, reason in _NO_SCAN_WORDS.items():
            if word in header.image_type:
                return reason
        if header.transfer_syntax not in _GDCM_READS:
            return f"compressed as {_uid_name(header.transfer_syntax)}, which cannot be read: decompress it first"
        if header.photometric != "MONOCHROME2":
            return f"photometric interpretation {header.photometric or 'not given'}, not MONOCHROME2"
        if header.unit.upper() in _OTHER_UNITS:
            return f"values in {header.unit}, not in HU"
    return None


def _uid_name(uid: str) -> str:
    from pydicom.uid import UID
    name = UID(uid).name
    return name if name != uid else "an unknown kind"       # never a UID in a message


def _incomplete_header(series: Series) -> str | None:
    headers = [one.header for one in series.slices]
    for name in ("position", "orientation", "pixel_spacing"):
        missing = sum(getattr(header, name) is None for header in headers)
        if missing:
            return f"{missing} of {len(headers)} slices have no {name.replace('_', ' ')}"
    if any(header.intercept is None or not header.slope or header.slope < 0 for header in headers):
        return "no (or an impossible) rescale slope and intercept: its values are not known to be HU"
    if any(min(header.shape) < 1 or min(header.pixel_spacing) <= 0 for header in headers):
        return "a size or a pixel spacing of zero"
    if len(headers) == 1 and series.slice_spacing <= 0:
        return "one slice without thickness and spacing"
    return None


def _mixed(series: Series) -> str | None:
    headers = [one.header for one in series.slices]
    shapes = {header.shape for header in headers}
    if len(shapes) > 1:
        return f"mixed sizes in one series: {' and '.join(f'{rows} x {columns}' for rows, columns in sorted(shapes))}"
    for name, tolerance in (("orientation", _ORIENTATION_TOLERANCE), ("pixel_spacing", _SPACING_TOLERANCE)):
        values = np.array([getattr(header, name) for header in headers])
        if np.abs(values - values[0]).max() > tolerance:
            return f"mixed {name.replace('_', ' ')}s in one series"
    return None


def _wrong_plane(series: Series) -> str | None:
    row, column = np.array(series.header.orientation).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if np.abs(np.subtract(lengths, 1)).max() > 0.01 or abs(row @ column) > 0.01:
        return "orientation is not two perpendicular unit vectors"
    normal = np.cross(row, column)
    plane = ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]
    if plane != "axial":
        return f"{plane}, not axial"
    angle = float(np.degrees(np.arccos(min(1.0, abs(normal[2]) / np.linalg.norm(normal)))))
    return f"oblique by {angle:.0f} degrees, not axial" if angle > _MAX_OBLIQUITY else None


def _tilted(series: Series) -> str | None:
    """Slices that are shifted against each other, or a tilt in the header that their orientation does not show."""
    slices = _sorted(series.slices)
    positions = np.array([one.header.position for one in slices])
    normal = _axes(series)[2]
    moved = positions - positions[0]
    along = moved @ normal
    shift = np.linalg.norm(moved - along[:, None] * normal, axis=1)
    if shift.max() > min(series.header.pixel_spacing) / 2:
        worst = int(shift.argmax())
        angle = np.degrees(np.arctan2(shift[worst], abs(along[worst])))
        return (f"gantry tilt of {angle:.1f} degrees or shifted slices: they move {shift[worst]:.1f} mm sideways over "
                f"{abs(along[worst]):.1f} mm")
    tilt = max((one.header.tilt for one in slices), key=abs)
    declared = float(np.degrees(np.arccos(min(1.0, abs(normal[2])))))
    if abs(tilt) > _MAX_TILT and abs(abs(tilt) - declared) > _MAX_TILT:
        return f"gantry tilt of {tilt:.1f} degrees, while positions and orientation show none"
    return None


def _too_few(series: Series, min_slices: int) -> str | None:
    number = len(series.slices)
    return f"{number} slice(s), fewer than {min_slices} (--min-slices)" if number < min_slices else None


def _irregular(series: Series, allow_gaps: bool) -> str | None:
    heights = _heights(series.slices)
    steps = np.diff(heights)
    if not steps.size:
        return None
    same = int((steps < _POSITION_TOLERANCE / 10).sum())
    if same:
        return f"{same} slice(s) lie where another one lies: several acquisitions in one series"
    if allow_gaps or _is_regular(heights):
        return None
    usual = float(np.median(steps))
    multiples = np.rint(steps / usual)
    missing, places = int((multiples - 1).sum()), int((multiples > 1).sum())
    if missing and np.abs(steps - multiples * usual).max() <= max(_POSITION_TOLERANCE, _GRID_TOLERANCE * usual):
        return f"{missing} slice(s) missing at {places} place(s), spacing {usual:.2f} mm (--allow-gaps fills them)"
    return f"irregular spacing, {steps.min():.2f} to {steps.max():.2f} mm between slices (--allow-gaps resamples them)"


def _is_regular(heights: np.ndarray) -> bool:
    """Whether every slice lies where a regular grid from the first to the last one has it."""
    grid = np.linspace(heights[0], heights[-1], len(heights))
    spacing = (heights[-1] - heights[0]) / max(1, len(heights) - 1)
    return bool(np.abs(heights - grid).max() <= max(_POSITION_TOLERANCE, _GRID_TOLERANCE * spacing))


# ----------------------------------------------------------------------------------------------------------------------
# Geometry


def _axes(series: Series) -> np.ndarray:
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


def _sorted(slices: tuple[Slice, ...]) -> list[Slice]:
    """By position: InstanceNumber may run either way, or anyhow."""
    return sorted(slices, key=lambda one: (_height(one), one.uid))


def _heights(slices: tuple[Slice, ...]) -> np.ndarray:
    return np.array([_height(one) for one in _sorted(slices)])


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_series(series: Series) -> tuple[SimpleITK.Image, tuple[str, ...]]:
    """Read a series that passed `check_series`.

    Slope and intercept are applied slice by slice. Pixels outside the reconstructed circle become -1024 HU, whether
    their value is declared (PixelPaddingValue) or not (-2000 or -2048 in the corners). Slices with gaps are
    interpolated linearly to a regular spacing.

    Returns:
        The LPS image in HU, int16, or float32 where a slope makes fractions; and what was changed, for the report.

    Raises:
        UserError: a file is truncated, corrupt, or not what its header says.
    """
    import SimpleITK
    slices = _sorted(series.slices)
    voxels, num_padded = _stack(slices)
    repairs = []
    if series.num_duplicates:
        repairs.append(f"{series.num_duplicates} duplicate slice(s) dropped")
    if num_padded:
        repairs.append(f"padding set to {PADDING_HU} HU")
    spacing, heights = series.slice_spacing, _heights(series.slices)
    if not _is_regular(heights):
        voxels, spacing, added = _fill_gaps(voxels, heights)
        repairs.append(f"{added} slice(s) interpolated to a regular spacing of {spacing:.2f} mm")
    image = SimpleITK.GetImageFromArray(voxels)
    between_rows, between_columns = series.header.pixel_spacing
    image.SetSpacing((between_columns, between_rows, spacing))
    image.SetOrigin(slices[0].header.position)
    image.SetDirection(_axes(series).T.ravel().tolist())
    return to_lps(image), (*repairs, *turned(image))


def _stack(slices: list[Slice]) -> tuple[np.ndarray, int]:
    """The slices in HU, [Z, Y, X] int16 or float32, and how many of their pixels were padding."""
    voxels = np.empty((len(slices), *slices[0].header.shape), np.int16)
    num_padded = 0
    for index, one in enumerate(slices):
        hu = _read_hu(one)
        padding = _padding(hu, one.header)
        num_padded += int(padding.sum())
        hu[padding] = PADDING_HU
        if voxels.dtype == np.int16 and not _fits_int16(hu):
            voxels = voxels.astype(np.float32)
        voxels[index] = hu
    return voxels, num_padded


def _read_hu(one: Slice) -> np.ndarray:
    """One slice [Y, X] as GDCM rescales it, integers or float64."""
    import SimpleITK
    with one.file.on_disk() as path:
        try:
            image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
        except RuntimeError as error:
            raise UserError(f"{one.file} is truncated or corrupt: copy it again") from error
    pixels = SimpleITK.GetArrayFromImage(image)
    if pixels.shape != (1, *one.header.shape):
        raise UserError(f"{one.file} holds pixels of shape {pixels.shape}, its header says {one.header.shape}")
    return pixels[0]


def _padding(hu: np.ndarray, header: SliceHeader) -> np.ndarray:
    """Where a slice [Y, X] shows nothing but padding; raises UserError for values that are no CT numbers."""
    from scipy.ndimage import binary_propagation
    mask = np.zeros(hu.shape, bool)
    if header.padding is not None:
        low, high = (header.slope * value + header.intercept for value in header.padding)
        mask = (hu > low - header.slope / 2) & (hu < high + header.slope / 2)
        if high > PADDING_HU:               # tissue may have this value, too: only what reaches the rim is padding
            rim = np.ones(hu.shape, bool)
            rim[1:-1, 1:-1] = False
            mask = binary_propagation(rim & mask, mask=mask)
    lowest = hu.min()
    if lowest < PADDING_HU and lowest in hu[[0, 0, -1, -1], [0, -1, 0, -1]]:
        mask |= hu == lowest
    highest = hu[~mask].max(initial=PADDING_HU)
    if highest > _MAX_HU:
        raise UserError(f"values up to {highest:.0f} HU: sign or padding of the pixels are not what the header says")
    return mask


def _fits_int16(values: np.ndarray) -> bool:
    bounds = np.iinfo(np.int16)
    return bool(values.min() >= bounds.min and values.max() <= bounds.max
                and (values.dtype.kind in "iu" or np.array_equal(values, np.rint(values))))


def _fill_gaps(voxels: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, float, int]:
    """Slices at irregular heights (mm) linearly interpolated to a regular grid.

    Returns:
        The voxels [Z, Y, X] in the same type, their spacing in mm, and how many slices were not there before.
    """
    num = round((heights[-1] - heights[0]) / float(np.median(np.diff(heights)))) + 1
    grid, spacing = np.linspace(heights[0], heights[-1], num, retstep=True)
    filled = np.empty((num, *voxels.shape[1:]), voxels.dtype)
    added = 0
    for index, height in enumerate(grid):
        above = int(np.clip(np.searchsorted(heights, height), 1, len(heights) - 1))
        share = (height - heights[above - 1]) / (heights[above] - heights[above - 1])
        nearest = above if share > 0.5 else above - 1
        if abs(heights[nearest] - height) <= max(_POSITION_TOLERANCE, _GRID_TOLERANCE * spacing):
            filled[index] = voxels[nearest]
            continue
        mixed = (1 - share) * voxels[above - 1] + share * voxels[above]
        filled[index] = np.rint(mixed) if voxels.dtype.kind == "i" else mixed
        added += 1
    return filled, float(spacing), added
