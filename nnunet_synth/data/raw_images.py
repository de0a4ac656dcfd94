"""Reading raw images through nnU-Net's reader/writer classes, with every defect of a file told in one line.

nnU-Net's readers trust their input: SimpleITK reads a truncated `.nii.gz` without a word and hands back undefined
voxels, NaN becomes 0 HU or travels on until a loss is NaN, and a header in the wrong unit makes voxels of 700 mm.
Whatever reads raw images in this package does so here.
"""

from __future__ import annotations

import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth.data.label_rounding import rounded_labels
from nnunet_synth.data.nifti_header import NiftiHeader, is_gzip
from nnunet_synth.data.unreadable import NIFTI, misnamed, unreadable
from nnunet_synth.data.voxel_size import check_voxel_size
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
        UserError: a file is missing, empty, truncated, corrupt, holds NaN or infinity, has a header that readers take
            in different ways or voxels of an impossible size, or the channels do not match.
    """
    files = [Path(file) for file in files]
    for file in files:
        check_file(file)
    image, properties = _read(lambda: reader_writer.read_images([str(file) for file in files]), files)
    check_raw_image(image, str(files[0]))
    _check_geometry(files[0], image, properties)
    return image, properties


def read_segmentation(file: str | Path, reader_writer: BaseReaderWriter) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one label or layout map as nnU-Net will, and check it.

    Values that miss an integer by the rounding of a header are rounded, with a warning.

    Returns:
        The map [1, z, y, x] float32 holding integers, and nnU-Net's properties.

    Raises:
        UserError: as `read_image`; and for several channels (an RGB picture) or values that are not integers.
    """
    file = Path(file)
    check_file(file)
    segmentation, properties = _read(lambda: reader_writer.read_seg(str(file)), [file])
    check_raw_image(segmentation, str(file))
    if segmentation.shape[0] != 1:
        raise UserError(f"{file} has {segmentation.shape[0]} channels: a label map has one (save it as gray integers)")
    _check_geometry(file, segmentation, properties)
    segmentation, repair = rounded_labels(segmentation, str(file))
    if repair:
        print(f"warning: {file}: {repair}; nnU-Net itself would cut them off: save it as integers", file=sys.stderr)
    return segmentation, properties


def check_channels(image: np.ndarray, channel_names: Sequence[str], file: Path) -> None:
    """Raise UserError if `image` [C, …], read from `file` (and others), has not the channels of the dataset.

    Counted after reading: three may come from three files or from one RGB picture.
    """
    if len(image) == len(channel_names):
        return
    hint = {3: " (a colour or palette picture? save it as gray)",
            4: " (colours and transparency? save it without transparency)"}.get(len(image), "")
    raise UserError(f"{file} has {len(image)} channel(s){hint}, the dataset has {len(channel_names)}: "
                    f"{', '.join(channel_names)}")


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
    """Raise UserError if `file` is missing, unreadable, of zero bytes, or a NIfTI that is incomplete, not finite, or
    has a header that readers take in different ways."""
    check_name(file)
    try:
        with open(file, "rb") as opened:
            if not opened.read(1):
                raise UserError(f"{file} is empty (0 bytes): copy it again")
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if file.name.lower().endswith(NIFTI):
        _check_nifti(file)


def check_name(file: Path) -> None:
    """Raise UserError if the path is no text: SimpleITK, asked for such a file, ends the process."""
    if any("\ud800" <= character <= "\udfff" for character in str(file)):
        raise UserError(f"{file} has a name that is no UTF-8 text, and cannot be opened: rename it, or, where it looks "
                        "right to you, export LC_ALL=C.UTF-8")


def _read(read: Callable[[], tuple[np.ndarray, dict[str, Any]]],
          files: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
    names = ", ".join(map(str, files))
    said = io.StringIO()                            # nnU-Net prints the reason and raises an empty RuntimeError
    try:
        with redirect_stdout(said):
            array, properties = read()
    except MemoryError:
        raise
    except Exception as error:                      # every reader has its own zoo: OSError, SyntaxError, RuntimeError
        if "ERROR" in said.getvalue():
            raise UserError(f"{names}: the channels of one case must have the same shape and spacing") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if isinstance(error, AssertionError):       # what nnU-Net does not support, in a file that is whole
            raise UserError(f"{names} cannot be used: {reason}") from error
        raise unreadable(next(filter(misnamed, files), files[0]), reason) from error
    if said.getvalue():
        print(said.getvalue(), end="")
    return array, properties


def _check_geometry(file: Path, image: np.ndarray, properties: dict[str, Any]) -> None:
    """Of an image [C, z, y, x] and what its reader says of it."""
    if image.ndim != 4 or len(properties["spacing"]) != 3:
        raise UserError(f"{file} holds several values a voxel (colours?), which nnU-Net's reader takes for an axis: "
                        "save each of them as a channel of its own")
    check_voxel_size(file, properties["spacing"], image.shape[1:])


def _check_nifti(file: Path) -> None:
    """Compare the bytes with the header, look for what readers differ in, and for NaN and infinity.

    ITK's reader does nothing of it: it fills what a truncated file lacks with whatever is in memory, and turns NaN and
    infinity into 0, which in a CT is water.
    """
    try:
        with (gzip.open if is_gzip(file) else open)(file, "rb") as opened:
            header = NiftiHeader.parse(opened.read(540))
            if header is None:
                raise UserError(f"{file} is no NIfTI file, whatever its name says: copy it again")
            opened.seek(header.offset)
            num_read = num_bad = 0
            while block := opened.read(1 << 22):
                num_read += len(block)
                if header.dtype.kind == "f" and len(block) % header.dtype.itemsize == 0:
                    num_bad += int((~np.isfinite(np.frombuffer(block, header.dtype))).sum())
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{file} is truncated or corrupt: copy it again ({error})") from error
    if num_read < header.num_bytes:
        raise UserError(f"{file} is truncated: {num_read:,} of {header.num_bytes:,} bytes of voxels are there, copy it "
                        "again")
    if contradiction := header.contradiction():
        raise UserError(f"{file} {contradiction}")
    if num_bad:
        raise UserError(_non_finite(str(file), num_bad))


def _non_finite(name: str, num_bad: int) -> str:
    return f"{name} holds {num_bad} voxels that are NaN or infinite: repair it or remove it"
