"""The intensities that count: what lies outside is cut off, for real and synthetic images alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nnunet_synth.errors import UserError
from nnunet_synth.quality.image_set import ImageSet

LUNG_CT = (-1250.0, 250.0)      # HU
PERCENTILES = (0.5, 99.5)
MAX_IMAGES = 200                # looked at for the percentiles


@dataclass(frozen=True)
class Window:
    """From `low` to `high`, in the unit of the images; `reason` says who chose it."""

    low: float
    high: float
    reason: str = "given"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"the intensity window {self.low:g} … {self.high:g} holds nothing: give LOW below HIGH")

    def to_unit(self, image: Tensor) -> Tensor:
        """Any shape → [0, 1], clipped."""
        return ((image - self.low) / (self.high - self.low)).clamp(0, 1)

    def to_gray(self, image: np.ndarray) -> np.ndarray:
        """Any shape → uint8, clipped."""
        return (np.clip((image - self.low) / (self.high - self.low), 0, 1) * 255).round().astype(np.uint8)


def drawn_window(ranges: Mapping[str, tuple[float, float] | None]) -> Window | None:
    """What all synthesizers could draw: real images reach further, and that alone would look like a fault of theirs.

    Args:
        ranges: set → where it was drawn; None = not known.
    """
    known = {name: bounds for name, bounds in ranges.items() if bounds is not None}
    if not known:
        return None
    low, high = max(low for low, _ in known.values()), min(high for _, high in known.values())
    return Window(low, high, f"the range in which {' and '.join(known)} was drawn")


def choose_window(real: ImageSet, is_ct: bool = False) -> Window:
    """That of lung CT for CT, 0 … 255 for 8-bit pictures, else percentiles of the real images.

    Raises:
        UserError: the real images have one intensity everywhere.
    """
    if is_ct:
        return Window(*LUNG_CT, "lung CT, HU")
    step = -(-len(real) // MAX_IMAGES)
    values = np.asarray(real.images[::step])
    if values.min() >= 0 and 1 < values.max() <= 255 and np.array_equal(values, values.round()):
        return Window(0.0, 255.0, "8-bit pictures")
    low, high = (float(bound) for bound in np.percentile(values, PERCENTILES))
    if not low < high:
        raise UserError(f"the images of {real.name} have the same intensity ({low:g}) nearly everywhere: nothing to "
                        "compare; give --window LOW HIGH if that is wrong")
    return Window(low, high, f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} of {real.name}")
