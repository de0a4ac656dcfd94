"""CT volumes of a download as SimpleITK images: read with every check, in one orientation, in the smallest exact type.

All converters of volumes write LPS arrays (x to the patient's left, y to posterior, z to superior), because nnU-Net
looks at the array and not at the direction cosines. Turning permutes voxels: no value and no physical point changes.

**Which geometry counts.** The one that ITK, and so nnU-Net's SimpleITKIO, takes. In a NIfTI that is the sform if its
code is 1 (scanner) and its axes are perpendicular, else the qform if it has a code, else the sform. Where the header
also says something else, the report tells.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_synth.data.nifti_header import IN_MILLIMETRES, NiftiHeader
from nnunet_synth.data.raw_images import check_file
from nnunet_synth.data.unreadable import NIFTI, unreadable
from nnunet_synth.data.voxel_size import check_voxel_size
from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

ORIENTATION = "LPS"
# Degrees by which axes may miss the right angle: three decimals of a direction cosine; 0.5 mm across a chest.
MAX_TILT = 0.1
# Voxels by which another geometry in the same header may move the corners without being mentioned.
_SAME_PLACE = 0.1
_REPAIRS = "nnunet_synth repairs"


def read_volume(file: SourceFile) -> SimpleITK.Image:
    """Read one 3-D volume as stored: no turning, no change of type.

    Axes that miss the right angle by the rounding of a header are made perpendicular; `turned` tells.

    Raises:
        UserError: missing, empty, truncated, corrupt, NaN or infinite voxels, a header that readers take in different
            ways, voxels of an impossible size, not 3-D (a fourth axis of length one is dropped), several values a
            voxel, or axes that are not perpendicular.
    """
    with file.on_disk() as path:
        try:
            check_file(path)
            image, repairs = _read(path)
            if image.GetDimension() == 4 and image.GetSize()[3] == 1:
                image = image[..., 0]
            if image.GetDimension() != 3:
                raise UserError(f"{path} is {image.GetDimension()}-D of size {image.GetSize()}: a volume has three "
                                "axes")
            if image.GetNumberOfComponentsPerPixel() != 1:
                raise UserError(f"{path} has {image.GetNumberOfComponentsPerPixel()} values a voxel: a CT has one")
            check_voxel_size(path, image.GetSpacing(), image.GetSize())
            repairs += _made_perpendicular(image, path)
            if path.name.lower().endswith(NIFTI):
                repairs += _other_geometries(image, path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), str(file))) from error
    image.SetMetaData(_REPAIRS, "\n".join(repairs))
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
    """The repairs that `read_volume` made and `to_lps` will make, for the report: ("turned from LPI to LPS",)."""
    while_reading = image.GetMetaData(_REPAIRS).splitlines() if image.HasMetaDataKey(_REPAIRS) else ()
    own = orientation(image)
    return (*while_reading, *([f"turned from {own} to {ORIENTATION}"] if own != ORIENTATION else []))


def compact(image: SimpleITK.Image) -> SimpleITK.Image:
    """The same values as int16 where they are such integers, else as float32; exact for every CT in HU."""
    import SimpleITK
    if image.GetPixelID() in (SimpleITK.sitkInt8, SimpleITK.sitkUInt8, SimpleITK.sitkInt16):
        return image
    fits = fits_int16(SimpleITK.GetArrayViewFromImage(image))
    return SimpleITK.Cast(image, SimpleITK.sitkInt16 if fits else SimpleITK.sitkFloat32)


def fits_int16(values: np.ndarray) -> bool:
    """Whether all values are integers that int16 can hold."""
    bounds = np.iinfo(np.int16)
    return bool(values.min() >= bounds.min and values.max() <= bounds.max
                and (values.dtype.kind in "iu" or np.array_equal(values, np.rint(values))))


def value_counts(image: SimpleITK.Image) -> dict[float, int]:
    """Value → number of voxels, in the order of the values; integers for integer types.

    Counted slice by slice, and the lowest value, a label map's background, apart: np.unique, which sorts the whole
    volume, takes as long as reading it.
    """
    import SimpleITK
    values = SimpleITK.GetArrayViewFromImage(image)
    if values.dtype.kind in "iu" and int(values.max()) - (low := int(values.min())) < 1 << 16:
        counts = sum(np.bincount(part[part != low].astype(np.int64) - low, minlength=1 << 16) for part in values)
        counts[0] = values.size - counts.sum()
        return {low + offset: int(counts[offset]) for offset in np.flatnonzero(counts).tolist()}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# Geometries that need a word


def _read(path: Path) -> tuple[SimpleITK.Image, tuple[str, ...]]:
    """ITK's image; where its axes are not quite perpendicular, which ITK refuses in a NIfTI, with the nearest ones."""
    import SimpleITK
    try:
        with _quiet_itk():
            return SimpleITK.ReadImage(str(path)), ()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        if "orthonormal" not in reason:
            raise unreadable(path, reason) from error
    import nibabel
    repair = _checked_tilt(nibabel.load(path).affine[:3, :3], path)
    os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = "1"
    try:
        with _quiet_itk():
            return SimpleITK.ReadImage(str(path)), (repair,)
    finally:
        del os.environ["ITK_NIFTI_SFORM_PERMISSIVE"]


def _made_perpendicular(image: SimpleITK.Image, path: Path) -> tuple[str, ...]:
    """Set the direction to the nearest perpendicular one; other formats than NIfTI come with any."""
    axes = np.reshape(image.GetDirection(), (3, 3))
    if np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=1e-4):        # as ITK sees it
        return ()
    repair = _checked_tilt(axes, path)
    left, _, right = np.linalg.svd(axes)
    image.SetDirection((left @ right).ravel().tolist())
    return (repair,)


def _checked_tilt(axes: np.ndarray, path: Path) -> str:
    """The repair; raises UserError if the columns of `axes` [3, 3] miss the right angle by more than `MAX_TILT`."""
    columns = axes / np.linalg.norm(axes, axis=0)
    cosine = np.abs(columns.T @ columns - np.eye(3)).max()
    tilt = np.degrees(np.arcsin(min(cosine, 1.0)))
    if not tilt <= MAX_TILT:
        raise UserError(f"{path} has axes that are not perpendicular (off by {tilt:.2f} degrees, a tilted gantry?): "
                        "resample it to a grid of right angles first")
    return f"axes that were {tilt:.3f} degrees off the right angle made perpendicular"


def _other_geometries(image: SimpleITK.Image, path: Path) -> tuple[str, ...]:
    """What else the header of a NIfTI says about where the voxels are."""
    import nibabel
    try:
        header = nibabel.load(path).header
        forms = {"sform": header.get_sform(coded=True)[0], "qform": header.get_qform(coded=True)[0]}
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, ValueError) as error:
        return (f"odd header ({error}): geometry taken as nnU-Net does",)
    if all(affine is None for affine in forms.values()):
        return (f"no orientation in the header: axes taken as {orientation(image)}, as nnU-Net does",)
    corners = np.array(list(product(*([0, length - 1] for length in image.GetSize()))))
    places = np.array([image.TransformIndexToPhysicalPoint(corner) for corner in corners.tolist()])
    in_mm = IN_MILLIMETRES.get(NiftiHeader.read(path).unit, 1.0)        # nibabel leaves metres and microns as they are
    said = []
    for name, affine in forms.items():
        if affine is not None and not np.isfinite(affine).all():
            said.append(f"the {name} of the header is not finite: ignored, as nnU-Net does")
        elif affine is not None:
            others = (corners @ affine[:3, :3].T + affine[:3, 3]) * in_mm * (-1, -1, 1)         # NIfTI is RAS, ITK LPS
            distance = np.linalg.norm(others - places, axis=1).max()
            if distance > _SAME_PLACE * min(image.GetSpacing()):
                said.append(f"the {name} of the header puts voxels up to {distance:.1f} mm elsewhere: ignored, as "
                            "nnU-Net does")
    return tuple(said)


@contextmanager
def _quiet_itk() -> Iterator[None]:
    """What ITK warns of on stderr stands in the report."""
    import SimpleITK
    shown = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(shown)
