"""The Dice similarity coefficient."""

from __future__ import annotations

import math

import numpy as np


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """DSC = 2 |P ∩ T| / (|P| + |T|) of two bool masks of one shape; NaN if both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else math.nan
