"""What synthesizers that draw from unsupervised masks have in common: the mask of the request's image, edited by its
label (`mask_editing.py`), and the gray values that lesions are drawn with."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunet_synth.bounds import Bounds
from nnunet_synth.errors import UserError
from nnunet_synth.superpixels import WHITE, paint, quantise, segment_means
from nnunet_synth.synthesizers.base import Prepared, Slices, SliceSource, Synthesizer, SynthMeta
from nnunet_synth.synthesizers.blocks import masked
from nnunet_synth.synthesizers.mask_editing import (
    LesionValues,
    count_healthy,
    edit_mask,
    find_lesion_parts,
    organ_level,
)

GRAY_STEP = Bounds(low=0, high=WHITE)           # t, between the gray values of an unsupervised mask; 0 = not quantised
NUM_SEGMENTS = Bounds(low=1, high=512 ** 2)     # M, in an image of 512 × 512
MAX_SLICES = 512        # from which the gray values of lesions are taken, evenly spread over the labelled ones
NUM_CHECKED = 64        # slices in which they are compared with what is around them
MUCH_HIDDEN = 0.1       # share of the lesions' pixels
SMALLER_STEPS = (25.0, 10.0, 5.0)       # between gray values, to be recommended


class MaskConditioned(Synthesizer):
    """Subclasses implement `gray_step`, `find_segments`, `draw_masks` and `see_label`, and call `fit_lesion_values`.

    Attributes:
        label_values: the dataset's labels, background first; the classes of a label head are places in it.
        lesion_values: what lesions are drawn with.
    """

    takes_style: ClassVar[bool] = False     # of labelled slices, so that it draws nothing before `fit_pool`
    _has_checked_step = False

    def __init__(self, meta: SynthMeta, config: Any) -> None:
        super().__init__(meta, config)
        values = [0, *sorted(int(label) for label in meta.semantic.label_classes)]
        self.register_buffer("label_values", torch.tensor(values), persistent=False)
        num_organs = max((int(value) for value in meta.semantic.layout_classes), default=0)
        self.lesion_values = LesionValues(meta.target_labels, len(meta.channel_names), num_organs)

    # -- what a subclass provides ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def gray_step(self) -> float:
        """t, between the gray values of its masks; 0 = not quantised."""

    @abstractmethod
    def find_segments(self, gray: Tensor, cluster: Tensor | None) -> tuple[Tensor, int]:
        """[N, H, W] int64 superpixels or clusters of [N, C, H, W] in [0, 1], and a number that no id reaches."""

    @abstractmethod
    def draw_masks(self, mask: Tensor, own: Tensor | None) -> tuple[Tensor, Any]:
        """Masks [N, C, H, W] in [0, 255] → images in [−1, 1], and what `see_label` needs to know.

        Args:
            own: [N, C, H, W] in [−1, 1], the images of the request, for style "self".
        """

    @abstractmethod
    def see_label(self, seen: Any) -> Tensor:
        """[N, H, W] int64 dataset labels that the label head sees in what `draw_masks` drew."""

    # -- masks -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def mask_of(self, image: Tensor, cluster: Tensor | None) -> Tensor:
        """[N, C, H, W] in [−1, 1] → the unsupervised mask, [N, C, H, W] float32 in [0, 255]: the mean gray value of
        each segment."""
        gray = gray_of(image)
        segments, number = self.find_segments(gray, cluster)
        means = segment_means(gray * WHITE, segments, number)
        return paint(quantise(means, self.gray_step) if self.gray_step > 0 else means, segments)

    @torch.no_grad()
    def from_masks(self, unsupervised_mask: Tensor,
                   generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """Draw from masks that nobody took from an image.

        Args:
            unsupervised_mask: [N, C, H, W] float32 in [0, 255], H and W multiples of `divisor`.

        Returns:
            Images [N, C, H, W] float32 in network intensities, and the [N, H, W] int64 dataset labels that the label
            head sees in them; None where there is no such head.
        """
        assert not self.training, "call eval() on the synthesizer first"
        self.begin_step(generator)
        image, seen = self.draw_masks(unsupervised_mask, None)
        return self.from_unit(image.float()), self.see_label(seen) if self.has_label_head else None

    def classes_of(self, label: Tensor) -> Tensor:
        """Dataset labels → places among `label_values`."""
        return torch.searchsorted(self.label_values.to(label.device), label)

    # -- training ----------------------------------------------------------------------------------------------------

    def prepare_training(self, slices: SliceSource) -> None:
        """Warns once where t is too large for the lesions of this dataset, and says which is small enough."""
        if self._has_checked_step:
            return
        self._has_checked_step = True
        hidden = self.hidden_share(slices, self.gray_step)
        if hidden > MUCH_HIDDEN:
            better = next((step for step in SMALLER_STEPS if step < self.gray_step
                           and self.hidden_share(slices, step) <= MUCH_HIDDEN), 0.0)
            print(f"warning: with t = {self.gray_step:g} {hidden:.0%} of the lesions' pixels have the gray value of "
                  "the healthy organ around them, so what is drawn for them shows no lesion: pretrain with --option "
                  f"gray_step={better:g}", file=sys.stderr)

    @torch.no_grad()
    def hidden_share(self, slices: SliceSource, step: float) -> float:
        """Share of the target pixels in organs whose gray value, quantised to multiples of `step` > 0, is the most
        frequent one of their organ; 0 without quantisation."""
        if step == 0:
            return 0.0
        num_hidden = num_pixels = 0
        for one in slices.iterate(only_targets=True, max_slices=NUM_CHECKED):
            of_slice = self.prepare_slices(one)
            gray, segments, number = self._segmented(of_slice)
            is_target = torch.isin(of_slice.label, self.label_values.new_tensor(self.meta.target_labels))
            # A superpixel at a rim is cut in two: a lesion is drawn with what is the lesion's alone.
            parts = torch.where(is_target, segments + number, segments)
            level = paint(quantise(segment_means(gray, parts, 2 * number), step), parts)
            around = organ_level(level, of_slice.layout, ~is_target & of_slice.valid, self.lesion_values.num_organs,
                                 step)
            in_organ = is_target & (of_slice.layout > 0)
            num_hidden += int((in_organ & (level == around).all(1)).sum())
            num_pixels += int(in_organ.sum())
        return num_hidden / max(num_pixels, 1)

    # -- the gray values of lesions ----------------------------------------------------------------------------------

    @property
    def edits(self) -> bool:
        """Style "self": a lesion looks as the image shows it, so there is nothing to edit."""
        return self.style.source != "self"

    def fit_lesion_values(self, prepared: Iterable[tuple[Slices, Prepared]]) -> None:
        """From labelled slices, one at a time, each with what `prepare_slices` made of it.

        Raises:
            UserError: none of them holds a lesion.
        """
        origins, found = [], []
        num_organs = self.lesion_values.num_organs
        healthy = torch.zeros((), dtype=torch.float64)
        for one, of_slice in prepared:
            gray, segments, _ = self._segmented(of_slice)
            found.append([find_lesion_parts(gray, segments, of_slice.label, of_slice.layout, label, num_organs)
                          for label in self.lesion_values.labels])
            healthy = healthy + count_healthy(gray, segments, of_slice.label, of_slice.layout, num_organs)
            origins += one.origin
        if not any(len(parts.pixels) for of_slice in found for parts in of_slice):
            raise UserError(f"no labelled training slice of fold {self.meta.fold} has a lesion of four pixels in one "
                            "segment, so there are no gray values to draw lesions with: choose another fold")
        self.lesion_values.fill(list(zip(*found, strict=True)), origins, healthy)

    def _segmented(self, prepared: Prepared) -> tuple[Tensor, Tensor, int]:
        """Of a labelled slice, gray values [1, C, H, W] in [0, 255], its segments [1, H, W] and a number that no id
        reaches."""
        gray = gray_of(masked(prepared.image, prepared.valid))
        segments, number = self.find_segments(gray, prepared.cluster)
        return gray * WHITE, segments, number

    def prepare_slices(self, slices: Slices) -> Prepared:
        """Whole slices as those of a request are seen: on the device, padded, in [−1, 1]."""
        return self._prepare(slices.to(self.label_values.device).request())

    # -- drawing -----------------------------------------------------------------------------------------------------

    def _decode(self, request: Prepared) -> Tensor:
        return self._draw(request)[0]

    def _decode_with_label(self, request: Prepared) -> tuple[Tensor, Tensor]:
        image, seen = self._draw(request)
        return image, self.see_label(seen)

    def _draw(self, request: Prepared) -> tuple[Tensor, Any]:
        own = masked(request.image, request.valid)
        mask = self.mask_of(own, request.cluster)
        if self.edits:
            mask = edit_mask(mask, request.label, request.layout, self.lesion_values, self.gray_step,
                             request.generator)
        return self.draw_masks(mask, own)

    def _is_drawable(self, request: Prepared) -> Tensor:
        """Not where a lesion is to be put in that no labelled slice has, nor where cached segments are missing: all of
        the image would be one."""
        lacking = torch.zeros(len(request.label), dtype=torch.bool, device=request.label.device)
        if self.edits:
            for label, exists in zip(self.lesion_values.labels, self.lesion_values.exists, strict=True):
                lacking |= (request.label == label).any((1, 2)) & ~exists
        if "cluster" in self.needs:
            lacking |= ~(request.cluster > 0).flatten(1).any(1)
        return ~lacking


def gray_of(image: Tensor) -> Tensor:
    """[−1, 1] → [0, 1]."""
    return (image.float() + 1) / 2
