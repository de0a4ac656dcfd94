"""Images that share the UID of a series and are no slices of its volume: a scout, a report, a picture far away."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from nnunet_synth.dataset_conversion.case import PassedOver
from nnunet_synth.dataset_conversion.dicom_checks import ORIENTATION_TOLERANCE, check_series, why_no_slice
from nnunet_synth.dataset_conversion.dicom_header import Slice
from nnunet_synth.dataset_conversion.dicom_series import Series, slice_heights, sorted_slices

MAX_STRAYS = 4                  # two scouts and two of something else; with more it is another kind of series
_OTHER_PLANE = 0.9              # cosine between the normals: 26 degrees, more than the slices of one scan ever differ
_FAR_SLICES, _FAR_MM = 10, 50   # from its neighbour, and so far that nobody would interpolate between the two


def without_strays(series: Series, min_slices: int, allow_gaps: bool) -> Series:
    """The series without its stray images, which join `dropped`, if what is left is a volume; else as it is.

    Args:
        min_slices, allow_gaps: as in `check_series`.
    """
    if series.defect or len(series.slices) < 2:
        return series
    strays = _of_another_kind(series.slices)
    left = tuple(one for one in series.slices if one.uid not in strays)
    strays |= _far_away(left)
    rest = replace(series, slices=tuple(one for one in series.slices if one.uid not in strays),
                   dropped=(*series.dropped, *(PassedOver(str(one.file), strays[one.uid]) for one in series.slices
                                               if one.uid in strays)))
    is_volume = 0 < len(strays) <= MAX_STRAYS and check_series(rest, min_slices, allow_gaps) is None
    return rest if is_volume else series


def _of_another_kind(slices: tuple[Slice, ...]) -> dict[str, str]:
    """UID → why, of images that are no CT slices, and of those in another plane or of another size than most."""
    found = {one.uid: why for one in slices if (why := why_no_slice(one.header))}
    left = [one for one in slices if one.uid not in found]
    if not left:
        return found
    shape, _ = Counter(one.header.shape for one in left).most_common(1)[0]
    found |= {one.uid: f"of another size, {one.header.shape[0]} x {one.header.shape[1]}" for one in left
              if one.header.shape != shape}
    normals = {one.uid: np.cross(*np.reshape(one.header.orientation, (2, 3))) for one in left if one.header.orientation}
    if normals:
        usual = np.median(list(normals.values()), axis=0)
        found |= {uid: "in another plane" for uid, normal in normals.items() if abs(normal @ usual) < _OTHER_PLANE}
    return found


def _far_away(slices: tuple[Slice, ...]) -> dict[str, str]:
    """UID → why, of a single image below or above all others, which lie as it does."""
    if len(slices) < 3 or not all(one.header.position and one.header.orientation for one in slices) \
            or np.ptp([one.header.orientation for one in slices], axis=0).max() > ORIENTATION_TOLERANCE:
        return {}
    steps, order = np.diff(slice_heights(slices)), sorted_slices(slices)
    limit = max(_FAR_MM, _FAR_SLICES * float(np.median(steps)))
    return {order[end].uid: f"{steps[end]:.0f} mm away from the others" for end in (0, -1) if steps[end] > limit}
