"""What is to be changed in an image: a shape, and the mean intensity that it shall have."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_json

HEALTHY = "healthy"
KEYS = ("circle", "radius", "mask", "hu", "label")


@dataclass(frozen=True)
class Circle:
    """A disc in the plane of the network's slices.

    Attributes:
        centre: (x, y, z) voxel indices in the raw image, counted from 0; z is 0 in a picture.
        radius: mm (pixels where no spacing is known).
    """

    centre: tuple[int, int, int]
    radius: float

    def __str__(self) -> str:
        return f"circle {' '.join(map(str, self.centre))}"

    def draw(self, shape: tuple[int, ...], spacing: Sequence[float], slice_axis: int) -> np.ndarray:
        """[z, y, x] bool.

        Args:
            spacing: mm between voxels along (z, y, x).
            slice_axis: which of z, y, x the slices lie along.

        Raises:
            UserError: the centre is outside the image.
        """
        centre = self.centre[::-1]
        if any(not 0 <= index < length for index, length in zip(centre, shape, strict=True)):
            raise UserError(f"{self} lies outside the image, whose voxels are numbered up to "
                            f"{' '.join(str(length - 1) for length in shape[::-1])} (x y z)")
        inside = np.zeros(shape, bool)
        squares = [((np.arange(length) - index) * step) ** 2
                   for index, length, step in zip(centre, shape, spacing, strict=True)]
        squares[slice_axis] = np.where(np.arange(shape[slice_axis]) == centre[slice_axis], 0.0, np.inf)
        inside |= np.add.outer(np.add.outer(squares[0], squares[1]), squares[2]) <= self.radius ** 2
        return inside


@dataclass(frozen=True)
class MaskFile:
    """The voxels of a label map of the image's own grid that are not 0."""

    path: Path

    def __str__(self) -> str:
        return f"mask {self.path}"


@dataclass(frozen=True)
class LesionEdit:
    """One change.

    Attributes:
        intensity: mean raw intensity (HU in CT) of the lesion; None = no lesion: what surrounds it.
        label: name of the dataset's label; None = its first one.
    """

    shape: Circle | MaskFile
    intensity: float | None
    label: str | None = None


def circle_edit(words: Sequence[str]) -> LesionEdit:
    """X Y Z RADIUS HU of the command line. Raises UserError."""
    x, y, z, radius, intensity = words
    return edit_from_json({"circle": [_number(word, "circle") for word in (x, y, z)],
                           "radius": _number(radius, "radius"), "hu": intensity_of(intensity)})


def mask_edit(path: str | Path, intensity: str | float) -> LesionEdit:
    """--mask FILE --hu HU of the command line. Raises UserError."""
    return edit_from_json({"mask": str(path), "hu": intensity_of(intensity)})


def read_edits(path: str | Path) -> list[LesionEdit]:
    """A JSON list of {"circle": [x, y, z], "radius": 12, "hu": -600} or {"mask": FILE, "hu": "healthy"}, each perhaps
    with a "label". Raises UserError."""
    content = read_json(Path(path), "name a file with --edits", "mend it, or make the edits with --circle")
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must hold a list of edits, e.g. "
                        '[{"circle": [120, 88, 12], "radius": 9, "hu": -600}]')
    try:
        return [edit_from_json(entry) for entry in content]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def edit_from_json(entry: Any) -> LesionEdit:
    """Raises UserError when a key is unknown, missing, or has a value that it cannot have."""
    if not isinstance(entry, Mapping):
        raise UserError(f"an edit must have the keys {', '.join(KEYS)}, got {entry!r}")
    for key in entry:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1)
            raise UserError(f"unknown key {key!r} in an edit; {f'did you mean {close[0]}? ' if close else ''}known: "
                            f"{', '.join(KEYS)}")
    if ("circle" in entry) == ("mask" in entry) or ("radius" in entry) != ("circle" in entry) or "hu" not in entry:
        raise UserError(f'an edit has "circle" and "radius", or "mask", and "hu"; got {", ".join(entry) or "nothing"}')
    label = entry.get("label")
    if label is not None and not isinstance(label, str):
        raise UserError(f"label {label!r} of an edit must be the name of a label")
    return LesionEdit(MaskFile(Path(entry["mask"])) if "mask" in entry else _circle(entry),
                      intensity_of(entry["hu"]), label)


def intensity_of(value: Any) -> float | None:
    """A number, or None for "healthy". Raises UserError."""
    return None if value is None or value == HEALTHY else _number(value, "hu", f" or {HEALTHY}")


def _circle(entry: Mapping[str, Any]) -> Circle:
    centre, radius = entry["circle"], _number(entry["radius"], "radius")
    if not isinstance(centre, Sequence) or len(centre) != 3:
        raise UserError(f"circle {centre!r} must be three voxel indices x, y, z")
    indices = [_number(index, "circle") for index in centre]
    if any(index != int(index) for index in indices):
        raise UserError(f"circle {centre!r}: voxel indices are whole numbers")
    if radius <= 0:
        raise UserError(f"the radius of an edit is in mm and must be above 0, got {radius:g}")
    return Circle(tuple(int(index) for index in indices), radius)      # type: ignore[arg-type]


def _number(value: Any, what: str, otherwise: str = "") -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{what} of an edit must be a number{otherwise}, got {value!r}")
    return number
