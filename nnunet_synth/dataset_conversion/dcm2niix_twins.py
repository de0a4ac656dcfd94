"""Two volumes that dcm2niix wrote of one scan, of which one case is made.

NIfTI has one distance between slices and right angles. Of a series with gaps, or with a tilted gantry, dcm2niix writes
`x.nii.gz`, the slices as they are in a grid that is not theirs, and beside it `x_Eq_1.nii.gz`, resampled to even
distances, `x_Tilt_1.nii.gz`, sheared back, or `x_Tilt_Eq_1.nii.gz`. As two cases they would share their slices, perhaps
between training and validation, so the corrected one is taken, or the one that has a label map.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.dataset_conversion.volumes import read_volume
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

# The first number is 1; later ones are those of a name that was taken already.
_CORRECTED = re.compile(r"(?P<plain>.+?)(?P<tilt>_Tilt)?(?P<even>_Eq)?(_\d+)?")
_TOLERANCE = 1e-3               # mm, and of direction cosines


def find_twins(volumes: Mapping[str, SourceFile]) -> list[tuple[str, ...]]:
    """Names of volumes that are one scan, the one whose geometry is most to be trusted first, `x` last.

    Reads the volumes whose names look so, and no other.

    Args:
        volumes: name without ending → file.
    """
    families: dict[str, list[str]] = {}
    for name, file in volumes.items():
        found = _CORRECTED.fullmatch(name)
        if (found["tilt"] or found["even"]) and found["plain"] in volumes \
                and _is_one_scan(volumes[found["plain"]], file, is_sheared=bool(found["tilt"])):
            families.setdefault(found["plain"], []).append(name)
    return [(*sorted(names, key=len, reverse=True), plain) for plain, names in families.items()]


def one_of(names: tuple[str, ...], labelled: Collection[str]) -> str:
    """Which of `find_twins` is taken: the most trusted one that has a label map, or the most trusted one."""
    return next((name for name in names if name in labelled), names[0])


def _is_one_scan(plain: SourceFile, corrected: SourceFile, is_sheared: bool) -> bool:
    """By their geometry; resampling keeps the first slice and its place, shearing moves rows in every slice."""
    try:
        one, other = read_volume(plain), read_volume(corrected)
    except UserError:                                       # told where it is read as a case
        return False
    in_plane = (one.GetSpacing()[:2], one.GetDirection()), (other.GetSpacing()[:2], other.GetDirection())
    if one.GetSize()[0] != other.GetSize()[0] or not all(
            np.allclose(*pair, rtol=0, atol=_TOLERANCE) for pair in zip(*in_plane, strict=True)):
        return False
    return is_sheared or _begin_alike(one, other)


def _begin_alike(one: SimpleITK.Image, other: SimpleITK.Image) -> bool:
    import SimpleITK
    first, second = (SimpleITK.GetArrayViewFromImage(image)[0] for image in (one, other))
    return np.allclose(one.GetOrigin(), other.GetOrigin(), rtol=0, atol=_TOLERANCE) and np.array_equal(first, second)
