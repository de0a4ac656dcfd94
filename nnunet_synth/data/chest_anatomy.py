"""Where body, spine and heart are: what a chest says about its own size and orientation.

Volumes here have axes z → superior, y → posterior, x → the patient's left ("SPL", see `body_axes.py`).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

TISSUE_HU, BONE_HU = -300.0, 150.0
DENSE_BONE_HU = 250.0           # denser than most of a heart full of contrast medium
# As it should be: the heart 0 to 24 mm to the left (ten COVID-19-20 pseudo-masks and a real volume), 0.56 to 0.89 of
# the bone behind (six real slices, some with contrast medium, and that volume).
HEART_ON_THE_RIGHT_MM = 6.0
SPINE_IN_FRONT = 0.4
_SPINE_MM = 12.0        # smoothing across: half of a vertebra's width
_LEAST_BONE_MM = 3.0    # from front to back in the spine's column, mean over the slices
_OUTLINE = 128          # rows and columns are enough for the body's outline


def body_columns(hu: np.ndarray) -> tuple[float, float]:
    """First and last column of the body, median over the slices; those of the image where there is no body.

    A table is thinner than a tenth of the rows and does not count.
    """
    step = max(1, max(hu.shape[1:]) // _OUTLINE)
    is_body = (hu[:, ::step, ::step] > TISSUE_HU).mean(axis=1) > 0.1
    ends = [np.flatnonzero(columns)[[0, -1]] for columns in is_body if columns.any()]
    first, last = np.median(ends, axis=0) * step if ends else (0.0, hu.shape[2] - 1.0)
    return float(first), float(last)


def spine_column(hu: np.ndarray, spacing: tuple[float, ...], first_row: int) -> float | None:
    """The column in which bone is commonest behind `first_row`; None where hardly any is seen.

    Ribs and shoulder blades lie on both sides of it and spread over more columns. The middle half of the body is
    searched, where the arms are not, and its middle preferred.
    """
    bone = ndimage.gaussian_filter(hu[:, first_row:], (0, 1, 1)) > BONE_HU
    depth = ndimage.gaussian_filter1d(bone.sum(axis=(0, 1)) * spacing[1] / len(hu), _SPINE_MM / spacing[2],
                                      mode="constant")
    first, last = body_columns(hu)
    from_middle = np.abs(np.arange(hu.shape[2]) - (first + last) / 2) / max(last - first, 1)     # in body widths
    column = int(np.where(from_middle < 0.25, depth * np.exp(-(from_middle / 0.2) ** 2 / 2), -1).argmax())
    return float(column) if depth[column] > _LEAST_BONE_MM else None


# ----------------------------------------------------------------------------------------------------------------------
# Does the anatomy agree with the axes?


# Only strong contradictions count, because fluid and collapse push the heart about as well; and nothing is turned,
# because the geometry may be right (situs inversus): a person must look.


def is_heart_on_the_right(left: np.ndarray, right: np.ndarray, column_mm: float) -> bool:
    """Whether the lungs leave room for the heart on the right.

    Args:
        left, right: [z, y, x] bool, the lungs.
        column_mm: distance between columns.
    """
    shift = heart_shift(left, right)
    return shift is not None and shift * column_mm < -HEART_ON_THE_RIGHT_MM


def heart_shift(left: np.ndarray, right: np.ndarray) -> float | None:
    """By how many columns the gap between the lungs lies left of their middle; None where they leave no gap.

    Measured where the heart is: in front (two thirds of the rows) and low, yet above the domes of the diaphragm (from
    15 to 60 % of the lungs' volume, counted from below).
    """
    lungs = left | right
    below = np.cumsum(lungs.sum(axis=(1, 2)))
    shifts = [_shifts_of_slice(left[index], right[index])
              for index in np.flatnonzero((below > 0.15 * below[-1]) & (below < 0.6 * below[-1]))
              if lungs[index].any()]
    shifts = np.concatenate(shifts) if shifts else np.array([])
    return float(shifts.mean()) if shifts.size else None


def _shifts_of_slice(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of each row with both lungs, in columns."""
    rows, columns = (np.flatnonzero((left | right).any(axis=axis)) for axis in (1, 0))
    front = rows[:2 * len(rows) // 3]
    front = front[left[front].any(axis=1) & right[front].any(axis=1)]
    left_begins = left[front].argmax(axis=1)
    right_ends = right.shape[1] - 1 - right[front, ::-1].argmax(axis=1)
    return (left_begins + right_ends) / 2 - (columns[0] + columns[-1]) / 2


def is_spine_in_front(hu: np.ndarray, lungs: np.ndarray) -> bool:
    """Whether most of the bone near the midline lies in front of the middle of the lungs."""
    return bool(lungs.any()) and bone_behind(hu, lungs) < SPINE_IN_FRONT


def bone_behind(hu: np.ndarray, lungs: np.ndarray) -> float:
    """Share of the bone near the midline that lies behind the middle of the lungs: the spine, not the breastbone."""
    slices, rows, columns = (np.flatnonzero(lungs.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    middle, reach = (columns[0] + columns[-1]) / 2, 0.2 * np.ptp(columns)
    near = hu[slices, :, max(0, int(middle - reach)):int(middle + reach) + 1]
    bone = (ndimage.gaussian_filter(near, (0, 1, 1)) > DENSE_BONE_HU).sum(axis=(0, 2))
    return float(bone[int(rows.mean()):].sum() / bone.sum()) if bone.any() else 1.0
