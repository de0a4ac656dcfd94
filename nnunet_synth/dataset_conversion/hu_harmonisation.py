"""Hounsfield units for CT volumes of which some were published as 8-bit gray values of a window.

Gray value x of the window [-1250, 250] HU, scaled to 0…255, is x · 1500 / 255 - 1250 HU; steps are 5.9 HU. What the
window cut off, dense bone above all, stays at its limits. Which volumes these are is read from their voxels: air makes
every chest CT reach below -500 HU, gray values begin at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth.dataset_conversion.volumes import compact
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

WINDOW = (-1250.0, 250.0)               # HU
LARGEST_GRAY = 255.0
LOWEST_HU, AIR_BELOW_HU, BONE_ABOVE_HU = -4096, -500, 100
SOFT_TISSUE_HU = (-60, 140)             # blood, muscle and liver, without and with some contrast medium
_LEAST_CONTRAST_HU = 100                # between lung, however severely infected, and soft tissue
_LUNG_HU = (-1000, -300)                # healthy … severely infected, median of both lungs


def hu_doubts(lowest: float, highest: float) -> tuple[str, ...]:
    """What the report says of a CT whose values cannot be HU, though its source promises them.

    A chest CT holds air (-1000 HU) and bone; the lowest padding in use is about -3024.
    """
    is_plausible = LOWEST_HU <= lowest <= AIR_BELOW_HU and highest >= BONE_ABOVE_HU
    return () if is_plausible else ("NOT repaired: values do not look like HU, written as they are",)


@dataclass(frozen=True)
class Harmonised:
    """A volume in HU and what was found out about it.

    Attributes:
        image: int16 as stored, or float32 from gray values.
        repairs: phrases for the report.
        metadata: the range as stored, and whether bone is cut off at the window's upper end.
    """

    image: SimpleITK.Image
    repairs: tuple[str, ...]
    metadata: dict[str, Any]


def harmonise(image: SimpleITK.Image) -> Harmonised:
    """Bring a chest CT to HU: one in HU stays as it is, gray values 0…255 of `WINDOW` are scaled back.

    Raises:
        UserError: the values are neither.
    """
    import SimpleITK
    values = SimpleITK.GetArrayViewFromImage(image)
    lowest, highest = float(values.min()), float(values.max())
    metadata = {"lowest_stored_value": lowest, "highest_stored_value": highest}
    if lowest <= AIR_BELOW_HU:
        return Harmonised(compact(image), (), {**metadata, "limited_to_window": highest <= WINDOW[1]})
    # Interpolation may have overshot by a fraction; a range of a few gray values is no picture of a chest.
    if not (-1 <= lowest and LARGEST_GRAY / 2 < highest <= LARGEST_GRAY + 1):
        raise UserError(f"values from {lowest:g} to {highest:g} are neither HU (air is below {AIR_BELOW_HU}) nor gray "
                        f"values 0…{LARGEST_GRAY:g} of the window {WINDOW[0]:g}…{WINDOW[1]:g} HU")
    scale = (WINDOW[1] - WINDOW[0]) / LARGEST_GRAY
    hu = SimpleITK.Cast(image, SimpleITK.sitkFloat32) * scale + WINDOW[0]
    repair = (f"gray values {lowest:g} to {highest:g} scaled back to HU, "
              f"window {WINDOW[0]:g}…{WINDOW[1]:g}")
    return Harmonised(hu, (repair,), {**metadata, "limited_to_window": True})


def measure_tissue(hu: np.ndarray, lungs: np.ndarray) -> tuple[dict[str, float], tuple[str, ...]]:
    """Where lung and soft tissue lie in HU, to see how well a window was undone and whether the mask fits.

    Args:
        hu: [z, y, x].
        lungs: [z, y, x] bool, not empty.

    Returns:
        Metadata (`lung_hu`, the median, and `soft_tissue_hu`, the commonest value between the lungs) and phrases for
        the report where they are not those of HU.

    Raises:
        UserError: what the mask calls lung is as dense as what lies between.
    """
    from scipy.ndimage import find_objects, gaussian_filter1d
    box, = find_objects(lungs.view(np.uint8))
    hu, lungs = hu[box], lungs[box]
    third = lungs.shape[2] // 3
    around = hu[:, :, third:-third or None][~lungs[:, :, third:-third or None]]         # little fat, few ribs
    # Bins of 5 HU up to where bone begins, smoothed over several steps of the gray values.
    counts, edges = np.histogram(around, bins=80, range=(-200, 200))
    lung, tissue = float(np.median(hu[lungs])), float(edges[gaussian_filter1d(counts.astype(float), 6).argmax()] + 2.5)
    if lung > tissue - _LEAST_CONTRAST_HU:
        raise UserError(f"what the mask calls lung has {lung:.0f} HU, the tissue around it {tissue:.0f} HU: the mask "
                        "does not fit the image")
    doubts = [f"{name} at {value:.0f} HU, expected are {low} to {high}: were the gray values of another window?"
              for name, value, (low, high) in (("lungs", lung, _LUNG_HU), ("soft tissue", tissue, SOFT_TISSUE_HU))
              if not low <= value <= high]
    return ({"lung_hu": round(lung), "soft_tissue_hu": round(tissue)}, tuple(f"NOT repaired: {d}" for d in doubts))
