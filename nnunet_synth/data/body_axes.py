"""Which way through the body each axis of an array runs, in letters, and turning arrays to one orientation.

Axes are named by the directions of the body in which their indices grow: L(eft) R(ight) A(nterior) P(osterior)
S(uperior) I(nferior). "SPL" is a volume [z, y, x] whose slices go up, whose rows go to the back and whose columns go to
the patient's left. How the patient lies, prone or supine, changes gravity and nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np

DISPLAY_AXES = "PL"             # rows to posterior, columns to the patient's left: how radiologists look at a slice
_LINES = ("SI", "PA", "LR")     # the canonical direction of each axis, "SPL", comes first


def axes_of(properties: Mapping[str, Any], orientation: str = DISPLAY_AXES) -> tuple[str, bool]:
    """Axes of nnU-Net's array [z, y, x], and whether they come from the image's geometry.

    Args:
        properties: what nnU-Net's reader says about the image.
        orientation: of pictures, which have no geometry.
    """
    if "sitk_stuff" in properties:
        direction = np.array(properties["sitk_stuff"]["direction"])
        if direction.size == 9:
            return _codes(direction.reshape(3, 3))[::-1], True
        return f"S{orientation}", True
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]))
        return _codes(np.diag([-1, -1, 1]) @ affine[:3, :3])[::-1], True       # RAS → LPS
    return f"S{orientation}", False


def _codes(direction: np.ndarray) -> str:
    """LPS direction columns → the nearest axis code of each image axis; each body axis is used once."""
    cosines = direction / np.linalg.norm(direction, axis=0)
    best = max(permutations(range(3)), key=lambda body: sum(abs(cosines[body[axis], axis]) for axis in range(3)))
    return "".join(("LPS" if cosines[body, axis] > 0 else "RAI")[body] for axis, body in enumerate(best))


def to_canonical(array: np.ndarray, axes: str) -> np.ndarray:
    """A view of a volume with axes "SPL". Raises ValueError as `canonical_order`."""
    order = canonical_order(axes)
    return np.flip(array.transpose(order), _flipped(axes, order))


def from_canonical(array: np.ndarray, axes: str) -> np.ndarray:
    """The inverse of `to_canonical`, contiguous."""
    order = canonical_order(axes)
    return np.ascontiguousarray(np.flip(array, _flipped(axes, order)).transpose(np.argsort(order)))


def canonical_order(axes: str) -> tuple[int, int, int]:
    """Which axis of the array is S/I, which P/A and which L/R.

    Raises:
        ValueError: the axes are not three different directions of the body.
    """
    found = [[axis for axis, code in enumerate(axes.upper()) if code in line] for line in _LINES]
    if len(axes) != 3 or any(len(axis) != 1 for axis in found):
        raise ValueError(f"axes {axes!r} must name one of S/I, one of P/A and one of L/R")
    return tuple(axis[0] for axis in found)


def _flipped(axes: str, order: tuple[int, ...]) -> tuple[int, ...]:
    """The canonical axes along which the array runs the other way."""
    return tuple(index for index, line in enumerate(_LINES) if axes.upper()[order[index]] == line[1])
