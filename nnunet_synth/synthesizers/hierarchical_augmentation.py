"""CoSinGAN's hierarchical data augmentation (2.1.3): one labelled slice, seen anew each time.

Where the patch is smaller than the slice, which the paper's is not, "the image" is a part of the slice as large as the
patch, another one each time.

Strong augmentation (SA): crops of 0.5 to 1 of the image, rotation, both flips, elastic transform; its intensity falls
with the scale. Weak augmentation (WA): crops of 0.75 to 1, without the elastic transform, at every scale alike.

A view is drawn once (`View`) and looked at with the resolution that is asked for, so that the image at one scale and
the conditions at all coarser ones show the same: "the augmentation imposed on images should be consistent with
augmentation imposed on conditions all the time".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CONTROL_POINTS = 6      # a side, of the elastic transform


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random.

    Attributes:
        smallest_crop: side of the smallest crop, as a share of the image; the largest is 1.
        rotation: largest angle in degrees, either way.
        elastic: standard deviation of the displacement of the control points, as a share of the image's side.
    """

    smallest_crop: float
    rotation: float
    elastic: float


def strong(level: int, num_levels: int, rotation: float, elastic: float) -> Augmentation:
    """SA; its elastic transform falls linearly to nothing at the last of several levels."""
    return Augmentation(0.5, rotation, elastic * (1 - level / max(num_levels - 1, 1)))


def weak(rotation: float) -> Augmentation:
    """WA, the same at every level."""
    return Augmentation(0.75, rotation, 0.0)


@dataclass(frozen=True)
class View:
    """Which part of a slice is looked at, and how it is bent.

    Coordinates are (x, y) from −1 to 1 over the frame: a part of the slice as large as the patch, so that a pixel shows
    as much as one of what is drawn later. Where the slice is smaller, it lies in the frame's middle.

    Attributes:
        crop: side of the part, as a share of the frame.
        centre: (x, y) of its middle.
        angle: radians.
        flips: (x, y), 1 or −1.
        bend: [2, P, P] displacement (x, y) of the control points, in coordinates of the part; None = none.
        focus: (x, y) of the frame's middle, from −1 to 1 over the slice.
    """

    crop: float = 1.0
    centre: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    flips: tuple[int, int] = (1, 1)
    bend: Tensor | None = None
    focus: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def draw(cls, augmentation: Augmentation, rng: np.random.Generator,
             focus: tuple[float, float] = (0.0, 0.0)) -> View:
        """All randomness is `rng`'s. Parts lie within the frame before they are turned and bent."""
        crop = rng.uniform(augmentation.smallest_crop, 1)
        centre = tuple(rng.uniform(crop - 1, 1 - crop, 2).tolist())
        angle = math.radians(rng.uniform(-1, 1) * augmentation.rotation)
        flips = tuple(int(sign) for sign in rng.choice([-1, 1], 2))
        bend = None
        if augmentation.elastic > 0:
            moved = rng.normal(0, 2 * augmentation.elastic, (2, CONTROL_POINTS, CONTROL_POINTS))
            bend = torch.from_numpy(moved.astype(np.float32))
        return cls(float(crop), centre, angle, flips, bend, focus)

    def grid(self, height: int, width: int, frame: Tensor) -> Tensor:
        """[1, height, width, 2] of places in the slice, as `grid_sample` takes them.

        Args:
            frame: [2] how many times larger than the slice the frame is, (x, y).
        """
        y, x = torch.meshgrid(*((torch.arange(size) + 0.5) / size * 2 - 1 for size in (height, width)), indexing="ij")
        if self.bend is not None:
            moved = F.interpolate(self.bend[None], (height, width), mode="bicubic", align_corners=True)[0]
            x, y = x + moved[0], y + moved[1]
        x, y = x * self.flips[0], y * self.flips[1]
        ratio = height / width          # of the sides, so that a turn keeps shapes
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = cos * x - sin * ratio * y, sin / ratio * x + cos * y
        places = torch.stack([x * self.crop + self.centre[0], y * self.crop + self.centre[1]], dim=-1)
        return (places * frame + torch.tensor(self.focus))[None]


def frame_of(slice_size: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """[2] (x, y): how many times larger than a slice [H, W] its frame is."""
    return torch.tensor([patch / own for own, patch in zip(slice_size, patch_size, strict=True)][::-1])


def draw_focus(slice_size: Sequence[int], patch_size: Sequence[int], wanted: Tensor,
               rng: np.random.Generator) -> tuple[float, float]:
    """(x, y) of the middle of a frame, from −1 to 1 over a slice [H, W]: near a wanted pixel half of the time, anywhere
    else. A frame lies within the slice where it can, and in the middle of it where not.

    Args:
        wanted: [M, 2] (y, x) int64; a frame whose middle would be one of them is moved into the slice. May be empty.
    """
    if all(own <= patch for own, patch in zip(slice_size, patch_size, strict=True)):
        return 0.0, 0.0
    is_near = len(wanted) > 0 and rng.random() < 0.5
    near = (wanted[rng.integers(len(wanted))] + 0.5).tolist() if is_near else rng.uniform((0, 0), slice_size)
    y, x = (2 * _within(place, patch, own) / own - 1
            for place, patch, own in zip(near, patch_size, slice_size, strict=True))
    return float(x), float(y)


def _within(place: float, length: float, whole: float) -> float:
    """The middle of a piece, moved so that it lies within the whole, or in its middle where it is longer."""
    return whole / 2 if length >= whole else min(max(place, length / 2), whole - length / 2)


def look_at_image(image: Tensor, view: View, size: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """[1, C, H, W] in [−1, 1] → [1, C, *size], −1 beyond the slice.

    Where the view has fewer pixels than the slice, the slice is averaged first: sampling alone would turn fine texture
    into noise. Where it has more, nothing is blurred before it must be.
    """
    own, frame = image.shape[2:], frame_of(image.shape[2:], patch_size)
    # Pixels of the slice for each pixel of the view; the longer direction decides.
    shrink = max(1.0, *(view.crop * patch / wanted for patch, wanted in zip(patch_size, size, strict=True)))
    lifted = image + 1                  # so that 0, which stands beyond the slice, is the darkest
    if shrink > 1:
        reduced = [max(1, round(length / shrink)) for length in own]
        lifted = F.interpolate(lifted, reduced, mode="bilinear", antialias=True, align_corners=False)
    return F.grid_sample(lifted, view.grid(*size, frame), mode="bilinear", padding_mode="zeros",
                         align_corners=False) - 1


def look_at_map(classes: Tensor, view: View, size: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """[1, H, W] integers or bool → [1, *size], 0 (False) beyond the slice; nearest."""
    grid = view.grid(*size, frame_of(classes.shape[1:], patch_size))
    seen = F.grid_sample(classes[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return seen[:, 0].round().to(classes.dtype)
