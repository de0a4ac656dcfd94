"""Voxel sizes that cannot be right: nearly always a wrong unit of length, which nnU-Net would plan and resample by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_synth.data.nifti_header import IN_MILLIMETRES, UNITS, NiftiHeader
from nnunet_synth.errors import UserError

# mm. The finest micro-CT of an animal has voxels of some 5 µm, and CT of the lungs at three levels has its slices up to
# 100 mm apart. Clinical voxels measure 0.2 to 5 mm in plane: taken for metres or microns, they fall outside.
PLAUSIBLE = (0.005, 100.0)
_ANY_UNIT = (".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg")      # pictures; a .json beside a tif may say anything


def is_plausible(spacing: Sequence[float]) -> bool:
    """Whether all of `spacing` can be the mm of a scan; not so NaN and 0."""
    return all(PLAUSIBLE[0] <= length <= PLAUSIBLE[1] for length in spacing)


def check_voxel_size(file: str | Path, spacing: Sequence[float], shape: Sequence[int]) -> None:
    """Raise UserError, with the likely cause, if the voxels of `file` cannot have the size that they were read with.

    An axis with one voxel has none (nnU-Net gives a 2D image 999 times its pixels there).

    Args:
        file: or what it is called, where the image comes from several.
        spacing: mm, as read.
        shape: of the voxels, same order.
    """
    file = Path(file)
    name = file.name.lower()
    if name.endswith(_ANY_UNIT):
        return
    read = [float(step) for step, length in zip(spacing, shape, strict=True) if length > 1]
    header = NiftiHeader.read(file) if name.endswith((".nii", ".nii.gz")) else None
    if header is not None and header.unit in UNITS:
        _check_unit(file, read, header)
    elif not is_plausible(read):
        raise UserError(f"{_has_voxels(file, read)}, which no scan has ({PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g} mm): "
                        f"correct its header{_likely_unit(read)}")


def _check_unit(file: Path, read: Sequence[float], header: NiftiHeader) -> None:
    """Of a header in metres or microns: SimpleITK minds it, nibabel does not."""
    unit, stated = UNITS[header.unit], header.stated_voxel_size()
    is_stated = len(read) == len(stated) and np.allclose(sorted(read), sorted(stated), rtol=1e-3, atol=0)
    if is_stated and not is_plausible(read):
        raise UserError(f"{_has_voxels(file, read)}: its header says that lengths are in {unit} (xyzt_units "
                        f"{header.unit}), but its numbers look like {_likely_numbers(header)}: set xyzt_units to 2, "
                        "millimetres")
    if not is_stated and (is_plausible(stated) or not is_plausible(read)):
        raise UserError(f"{_has_voxels(file, stated)}, given in {unit} (xyzt_units {header.unit}), which nnU-Net's "
                        "reader of this dataset takes for millimetres: write them in millimetres")


def _likely_numbers(header: NiftiHeader) -> str:
    return "millimetres" if is_plausible(header.pixdim) else "another unit"


def _likely_unit(read: Sequence[float]) -> str:
    """What turns the numbers into plausible ones, if anything does."""
    for code, factor in IN_MILLIMETRES.items():
        if all(read) and is_plausible([step * factor for step in read]):
            return f" (are its numbers {UNITS[code]} instead of millimetres?)"
    return ""


def _has_voxels(file: Path, size: Sequence[float]) -> str:
    return f"{file} has voxels of {' x '.join(f'{step:.4g}' for step in size)} mm"
