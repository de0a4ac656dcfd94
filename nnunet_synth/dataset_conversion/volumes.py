"""CT volumes of a download as SimpleITK images: read with every check, in one orientation, in the smallest exact type.

All converters of volumes write LPS arrays (x to the patient's left, y to posterior, z to superior), because nnU-Net
looks at the array and not at the direction cosines. Turning permutes voxels: no value and no physical point changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nnunet_synth.data.raw_images import check_file
from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

ORIENTATION = "LPS"


def read_volume(file: SourceFile) -> SimpleITK.Image:
    """Read one 3-D volume as stored: no turning, no change of type.

    Raises:
        UserError: missing, empty, truncated, corrupt, NaN or infinite voxels, not 3-D (a fourth axis of length one is
            dropped), several values a voxel, or axes that are not perpendicular.
    """
    import SimpleITK
    with file.on_disk() as path:
        try:
            check_file(path)
            image = SimpleITK.ReadImage(str(path))
        except UserError as error:
            raise UserError(str(error).replace(str(path), str(file))) from error
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{file} is truncated, corrupt or no image: copy it again ({reason})") from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[..., 0]
    if image.GetDimension() != 3:
        raise UserError(f"{file} is {image.GetDimension()}-D of size {image.GetSize()}: a volume has three axes")
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{file} has {image.GetNumberOfComponentsPerPixel()} values a voxel: a CT has one")
    return image


def orientation(image: SimpleITK.Image) -> str:
    """The directions in which the x, y and z index grow, as three letters ("LPS")."""
    import SimpleITK
    return SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())


def to_lps(image: SimpleITK.Image) -> SimpleITK.Image:
    """The same voxels at the same physical points, as an LPS array."""
    import SimpleITK
    return image if orientation(image) == ORIENTATION else SimpleITK.DICOMOrient(image, ORIENTATION)


def turned(image: SimpleITK.Image) -> tuple[str, ...]:
    """The repair that `to_lps` is, for the report: ("turned from LPI to LPS",), or nothing."""
    return () if orientation(image) == ORIENTATION else (f"turned from {orientation(image)} to {ORIENTATION}",)


def compact(image: SimpleITK.Image) -> SimpleITK.Image:
    """The same values as int16 where they are such integers, else as float32; exact for every CT in HU."""
    import SimpleITK
    if image.GetPixelID() in (SimpleITK.sitkInt8, SimpleITK.sitkUInt8, SimpleITK.sitkInt16):
        return image
    values = SimpleITK.GetArrayViewFromImage(image)
    bounds = np.iinfo(np.int16)
    fits = values.min() >= bounds.min and values.max() <= bounds.max
    is_integer = values.dtype.kind in "iu" or np.array_equal(values, np.rint(values))
    return SimpleITK.Cast(image, SimpleITK.sitkInt16 if fits and is_integer else SimpleITK.sitkFloat32)


def value_counts(image: SimpleITK.Image) -> dict[float, int]:
    """Value → number of voxels, in the order of the values; integers for integer types.

    Counted slice by slice: sorting a whole volume, as np.unique does, takes as long as reading it.
    """
    import SimpleITK
    values = SimpleITK.GetArrayViewFromImage(image)
    if values.dtype.kind in "iu" and int(values.max()) - (low := int(values.min())) < 1 << 16:
        counts = sum(np.bincount(part.ravel().astype(np.int64) - low, minlength=1 << 16) for part in values)
        return {low + offset: int(counts[offset]) for offset in np.flatnonzero(counts).tolist()}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
