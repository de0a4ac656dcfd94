"""NIfTI files with any header, byte by byte: the libraries would not write these."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SPACING = (0.7, 0.8, 5.0)       # x, y, z


def write_nifti(path: Path, array: np.ndarray, spacing: tuple[float, ...] = SPACING, version: int = 1,
                is_compressed: bool | None = None, **fields: Any) -> Path:
    """An array [x, y(, z)] in RAS axes.

    Args:
        is_compressed: by the name if not given.
        fields: of the header, set after all others: scl_slope=0, xyzt_units=1, …
    """
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_zooms(spacing[:array.ndim])
    header.set_xyzt_units("mm")
    affine = np.diag([*spacing, 1.0])
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = b"n+1" if version == 1 else b"n+2"
    header["vox_offset"] = 352 if version == 1 else 544
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + bytes(4) + array.astype(header.get_data_dtype()).tobytes(order="F")
    if is_compressed is None:
        is_compressed = path.name.lower().endswith(".gz")
    path.write_bytes(gzip.compress(content) if is_compressed else content)
    return path
