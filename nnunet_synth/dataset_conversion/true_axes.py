"""Volumes whose headers cannot be trusted, not even about which axis is which: told from the anatomy and put right.

`chest_orientation` finds reversed axes. Here rows and columns may be exchanged too, as in arrays that were turned by 90
degrees and saved without a header of their own. Of the volume as it is and with rows and columns exchanged, the right
one shows the clearer signs: |feet to head| and |front to back| add up to 1.71 against 1.10 for a real chest, and for
three phantoms to at least 1.59 against at most 0.91.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nnunet_synth.dataset_conversion.chest_orientation import OVERWHELMING, Finding, find_orientation
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

_CLEARER = 0.3                          # by so much, or rows and columns stay
_PIXELS, _SLICES = 128, 64              # the anatomy is looked for in no more than these


@dataclass(frozen=True)
class TrueAxes:
    """How an array [z, y, x], LPS by its header, lies in truth.

    Attributes:
        is_transposed: y and x are exchanged.
        finding: with y and x exchanged back: the axes that are reversed, the evidence, the doubts.
    """

    is_transposed: bool
    finding: Finding

    @property
    def repairs(self) -> tuple[str, ...]:
        """Phrases for the report."""
        return ("rows and columns exchanged against the header",) * self.is_transposed + self.finding.repairs

    def put_right(self, image: SimpleITK.Image) -> SimpleITK.Image:
        """The voxels of an image of this geometry as a true LPS array; the origin, which meant nothing, stays."""
        import SimpleITK
        array, spacing = SimpleITK.GetArrayFromImage(image), image.GetSpacing()
        if self.is_transposed:
            array, spacing = array.transpose(0, 2, 1), (spacing[1], spacing[0], spacing[2])
        result = SimpleITK.GetImageFromArray(np.ascontiguousarray(np.flip(array, self.finding.reversed_axes)))
        result.SetSpacing(spacing)
        result.SetOrigin(image.GetOrigin())
        result.SetDirection(image.GetDirection())
        return result


def find_true_axes(image: SimpleITK.Image) -> TrueAxes:
    """Look where lungs, spine and heart are.

    Nothing is changed without decisive signs. Where some axis is wrong and the heart does not tell left from right, the
    array is taken for turned, not for mirrored.

    Args:
        image: CT in HU, an LPS array by its header.
    """
    hu, spacing = _reduced(image)
    as_is = _find(hu, spacing)
    exchanged = _find(np.ascontiguousarray(hu.transpose(0, 2, 1)), (spacing[0], spacing[2], spacing[1]))
    clearer = _clarity(exchanged) - _clarity(as_is)
    is_transposed = clearer > _CLEARER
    finding = exchanged if is_transposed else as_is
    if finding is None:
        doubt = "no lungs were found, so the header is trusted"
        return TrueAxes(False, Finding((0.0, 0.0, 0.0), (), False, (doubt,)))
    doubts = list(finding.doubts)
    if abs(clearer) <= _CLEARER:
        doubts.append("rows and columns may be exchanged")

    reversed_axes = tuple(axis for axis in finding.reversed_axes if axis != 2)
    if is_transposed or reversed_axes:
        is_odd = (len(reversed_axes) + is_transposed) % 2 == 1
        heart = finding.evidence[2]
        if heart <= -OVERWHELMING or (is_odd and heart < OVERWHELMING):
            reversed_axes += (2,)
    elif 2 in finding.reversed_axes:
        doubts.append("heart and aorta lie on the right")
    return TrueAxes(is_transposed, replace(finding, reversed_axes=reversed_axes, is_renumbered=False,
                                           doubts=tuple(doubts)))


def _find(hu: np.ndarray, spacing: tuple[float, ...]) -> Finding | None:
    from nnunet_synth.data.lung_threshold import find_lungs
    try:
        return find_orientation(hu, find_lungs(hu, spacing, "SPL"))
    except UserError:                               # no lungs
        return None


def _clarity(finding: Finding | None) -> float:
    return 0.0 if finding is None else abs(finding.evidence[0]) + abs(finding.evidence[1])


def _reduced(image: SimpleITK.Image) -> tuple[np.ndarray, tuple[float, ...]]:
    """Some slices, block means in plane: HU [z, y, x] float32, and the spacing (z, y, x) in mm."""
    import SimpleITK
    from skimage.measure import block_reduce
    hu = SimpleITK.GetArrayViewFromImage(image)
    step, factor = -(-hu.shape[0] // _SLICES), -(-max(hu.shape[1:]) // _PIXELS)
    x, y, z = image.GetSpacing()
    # Incomplete blocks at the border would be mixed with zeros.
    rows, columns = (length // factor * factor for length in hu.shape[1:])
    reduced = block_reduce(hu[::step, :rows, :columns].astype(np.float32), (1, factor, factor), np.mean)
    return reduced, (z * step, y * factor, x * factor)
