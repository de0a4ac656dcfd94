"""The header of one DICOM file: what it says about the pixels, and which series it belongs to.

Messages name files by `str(file)` only, and never a patient, a study or a series.
"""

from __future__ import annotations

import re
import struct
import warnings
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np

from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"               # a DICOMDIR
_ENDINGS = (".dcm", ".dicom", ".ima")

# Without them no voxel has a place or a value in HU.
_NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
_TAGS = (*_NEEDED, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "ImageType",
         "NumberOfFrames", "PhotometricInterpretation", "Rows", "Columns", "SliceThickness", "SpacingBetweenSlices",
         "GantryDetectorTilt", "ConvolutionKernel", "RescaleType", "BitsAllocated", "BitsStored", "HighBit",
         "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit")


class NotDicomError(Exception):
    """A file that is no DICOM image and does not claim to be one; says what it is."""


@dataclass(frozen=True, slots=True)
class PixelBits:
    """How the numbers of the pixels lie in the file; None where the header does not say."""

    allocated: int | None
    stored: int | None
    high: int | None
    signed: int | None


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
        bits: of the stored values.
        not_a_number: what stands where place or HU need numbers ("PixelSpacing is '0,7\\0,7'"); empty if nothing does.
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
    bits: PixelBits
    not_a_number: str


@dataclass(frozen=True, slots=True)
class Slice:
    """One file of a series; `uid` is its SOPInstanceUID."""

    file: SourceFile
    uid: str
    series_uid: str
    patient: str
    header: SliceHeader


def read_slice(file: SourceFile) -> Slice:
    """Read the header of one file, with or without preamble and meta header.

    Raises:
        NotDicomError: it is something else.
        UserError: it is, or is named like, a DICOM file that cannot be read.
    """
    with file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")             # pydicom comments on every value that bends the standard
        try:
            dataset = _read_dataset(stream, file)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == _MEDIA_DIRECTORY:
                raise NotDicomError("a DICOMDIR, the index of a medium")
            uid, series_uid, patient = (str(dataset.get(keyword) or "")
                                        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "PatientID"))
            header = _header(dataset)
        except (UserError, NotDicomError):
            raise
        except Exception as error:                  # pydicom has no class of its own for what truncated bytes cause
            raise UserError(f"{file} is truncated or corrupt: copy it again ({type(error).__name__})") from error
    if not series_uid or not uid:
        raise UserError(f"{file} is truncated or holds no image: its header names no series")
    return Slice(file, uid, series_uid, patient, header)


def _read_dataset(stream: IO[bytes], file: SourceFile) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError
    try:
        return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
    except InvalidDicomError as error:
        stream.seek(0)
        if _begins_like_a_dataset(stream.read(4)):
            stream.seek(0)
            return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
        if file.path.suffix.lower() not in _ENDINGS:
            raise NotDicomError("no DICOM file") from error
        raise UserError(f"{file} is not a DICOM file, whatever its name says: copy it again") from error


def _begins_like_a_dataset(start: bytes) -> bool:
    """Whether the first tag is one that an image without preamble begins with: (0002,0000) or (0008,0000…001F)."""
    orders = ("<", ">") if len(start) == 4 else ()
    tags = [struct.unpack(f"{order}HH", start) for order in orders]
    return any(group == 0x0002 and element == 0 or group == 0x0008 and element < 0x20 for group, element in tags)


def _header(dataset: Dataset) -> SliceHeader:
    not_a_number = next(filter(None, (_not_a_number(dataset, keyword) for keyword in _NEEDED)), "")
    padding = _numbers(dataset, "PixelPaddingValue", 1)
    limit = _numbers(dataset, "PixelPaddingRangeLimit", 1)
    if padding:
        ends = [_as_stored(value, dataset) for value in (*padding, *(limit or ()))]
        padding = min(ends), max(ends)
    words = " ".join(map(str, dataset.get("ImageType") or [])).upper()
    tilt = _numbers(dataset, "GantryDetectorTilt", 1)
    return SliceHeader(
        modality=_text(dataset, "Modality"),
        sop_class=_text(dataset, "SOPClassUID"),
        transfer_syntax=_transfer_syntax(dataset),
        image_type=frozenset(re.findall(r"[A-Z0-9]+", words)),
        num_frames=int((_numbers(dataset, "NumberOfFrames", 1) or (1,))[0]),
        photometric=_text(dataset, "PhotometricInterpretation"),
        shape=(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)),
        position=_numbers(dataset, "ImagePositionPatient", 3),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        pixel_spacing=_numbers(dataset, "PixelSpacing", 2),
        thickness=(_numbers(dataset, "SliceThickness", 1) or (None,))[0],
        declared_spacing=(_numbers(dataset, "SpacingBetweenSlices", 1) or (None,))[0],
        tilt=tilt[0] if tilt else 0.0,
        kernel=_text(dataset, "ConvolutionKernel"),
        slope=(_numbers(dataset, "RescaleSlope", 1) or (None,))[0],
        intercept=(_numbers(dataset, "RescaleIntercept", 1) or (None,))[0],
        unit=_text(dataset, "RescaleType") or "HU",
        padding=padding,
        bits=PixelBits(*(dataset.get(keyword) for keyword in ("BitsAllocated", "BitsStored", "HighBit",
                                                              "PixelRepresentation"))),
        not_a_number=not_a_number)


def _transfer_syntax(dataset: Dataset) -> str:
    """As in the meta header; without one, what pydicom found the bytes to be."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
    if uid := dataset.file_meta.get("TransferSyntaxUID"):
        return str(uid)
    is_implicit, is_little = dataset.original_encoding
    return ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def _text(dataset: Dataset, keyword: str) -> str:
    """As messages may show it: whatever bytes stand there, one short line."""
    text = "".join(sign if sign.isprintable() else " " for sign in str(dataset.get(keyword) or ""))
    return " ".join(text.split())[:64]


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers, or None where the header has anything else."""
    try:
        value = dataset.get(keyword)
        numbers = tuple(float(part) for part in (value if count > 1 else [value]))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _not_a_number(dataset: Dataset, keyword: str) -> str:
    """What stands there that is no number; of an element that pydicom has not converted yet."""
    element = dataset.get_item(keyword)
    text = (element.value or b"").decode("ascii", "replace").strip(" \0") if element is not None else ""
    try:
        _ = [float(part) for part in text.split("\\") if part.strip()]
    except ValueError:
        if "," in text and re.fullmatch(r"[-+0-9.,eE\\ ]{1,100}", text):     # nothing else is shown: it may be a name
            return f"{keyword} is '{text}', with a decimal comma"
        return f"{keyword} holds something that is no number"
    return ""


def _as_stored(padding: float, dataset: Dataset) -> float:
    """A padding value as the pixels hold it: often it is written as if they were unsigned, 63536 for -2000."""
    bits = int(dataset.get("BitsAllocated") or 16)
    if dataset.get("PixelRepresentation") == 1 and padding >= 1 << (bits - 1):
        return padding - (1 << bits)
    if dataset.get("PixelRepresentation") == 0 and padding < 0:
        return padding + (1 << bits)
    return padding
