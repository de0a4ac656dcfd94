"""Reading raw images through nnU-Net's reader/writer classes, with every defect of a file told in one line.

nnU-Net's readers trust their input: SimpleITK reads a truncated `.nii.gz` without a word and hands back undefined
voxels, and NaN becomes 0 HU or travels on until a loss is NaN. Whatever reads raw images in this package does so here.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter


def list_cases(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Case id → its channels in order, by nnU-Net's rule `CASE_dddd<ending>`, sorted by id; {} if there is no folder.

    Hidden files are left out: macOS puts a `._CASE_0000.nii.gz` beside each file that it copies.

    Raises:
        UserError: the folder may not be read, which is not the same as empty.
    """
    pattern = re.compile(r"(?P<case>[^.].*)_\d{4}" + re.escape(ending), re.DOTALL)
    cases: dict[str, list[Path]] = {}
    for file in files_in(folder):
        if match := pattern.fullmatch(file.name):
            cases.setdefault(match["case"], []).append(file)
    return dict(sorted(cases.items()))


def files_in(folder: Path) -> list[Path]:
    """All that lies in a folder, sorted by name; [] if there is no folder. Raises UserError if it may not be read."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def read_image(files: Sequence[str | Path], reader_writer: BaseReaderWriter) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one case, one file a channel, as nnU-Net will, and check it.

    Args:
        files: the channels in order, `CASE_0000.ext`, `CASE_0001.ext`, …
        reader_writer: an instance of nnU-Net's class for this dataset (`plans_manager.image_reader_writer_class()`).

    Returns:
        The image [C, z, y, x] float32 in its raw unit (HU, gray values) and nnU-Net's properties (`spacing`, …).

    Raises:
        UserError: a file is missing, empty, truncated, corrupt, holds NaN or infinity, or the channels do not match.
    """
    files = [Path(file) for file in files]
    for file in files:
        check_file(file)
    image, properties = _read(reader_writer.read_images, [str(file) for file in files], ", ".join(map(str, files)))
    check_raw_image(image, str(files[0]))
    return image, properties


def read_segmentation(file: str | Path, reader_writer: BaseReaderWriter) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one label or layout map as nnU-Net will, and check it.

    Returns:
        The map [1, z, y, x] float32 holding integers, and nnU-Net's properties.

    Raises:
        UserError: as `read_image`; and for several channels (an RGB picture) or values that are not integers.
    """
    check_file(Path(file))
    segmentation, properties = _read(reader_writer.read_seg, str(file), str(file))
    check_raw_image(segmentation, str(file))
    if segmentation.shape[0] != 1:
        raise UserError(f"{file} has {segmentation.shape[0]} channels: a label map has one (save it as gray integers)")
    if not np.array_equal(segmentation, np.rint(segmentation)):
        raise UserError(f"{file} holds values that are not integers: it is no label map")
    return segmentation, properties


def check_raw_image(array: np.ndarray, name: str) -> None:
    """Raise UserError if `array` [C, z, y, x] is empty or holds NaN or infinity."""
    if array.size == 0:
        raise UserError(f"{name} holds no voxels (shape {tuple(array.shape)}): copy it again or remove it")
    # One pass without a mask array: the sum of finite float64 never overflows for images in float32.
    with np.errstate(invalid="ignore"):             # inf - inf
        is_finite = np.isfinite(array.sum(dtype=np.float64))
    if not is_finite:
        raise UserError(_non_finite(name, int(array.size - np.isfinite(array).sum())))


def check_file(file: Path) -> None:
    """Raise UserError if `file` is missing, unreadable, of zero bytes, or a NIfTI that is incomplete or not finite."""
    try:
        with open(file, "rb") as opened:
            if not opened.read(1):
                raise UserError(f"{file} is empty (0 bytes): copy it again")
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if file.name.lower().endswith((".nii", ".nii.gz")):
        _check_nifti(file)


def _read(read: Any, files: Any, names: str) -> tuple[np.ndarray, dict[str, Any]]:
    said = io.StringIO()                            # nnU-Net prints the reason and raises an empty RuntimeError
    try:
        with redirect_stdout(said):
            array, properties = read(files)
    except MemoryError:
        raise
    except Exception as error:                      # every reader has its own zoo: OSError, SyntaxError, RuntimeError
        if "ERROR" in said.getvalue():
            raise UserError(f"{names}: the channels of one case must have the same shape and spacing") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"{names} is truncated or corrupt: copy it again ({reason})") from error
    if said.getvalue():
        print(said.getvalue(), end="")
    return array, properties


def _check_nifti(file: Path) -> None:
    """Compare the bytes with the header, and look for NaN and infinity.

    ITK's reader does neither: it fills what a truncated file lacks with whatever is in memory, and turns NaN and
    infinity into 0, which in a CT is water.
    """
    try:
        with open(file, "rb") as opened:
            is_gzip = opened.read(2) == b"\x1f\x8b"
        with (gzip.open if is_gzip else open)(file, "rb") as opened:
            layout = _nifti_layout(opened.read(540))
            if layout is None:
                raise UserError(f"{file} is no NIfTI file, whatever its name says: copy it again")
            offset, num_bytes, dtype = layout
            opened.seek(offset)
            num_read = num_bad = 0
            while block := opened.read(1 << 22):
                num_read += len(block)
                if dtype.kind == "f" and len(block) % dtype.itemsize == 0:
                    num_bad += int((~np.isfinite(np.frombuffer(block, dtype))).sum())
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{file} is truncated or corrupt: copy it again ({error})") from error
    if num_read < num_bytes:
        raise UserError(f"{file} is truncated: {num_read:,} of {num_bytes:,} bytes of voxels are there, copy it again")
    if num_bad:
        raise UserError(_non_finite(str(file), num_bad))


def _nifti_layout(header: bytes) -> tuple[int, int, np.dtype] | None:
    """Offset and number of the bytes of the voxels and their type, by nifti1.h and nifti2.h; None if it is neither."""
    for order in "<>":
        if len(header) < 348:
            return None
        size = struct.unpack_from(order + "i", header, 0)[0]
        if size == 348:
            dim = struct.unpack_from(order + "8h", header, 40)
            code, bits = struct.unpack_from(order + "2h", header, 70)
            offset = struct.unpack_from(order + "f", header, 108)[0]
        elif size == 540 and len(header) == 540:
            code, bits = struct.unpack_from(order + "2h", header, 12)
            dim = struct.unpack_from(order + "8q", header, 16)
            offset = struct.unpack_from(order + "q", header, 168)[0]
        else:
            continue
        if not 1 <= dim[0] <= 7:
            return None
        num_voxels = math.prod(max(length, 1) for length in dim[1:1 + dim[0]])
        floating = {16: "f4", 64: "f8"}.get(code)       # the other types hold integers (or nothing nnU-Net reads)
        return int(offset), num_voxels * bits // 8, np.dtype(order + floating if floating else "u1")
    return None


def _non_finite(name: str, num_bad: int) -> str:
    return f"{name} holds {num_bad} voxels that are NaN or infinite: repair it or remove it"
