"""What the header of a NIfTI file says, and where readers take it in different ways.

nnU-Net reads through SimpleITK (SimpleITKIO) or nibabel (NibabelIO). They agree on every sound header; on others:

    scl_slope 0, scl_inter −1024    the standard and nibabel: no scaling; SimpleITK adds −1024
    scl_slope 1e-30                 nibabel multiplies; SimpleITK ignores what is below the epsilon of float64
    xyzt_units metres, microns      SimpleITK makes millimetres of them; nibabel takes the numbers for millimetres
    pixdim 0 or NaN                 both may take 1 mm
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IN_MILLIMETRES = {1: 1000.0, 3: 0.001}      # by xyzt_units; 2 is millimetres, and other codes are taken for them
UNITS = {1: "metres", 3: "microns"}
_FARTHEST = 2**62                           # no file is that long, and none can be asked for more


@dataclass(frozen=True)
class NiftiHeader:
    """The part of a header that this package looks at.

    Attributes:
        version: 1 or 2.
        offset, num_bytes: of the voxels in the (unpacked) file.
        dtype: of a voxel.
        slope, intercept: scl_slope, scl_inter.
        pixdim: voxel size in x, y, z along the axes with more than one voxel, in the unit of the file.
        unit: code of the unit of length.
    """

    version: int
    offset: int
    num_bytes: int
    dtype: np.dtype
    slope: float
    intercept: float
    pixdim: tuple[float, ...]
    unit: int

    @classmethod
    def parse(cls, content: bytes) -> NiftiHeader | None:
        """Of the first 540 bytes of a file or more; None if it is no NIfTI."""
        import nibabel
        for version, kind, size in ((1, nibabel.Nifti1Header, 348), (2, nibabel.Nifti2Header, 540)):
            if len(content) < size or size not in (int.from_bytes(content[:4], order) for order in ("little", "big")):
                continue
            header = kind(content[:size], check=False)
            dim, offset = header["dim"].tolist(), float(header["vox_offset"])
            try:
                dtype = header.get_data_dtype()
            except KeyError:                    # a code that nifti1.h does not know
                return None
            if int(header["sizeof_hdr"]) != size or not 1 <= dim[0] <= 7 or not math.isfinite(offset) \
                    or not dtype.itemsize:
                return None
            num_voxels = math.prod(max(length, 1) for length in dim[1:1 + dim[0]])
            return cls(version, min(max(int(offset), size), _FARTHEST), num_voxels * dtype.itemsize, dtype,
                       float(header["scl_slope"]), float(header["scl_inter"]),
                       tuple(float(header["pixdim"][axis]) for axis in range(1, min(dim[0], 3) + 1) if dim[axis] > 1),
                       int(header["xyzt_units"]) & 7)
        return None

    @classmethod
    def read(cls, file: Path) -> NiftiHeader | None:
        """None if `file` cannot be read, or holds no NIfTI."""
        try:
            with (gzip.open if is_gzip(file) else open)(file, "rb") as opened:
                return cls.parse(opened.read(540))
        except (EOFError, OSError, zlib.error):
            return None

    def stated_voxel_size(self) -> tuple[float, ...]:
        """`pixdim` in mm, by the unit that the header names."""
        return tuple(abs(length) * IN_MILLIMETRES.get(self.unit, 1.0) for length in self.pixdim)

    def contradiction(self) -> str:
        """What readers would take in different ways, and what to do; "" if nothing."""
        slope, intercept = self.slope, self.intercept
        is_scaled = slope != 0 and not math.isnan(slope)
        if is_scaled and not (math.isfinite(slope) and math.isfinite(intercept)):
            return (f"has scl_slope {slope:g} and scl_inter {intercept:g} in its header, by which no voxel has a "
                    "value: set them to 1 and 0 if the stored values are right")
        if is_scaled and abs(slope) < np.finfo(np.float64).eps:
            return (f"has scl_slope {slope:g} in its header, which some readers ignore, for its values would all be "
                    "nearly 0: set it to 1 if the stored values are right")
        if not is_scaled and intercept and math.isfinite(intercept):
            return (f"has scl_inter {intercept:g} in its header but scl_slope {slope:g}, which means no scaling: "
                    f"readers differ by {abs(intercept):g} in its values. Set scl_slope to 1 if {intercept:g} is to be "
                    "added, else scl_inter to 0")
        if not all(math.isfinite(length) and length for length in self.pixdim):
            return (f"says that its voxels measure {' x '.join(f'{length:g}' for length in self.pixdim)} mm: set "
                    "pixdim in its header to their true size")
        return ""


def is_gzip(file: Path) -> bool:
    """By content. Raises OSError if it cannot be read."""
    with open(file, "rb") as opened:
        return opened.read(2) == b"\x1f\x8b"
