"""Whether the pixels of one DICOM file are all there, looked at before anything decodes them.

GDCM fills up pixels that are missing with whatever its memory holds, drops bits that the header does not count, and
ITK refuses a file for a distance of slices that nobody needs.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_synth.dataset_conversion.sources import SourceFile, scratch
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

_UNDEFINED = 0xFFFFFFFF                     # the length of compressed pixels
_RLE = "1.2.840.10008.1.2.5"
_END_OF_JPEG = b"\xff\xd9"                  # of JPEG, JPEG-LS and JPEG 2000 alike
_PADDING = 16                               # bytes that an encoder may write behind it
_TAGS = ("SOPClassUID", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "BitsStored",
         "PixelRepresentation", "SpacingBetweenSlices", "PixelData")


@contextmanager
def decodable(file: SourceFile) -> Iterator[Path]:
    """A path by which ITK reads the pixels of a slice that passed `check_series`.

    Raises:
        UserError: there are fewer pixels than the header says, or twice as many; a compressed stream has no end;
            values need more bits than the header counts.
    """
    with file.on_disk() as path:
        dataset = _read(path, file)
        try:
            check_pixels(dataset)
        except UserError as error:
            raise UserError(f"{file} {error}") from error
        except Exception as error:                  # as in `_read`: pydicom converts a value when it is asked for
            raise UserError(f"{file} is truncated or corrupt: copy it again ({type(error).__name__})") from error
        if not _stops_itk(dataset):
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="nnunet_synth_", dir=scratch()) as folder:
            yield _without_spacing(path, Path(folder))


def _read(path: Path, file: SourceFile) -> Dataset:
    import pydicom
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")             # what pydicom warns of is told by `check_pixels`
        try:
            return pydicom.dcmread(path, specific_tags=list(_TAGS), force=True)
        except OSError as error:
            raise file.refusal(error) from error
        except Exception as error:                  # pydicom has no class of its own for what truncated bytes cause
            raise UserError(f"{file} is truncated or corrupt: copy it again ({type(error).__name__})") from error


def check_pixels(dataset: Dataset) -> None:
    """Raise UserError, which lacks the file's name, where the pixels are not what the header says.

    Args:
        dataset: as pydicom reads it, its pixels untouched.
    """
    element = dataset.get_item("PixelData")
    if element is None or not element.value:
        raise UserError("is truncated or corrupt: it holds no pixels; copy it again, or export it again")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    is_compressed = syntax is not None and syntax.is_compressed
    if is_compressed != (element.length == _UNDEFINED):
        raise UserError("has pixels that are not stored as its transfer syntax says: export it again")
    if is_compressed:
        _check_end(element.value, syntax)
        return
    bits = (dataset.Rows * dataset.Columns * int(dataset.get("SamplesPerPixel") or 1)
            * int(dataset.get("NumberOfFrames") or 1) * dataset.BitsAllocated)
    needed, there = -(-bits // 8), len(element.value)
    if there < max(needed, element.length):
        raise UserError(f"is truncated or corrupt: {there} of {max(needed, element.length)} bytes of its pixels are "
                        "there; copy it again, or export it again")
    if there >= 2 * needed:
        raise UserError(f"holds {there} bytes of pixels, its header says {needed}: export it again")
    if dataset.BitsStored < dataset.BitsAllocated == 16:
        _, is_little = dataset.original_encoding
        _check_unused_bits(np.frombuffer(element.value[:needed], "<u2" if is_little else ">u2"), dataset.BitsStored,
                           bool(dataset.PixelRepresentation))


def _check_end(value: bytes, syntax: str) -> None:
    """Whether the fragments of compressed pixels and the stream in them are whole."""
    from pydicom.encaps import generate_frames
    try:
        frame, = generate_frames(value, number_of_frames=1)
    except Exception as error:                      # as above
        raise UserError("is truncated or corrupt: its compressed pixels are incomplete; copy it again") from error
    if syntax != _RLE and _END_OF_JPEG not in frame[-_PADDING:]:
        raise UserError("is truncated or corrupt: its compressed picture has no end; copy it again, or export it again")


def _check_unused_bits(values: np.ndarray, stored: int, is_signed: bool) -> None:
    """GDCM cuts values [N] uint16 down to `stored` bits: what is above must be nothing, or repeat the sign."""
    above = values >> stored
    is_negative = (values >> (stored - 1) & 1).astype(bool)
    all_ones = (1 << (16 - stored)) - 1
    if not ((above == 0) | (is_signed & is_negative & (above == all_ones))).all():
        raise UserError(f"holds values of more than the {stored} bits that its header counts: export it again, or "
                        "correct BitsStored and HighBit")


def _stops_itk(dataset: Dataset) -> bool:
    """ITK reads no slice with a SpacingBetweenSlices of 0, though the positions tell the distance."""
    try:
        return float(dataset.get("SpacingBetweenSlices", 1)) == 0
    except (TypeError, ValueError):                 # empty, or no number
        return False


def _without_spacing(path: Path, folder: Path) -> Path:
    import pydicom
    dataset = pydicom.dcmread(path, force=True)
    del dataset.SpacingBetweenSlices
    copy = folder / "slice.dcm"
    pydicom.dcmwrite(copy, dataset, enforce_file_format=False)
    return copy
