"""The edited unsupervised masks of an image's slices, and the image drawn anew from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation, binary_fill_holes, label
from torch import Tensor

from nnunet_synth.editing.lesion_edits import LesionEdit
from nnunet_synth.editing.opened_image import OpenedImage
from nnunet_synth.errors import UserError
from nnunet_synth.mask_sources.unsupervised import DrawsFromMasks
from nnunet_synth.superpixels import WHITE, quantise

RING_PIXELS = 3             # width of the surroundings whose value a removed lesion takes
BODY_HU = -500              # the skin is brighter, the air around and the table's foam are not


@runtime_checkable
class DrawsEditedMasks(DrawsFromMasks, Protocol):
    """A synthesizer that makes unsupervised masks of images, and draws from them (UM2I, CS2)."""

    takes_style: bool

    def mask_of(self, image: Tensor, cluster: Tensor | None) -> Tensor:
        """[N, C, H, W] gray values in [0, 255], multiples of `config.gray_step` where that is not 0, of an image in
        [-1, 1]."""
        ...


@dataclass(frozen=True)
class EditedSlice:
    """One slice before and after; everything [H, W], gray values in [0, 255], images in network intensities."""

    number: int
    image: np.ndarray
    regions: np.ndarray         # [H, W] int16, number of the edit, 0 = none
    mask: np.ndarray
    edited_mask: np.ndarray
    drawn: np.ndarray
    seen: np.ndarray | None     # [H, W] int64, the label that the segmentation head sees; None without one


def draw_edits(synthesizer: DrawsEditedMasks, opened: OpenedImage, edits: Sequence[LesionEdit],
               generator: torch.Generator | None = None) -> list[EditedSlice]:
    """Every slice that an edit touches, drawn anew.

    Args:
        synthesizer: a `Synthesizer` in eval mode.
        edits: the first one is where `opened.regions` is 1.

    Raises:
        UserError: an edit has no pixel in the network's grid.
    """
    for number, edit in enumerate(edits, start=1):
        if not (opened.regions == number).any():
            raise UserError(f"{edit.shape} is covered by a later edit, or smaller than a pixel of this configuration: "
                            "make it larger")
    grays = [None if edit.intensity is None else _gray_of(synthesizer, opened.intensities.to_network(edit.intensity))
             for edit in edits]
    return [_draw_slice(synthesizer, opened.network[number], opened.regions[number], grays, int(number), generator)
            for number in np.flatnonzero((opened.regions > 0).any((1, 2)))]


def _draw_slice(synthesizer: DrawsEditedMasks, image: np.ndarray, regions: np.ndarray, grays: Sequence[float | None],
                number: int, generator: torch.Generator | None) -> EditedSlice:
    device = next(synthesizer.parameters()).device
    height, width = image.shape
    padding = (0, -width % synthesizer.divisor, 0, -height % synthesizer.divisor)
    unit = synthesizer.to_unit(torch.from_numpy(image)[None, None].to(device))
    mask = synthesizer.mask_of(F.pad(unit, padding, value=-1), None)
    edited = mask.clone()
    edited[0, 0, :height, :width] = torch.from_numpy(
        edit_mask_slice(mask[0, 0, :height, :width].cpu().numpy(), regions, grays)).to(device)
    drawn, seen = synthesizer.from_masks(edited, generator)

    def cropped(tensor: Tensor) -> np.ndarray:
        return tensor[..., :height, :width].reshape(height, width).cpu().numpy()

    return EditedSlice(number, image, regions, cropped(mask), cropped(edited), cropped(drawn.float()),
                       None if seen is None else cropped(seen))


def edit_mask_slice(mask: np.ndarray, regions: np.ndarray, grays: Sequence[float | None]) -> np.ndarray:
    """[H, W] the mask with the gray value of each edit in its region; None = the most frequent one beside it."""
    edited = mask.copy()
    for number, gray in enumerate(grays, start=1):
        where = regions == number
        edited[where] = _surroundings(mask, where, regions > 0) if gray is None else gray
    return edited


def _surroundings(mask: np.ndarray, where: np.ndarray, edited: np.ndarray) -> float:
    """The most frequent gray value beside a region, the darkest of equals."""
    ring = binary_dilation(where, iterations=RING_PIXELS) & ~edited
    values, counts = np.unique(mask[ring] if ring.any() else mask, return_counts=True)
    return float(values[counts.argmax()])


def _gray_of(synthesizer: DrawsEditedMasks, network: float) -> float:
    """The gray value in a mask of an intensity of the network's."""
    gray = (synthesizer.to_unit(torch.full((1, 1, 1, 1), network)) + 1) / 2 * WHITE
    step = synthesizer.config.gray_step
    return float(quantise(gray, step) if step > 0 else gray)


def cut_to_body(raw: np.ndarray, region: np.ndarray, edit: LesionEdit, slice_axis: int) -> np.ndarray:
    """[z, y, x] bool: the part of a CT edit that lies in the body; what reaches out of the skin is cut off.

    Args:
        raw: [z, y, x] in HU.
        region: [z, y, x] bool.

    Raises:
        UserError: nothing of it does.
    """
    inside = np.zeros_like(region)
    raw, moved, target = (np.moveaxis(array, slice_axis, 0) for array in (raw, region, inside))
    for number in np.flatnonzero(moved.any((1, 2))):
        target[number] = moved[number] & _body(raw[number])
    if not inside.any():
        raise UserError(f"{edit.shape} lies outside the body: name a place inside (voxels x y z, counted from 0)")
    return inside


def _body(hu: np.ndarray) -> np.ndarray:
    """[H, W] bool: the largest bright part, with its holes."""
    parts, number = label(hu > BODY_HU)
    if number == 0:
        return np.zeros(hu.shape, bool)
    return binary_fill_holes(parts == 1 + np.bincount(parts[parts > 0])[1:].argmax())
