"""Which way a chest lies in its array, told from the anatomy: some published volumes contradict their headers.

Each axis has two signs that need neither spacing nor a list of cases, only the CT and its lungs:

- feet to head: heart and diaphragm fill the lungs' outline below; the windpipe runs between the lungs above;
- front to back: the bone between the lungs, the spine, lies behind; the lungs come together in front of the
  mediastinum and reach down deepest behind the liver;
- right to left: the heart bulges to the left in front, the aorta beside the spine.

Two signs, because each can fail: contrast medium makes the heart as bright as bone, a steep heart lies in the middle,
a mask may include the windpipe. The evidence of an axis is the mean of its two signs, each divided by what is typical
of real chests and cut to -1…1; below `DECISIVE` nothing is changed.

An odd number of reversed axes makes a mirror image: the header described one, so the repair is to reverse the array and
to leave the header alone. The anatomy is not symmetric, so it tells which axes they are: of a volume whose front and
back are exchanged, the heart tells after that repair whether left and right are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_synth.errors import UserError

LEFT, RIGHT = 1, 2                      # values of a lung map
DECISIVE = 0.15
OVERWHELMING = 0.5                      # against header and lung map together: a collapsed lung also shifts the heart
BONE_HU, AIR_HU = 200, -850
_LONGEST_SIDE, _MOST_SLICES = 96, 64    # pixels and slices that the signs are read from

_AXES = (("head", "feet"), ("front", "back"), ("left", "right"))       # of an array [z, y, x]


@dataclass(frozen=True)
class Finding:
    """How a volume that should be an LPS array [z, y, x] lies in truth.

    Attributes:
        evidence: for z, y, x in -1…1; positive: the axis runs as it should.
        reversed_axes: those that run the other way, of 0, 1, 2.
        is_renumbered: with the axes put right, left and right lung are exchanged in the lung map.
        doubts: what seems wrong though the evidence does not suffice to change it: phrases.
    """

    evidence: tuple[float, float, float]
    reversed_axes: tuple[int, ...]
    is_renumbered: bool
    doubts: tuple[str, ...]

    @property
    def repairs(self) -> tuple[str, ...]:
        """Phrases for the report."""
        return (*(f"{' and '.join(_AXES[axis])} reversed against the header" for axis in self.reversed_axes),
                *("left and right lung exchanged in the lung map",) * self.is_renumbered,
                *(f"NOT repaired: {doubt}" for doubt in self.doubts))


def find_orientation(hu: np.ndarray, lungs: np.ndarray) -> Finding:
    """Find the reversed axes.

    Args:
        hu: [z, y, x], by its header an LPS array (z to the head, y to the back, x to the patient's left).
        lungs: of the same shape; 1 left lung, 2 right lung, 0 none, other values lung of an unknown side.

    Raises:
        UserError: there is no lung.
    """
    if not lungs.any():
        raise UserError("the lung map is empty: without lungs it cannot be told which way the patient lies")
    is_lung, small_hu = _reduced(lungs, hu)
    evidence: list[float] = []
    for axis, signs in enumerate((_feet_to_head, _front_to_back, _right_to_left)):
        evidence.append(_combined(signs(is_lung, small_hu)))
        if evidence[axis] <= -DECISIVE:             # the signs of the next axis need this one to be right
            is_lung, small_hu = np.flip(is_lung, axis), np.flip(small_hu, axis)

    is_contradicted = _left_is_right(lungs)
    is_mirrored = evidence[2] <= -(DECISIVE if is_contradicted else OVERWHELMING)
    reversed_axes = tuple(axis for axis in (0, 1) if evidence[axis] <= -DECISIVE) + (2,) * is_mirrored
    is_misnumbered = is_contradicted != is_mirrored
    is_decided = not is_contradicted or abs(evidence[2]) >= DECISIVE

    doubts = [f"{' and '.join(_AXES[axis])} may be reversed" for axis in (0, 1) if abs(evidence[axis]) < DECISIVE]
    if not is_decided:
        doubts.append("lung map and header differ in left and right, and heart and aorta do not tell which is wrong")
    if not is_contradicted and -OVERWHELMING < evidence[2] <= -DECISIVE:
        doubts.append("heart and aorta lie on the right, against header and lung map")
    return Finding(tuple(evidence), reversed_axes, is_misnumbered and is_decided, tuple(doubts))


def _left_is_right(lungs: np.ndarray) -> bool:
    """Whether the lung that the map calls left lies to the right of the other."""
    columns = np.arange(lungs.shape[2])
    left, right = ((lungs == value).sum(axis=(0, 1)) for value in (LEFT, RIGHT))
    return bool(left.any() and right.any() and left @ columns / left.sum() < right @ columns / right.sum())


def _combined(signs: tuple[tuple[float, float], ...]) -> float:
    """Mean of the signs, each relative to its typical size."""
    return float(np.mean([np.clip(sign / typical, -1, 1) for sign, typical in signs]))


# ----------------------------------------------------------------------------------------------------------------------
# The signs: pairs of a value, positive where the array is LPS, and its median over 21 real chests (those of
# COVID-19-CT-Seg as pictures, and one lung cancer). Read from lungs [z, y, x] bool, cropped to their box, and their HU.


def _feet_to_head(lungs: np.ndarray, hu: np.ndarray) -> tuple[tuple[float, float], ...]:
    from skimage.morphology import convex_hull_image
    outline = np.stack([convex_hull_image(lung) if lung.sum() > 3 else lung for lung in lungs])
    between = outline & ~lungs
    filled = between.sum(axis=(1, 2)) / max(outline.sum(axis=(1, 2)).max(), 1)
    half = max(1, len(lungs) // 2)
    windpipe = (between & (hu < AIR_HU))[:, :, _middle(lungs, 0.12)].sum(axis=(1, 2))
    return (filled[:half].mean() - filled[-half:].mean(), 0.14), (_mean_position(windpipe), 0.28)


def _front_to_back(lungs: np.ndarray, hu: np.ndarray) -> tuple[tuple[float, float], ...]:
    bone = (hu[:, :, _middle(lungs, 0.15)] >= BONE_HU).sum(axis=(0, 2))
    depth = np.linspace(-1, 1, len(bone))
    behind = bone @ depth / max(bone @ np.abs(depth), 1e-6)

    upper, lowest, central = (_slab(lungs, *part) for part in ((0.4, 0.9), (0, 0.2), (0.4, 0.65)))
    meeting = upper[:, :, _middle(lungs, 0.08)]
    return (behind, 0.7), (_depth_of(upper) - _depth_of(meeting) + _depth_of(lowest) - _depth_of(central), 0.15)


def _right_to_left(lungs: np.ndarray, hu: np.ndarray) -> tuple[tuple[float, float], ...]:
    slices, rows, columns = lungs.shape
    height = np.linspace(0, 1, slices)[:, None]
    front, back = _span(lungs.any(axis=2))
    depth = (np.arange(rows) - front[:, None]) / np.maximum(back - front, 1)[:, None]       # [z, y], 0…1 of the lungs'
    right, left = _span(lungs.any(axis=1))
    heart = _gap_centre(lungs, (depth < 0.5) & (height > 0.25) & (height < 0.6), (right + left) / 2)

    middle = _middle(lungs, 0.15)
    bone = ((hu >= BONE_HU) & (depth > 0.5)[:, :, None])[:, :, middle].sum(axis=1)          # [z, x]
    spine = middle.start + _centre(np.where(bone.any(axis=1, keepdims=True), bone, bone.sum(axis=0) + 1e-6))
    aorta = _gap_centre(lungs, (depth > 0.5) & (depth < 0.8) & (height > 0.3) & (height < 0.95), spine)
    return (heart / columns, 0.04), (aorta / columns, 0.035)


def _span(occupied: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last index that is occupied, for each row of [z, n]."""
    return occupied.argmax(axis=1), occupied.shape[1] - 1 - occupied[:, ::-1].argmax(axis=1)


def _centre(counts: np.ndarray) -> np.ndarray:
    """Mean index of each row of [z, n]."""
    return counts @ np.arange(counts.shape[1]) / counts.sum(axis=1)


def _gap_centre(lungs: np.ndarray, rows: np.ndarray, midline: np.ndarray) -> float:
    """How far the gap between the lungs lies to the left of the midline [z], in pixels; mean over the rows [z, y]."""
    columns = np.arange(lungs.shape[2])
    is_left = columns >= midline[:, None, None]
    right = np.where(lungs & ~is_left, columns, -1).max(axis=2)
    left = np.where(lungs & is_left, columns, len(columns)).min(axis=2)
    chosen = rows & (right >= 0) & (left < len(columns))
    return float(((right + left) / 2 - midline[:, None])[chosen].mean()) if chosen.any() else 0.0


def _depth_of(lungs: np.ndarray) -> float:
    """Mean position of the lung from front to back, 0…1 of the lungs' depth; the middle if there is none."""
    return 0.5 + _mean_position(lungs.sum(axis=(0, 2)))


def _mean_position(counts: np.ndarray) -> float:
    """Centre of mass along an axis, -0.5…0.5."""
    return float(counts @ np.linspace(-0.5, 0.5, len(counts)) / counts.sum()) if counts.any() else 0.0


def _slab(lungs: np.ndarray, bottom: float, top: float) -> np.ndarray:
    """The slices between two heights, 0…1 of the lungs' own."""
    first = int(bottom * len(lungs))
    return lungs[first:max(first + 1, round(top * len(lungs)))]


def _middle(lungs: np.ndarray, half_width: float) -> slice:
    """The columns within `half_width` of the midline, as a share of the lungs' width."""
    width = lungs.shape[2]
    return slice(int((0.5 - half_width) * width), int((0.5 + half_width) * width) + 1)


def _reduced(lungs: np.ndarray, hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lungs (bool) and HU (float32) in the box around the lungs; some slices, block means in plane."""
    from scipy.ndimage import find_objects
    from skimage.measure import block_reduce
    box, = find_objects((lungs > 0).view(np.uint8))
    step = -(-(box[0].stop - box[0].start) // _MOST_SLICES)
    is_lung, hu = lungs[box][::step] > 0, hu[box][::step]
    factor = -(-max(is_lung.shape[1:]) // _LONGEST_SIDE)
    block = (1, factor, factor)
    return (block_reduce(is_lung.astype(np.float32), block, np.mean) > 0.5,
            block_reduce(hu.astype(np.float32), block, np.mean))
