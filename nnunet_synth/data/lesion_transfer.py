"""Lesions of a labelled slice in the anatomy of another one, so that unlabelled scans can be drawn with lesions."""

from __future__ import annotations

import numpy as np


def transfer_lesions(label: np.ndarray, donor_layout: np.ndarray, layout: np.ndarray) -> np.ndarray:
    """Paste the lesions of a slice into the layout of another one.

    The bounding box of the donor's anatomy is stretched onto the other's (nearest neighbour), so that a lesion keeps
    its place in the organ (at the back, at the rim); what falls outside the new anatomy is cut off.

    Args:
        label: [H, W] integers, the donor's lesions.
        donor_layout: [H, W] integers, > 0 in the donor's anatomy.
        layout: [H', W'] integers, > 0 where lesions may lie.

    Returns:
        [H', W'] of label's dtype; all 0 where either has no anatomy.
    """
    transferred = np.zeros(layout.shape, label.dtype)
    if not (donor_layout > 0).any() or not (layout > 0).any():
        return transferred
    rows, columns = (_matching(donor, receiver) for donor, receiver in
                     zip(_extents(donor_layout > 0), _extents(layout > 0), strict=True))
    (top, bottom), (left, right) = _extents(layout > 0)
    transferred[top:bottom, left:right] = label[np.ix_(rows, columns)]
    return np.where(layout > 0, transferred, 0).astype(label.dtype)


def _extents(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and one past the last index of the mask, of each axis."""
    found = [np.flatnonzero(mask.any(1 - axis)) for axis in (0, 1)]
    return [(int(indices[0]), int(indices[-1]) + 1) for indices in found]


def _matching(donor: tuple[int, int], receiver: tuple[int, int]) -> np.ndarray:
    """For each index of the receiver's extent the donor's at the same relative place."""
    length = receiver[1] - receiver[0]
    return donor[0] + ((np.arange(length) + 0.5) * (donor[1] - donor[0]) / length).astype(int)
