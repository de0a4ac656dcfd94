"""Label values that miss an integer, as a header with a scale makes them: 0.99999 instead of 1.

A tool that was told to save 0, 1, 2 as scaled bytes stores 0, 127, 255 and scl_slope 2/255, which read 0.996 for 1.
Cutting off, as a cast to integers does, makes background of it.
"""

from __future__ import annotations

import numpy as np

from nnunet_synth.errors import UserError

LARGEST_ROUNDING = 1e-3         # beyond it no rounding of a float32 header explains the values


def rounded_labels(values: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """Integers of the same type, and what was done: "" if nothing.

    Raises:
        UserError: a value is farther than `LARGEST_ROUNDING` from an integer.
    """
    if values.dtype.kind in "iub":
        return values, ""
    integers = np.rint(values)
    with np.errstate(invalid="ignore"):             # inf - inf
        difference = np.abs(values - integers)
    largest = float(difference.max(initial=0))
    if not largest <= LARGEST_ROUNDING:             # NaN neither
        value = float(values.ravel()[int(difference.argmax())])
        raise UserError(f"{name} holds values that are not integers, e.g. {value:.6g}: it is no label map, or its "
                        "header scales it (scl_slope): round its values and save them as integers")
    return integers, f"values within {LARGEST_ROUNDING:g} of an integer rounded" if largest else ""
