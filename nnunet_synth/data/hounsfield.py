"""CT values that cannot be Hounsfield units. Only what is sure: a windowed or masked CT is one, too."""

from __future__ import annotations

import numpy as np

INTERCEPT = 1024.0              # what nearly every scanner adds to HU before it stores them
SOFT_TISSUE = (-150.0, 100.0)   # HU: fat, water, muscle, blood
# Of the voxels, at this place: a quarter of a chest or head and more, and of bone alone a few percent.
_SHARE_OF_TISSUE = 0.1
_DENSEST = 1e5                  # 16 bits, and a slope for metal, end below


def not_hounsfield(image: np.ndarray) -> str:
    """Why `image` (any shape) cannot be in HU, "" where it may be: stored values without their intercept, or numbers
    beyond all scanners."""
    lowest, highest = float(image.min()), float(image.max())
    if max(-lowest, highest) > _DENSEST:
        return (f"holds values such as {max(lowest, highest, key=abs):.3g}, which no CT in Hounsfield units has: "
                "correct the scale in its header (scl_slope)")
    low, high = (bound + INTERCEPT for bound in SOFT_TISSUE)
    if lowest >= 0 and np.mean((image > low) & (image < high)) > _SHARE_OF_TISSUE:
        return (f"holds values from {lowest:.0f} on with tissue around {INTERCEPT:.0f} instead of 0, stored values "
                f"without their intercept: subtract {INTERCEPT:.0f} to have Hounsfield units")
    return ""
