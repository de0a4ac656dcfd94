"""Lesions put into, and taken out of, an unsupervised mask, whole batches at a time and wherever the tensors lie.

The masks are those of UM2I and CS2: gray values from 0 to 255, most often quantised to multiples of t. UM2I, V.C: a
lesion is drawn by painting its shape with the gray value of its density. On the fly the shape is a pseudo-label, and
the gray value is drawn from those that lesions have in labelled slices (`LesionValues`); what looks like a lesion, and
not like the organ itself, but has no label takes the most frequent value of its organ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.superpixels import WHITE, paint, quantise, segment_means

MIN_PIXELS = 4                  # of a lesion in a superpixel: its gray value must not be that of a noisy pixel
TYPICAL = (0.05, 0.95)          # quantiles between which a lesion's gray values usually lie
NUM_GRAYS = 256                 # whole gray values, in which frequencies are counted
RARE = 1e-4                     # share that any gray value is credited with
WIDTH = 10.0                    # of the levels in which they are compared, where t is smaller: single values are rare


# ----------------------------------------------------------------------------------------------------------------------
# Painting


def insert(mask: Tensor, where: Tensor, value: Tensor) -> Tensor:
    """Paint pixels of each mask with its own gray value.

    Args:
        mask: [N, C, H, W].
        where: [N, H, W] bool.
        value: [N, C].
    """
    return torch.where(where[:, None], value.to(mask.dtype)[:, :, None, None], mask)


def organ_level(mask: Tensor, layout: Tensor, healthy: Tensor, num_organs: int, step: float) -> Tensor:
    """[N, C, H, W] for each pixel the most frequent gray value of the organ that it lies in.

    Args:
        mask: [N, C, H, W] in [0, 255].
        layout: [N, H, W] int64, 0 = no organ, at most `num_organs`.
        healthy: [N, H, W] bool, the pixels whose values count; where an organ of an image has none, all of it does.
        step: t of the mask; 0 = not quantised.
    """
    values = organ_values(mask, layout, healthy, num_organs, step)
    of_all = organ_values(mask, layout, torch.ones_like(healthy), num_organs, step)
    return paint(torch.where(values.isnan(), of_all, values), layout).to(mask.dtype)


def organ_values(mask: Tensor, layout: Tensor, counted: Tensor, num_organs: int, step: float) -> Tensor:
    """[N, C, num_organs + 1] the most frequent gray value of each organ of each image, the darkest of equals; NaN where
    none of its pixels is counted.

    Args:
        counted: [N, H, W] bool, the pixels that count.
        step: t of the mask; 0 = not quantised, then gray values are counted in whole numbers and their middle is given.
    """
    num_images, num_channels = mask.shape[:2]
    width, offset = (step, 0.0) if step > 0 else (1.0, 0.5)
    num_bins = int(WHITE / width) + 1
    bins = (mask / width + (0.5 - offset)).floor().long().clamp(0, num_bins - 1)
    index = (layout[:, None] * num_bins + bins).flatten(2)
    counts = torch.zeros((num_images, num_channels, (num_organs + 1) * num_bins), device=mask.device)
    counts.scatter_add_(2, index, counted[:, None].expand_as(mask).flatten(2).to(counts.dtype))
    most, best = counts.unflatten(2, (num_organs + 1, num_bins)).max(3)
    return torch.where(most > 0, (best + offset) * width, torch.nan)


# ----------------------------------------------------------------------------------------------------------------------
# The gray values of labelled lesions


@dataclass(frozen=True)
class LesionParts:
    """What a labelled slice tells about one label: the parts of superpixels that are of this label.

    Attributes:
        value: [K, C] float32 mean gray value of each part.
        pixels: [K] float32 how many pixels it has.
        organs: [num_organs + 1] bool, the layout values under it.
    """

    value: Tensor
    pixels: Tensor
    organs: Tensor


def find_lesion_parts(image: Tensor, segments: Tensor, label: Tensor, layout: Tensor, wanted: int,
                      num_organs: int) -> LesionParts:
    """The parts of one slice's superpixels that have the label `wanted`, where they have at least four pixels.

    Not the whole superpixels: one at the lesion's rim is half lung, and its mean would be the gray value of neither.

    Args:
        image: [1, C, H, W] gray values from 0 to 255.
        segments, label, layout: [1, H, W] int64.
    """
    is_wanted = label == wanted
    rest = int(segments.max()) + 1          # all other pixels
    parts = torch.where(is_wanted, segments, rest)
    pixels = torch.bincount(parts.flatten(), minlength=rest + 1)[:rest]
    kept = pixels >= MIN_PIXELS
    organs = torch.bincount(layout[is_wanted], minlength=num_organs + 1) > 0
    return LesionParts(segment_means(image, parts, rest + 1)[0, :, :rest].T[kept], pixels[kept].float(), organs)


class LesionValues(nn.Module):
    """For each label, the gray values that its lesions have in labelled slices, each with the number of pixels that
    have it: the histogram from which inserted lesions draw. Fitted when a trainer starts, hence no saved weights.

    Attributes:
        labels: dataset labels, the rows of all tensors.
        value: [L, K, C] gray values, dark to bright (by their mean over the channels); rows are padded.
        cumulative: [L, K] share of pixels up to and with this value; all 0 where a label has no lesion.
        typical: [L, 2, C] the 5 % and 95 % quantiles of each channel.
        organs: [L, num_organs + 1] bool, the layout values in which lesions of the label lie.
        of_lesions, of_healthy: [L, NUM_GRAYS, C] share of each whole gray value among the pixels of the label, and
            among those without any label in the same organs.
        origins: (case id, slice index) of what it was filled from.
    """

    def __init__(self, labels: Sequence[int], num_channels: int, num_organs: int) -> None:
        super().__init__()
        self.labels = list(labels)
        self.num_organs = num_organs
        self.origins: list[tuple[str, int]] = []
        self.register_buffer("value", torch.zeros(len(self.labels), 1, num_channels), persistent=False)
        self.register_buffer("cumulative", torch.zeros(len(self.labels), 1), persistent=False)
        self.register_buffer("typical", torch.zeros(len(self.labels), 2, num_channels), persistent=False)
        self.register_buffer("organs", torch.zeros(len(self.labels), num_organs + 1, dtype=torch.bool),
                             persistent=False)
        for name in ("of_lesions", "of_healthy"):
            self.register_buffer(name, torch.zeros(len(self.labels), NUM_GRAYS, num_channels), persistent=False)

    @property
    def exists(self) -> Tensor:
        """[L] bool: the label has lesions to draw from."""
        return self.cumulative[:, -1] > 0

    def fill(self, parts: Sequence[Sequence[LesionParts]], origins: Sequence[tuple[str, int]],
             healthy: Tensor | None = None) -> None:
        """Replace what is there.

        Args:
            parts: of each label, in the order of `labels`.
            origins: of the slices.
            healthy: what `count_healthy` found in them, summed; None = nobody knows.
        """
        rows = [self._sorted(of_label) for of_label in parts]
        longest = max(1, *(len(pixels) for _, pixels in rows))
        self.value = torch.stack([F.pad(value, (0, 0, 0, longest - len(value))) for value, _ in rows])
        # Summed in float64: a pool holds more pixels than float32 can count.
        cumulative = [F.pad(pixels.double(), (0, longest - len(pixels))).cumsum(0) for _, pixels in rows]
        self.cumulative = torch.stack([(part / part[-1].clamp_min(1)).float() for part in cumulative])
        self.typical = torch.stack([torch.stack([_typical(channel, pixels) for channel in value.T], 1)
                                    for value, pixels in rows])
        self.organs = torch.stack([torch.stack([part.organs for part in of_label]).any(0) if of_label
                                   else torch.zeros_like(self.organs[0]) for of_label in parts])
        self.of_lesions = torch.stack([_shares(value, pixels) for value, pixels in rows])
        self.of_healthy = torch.zeros_like(self.of_lesions)
        if healthy is not None:
            counts = torch.einsum("lo,ogc->lgc", self.organs.to(healthy.dtype), healthy)
            self.of_healthy = (counts / counts.sum(1, keepdim=True).clamp_min(1)).to(self.of_lesions)
        self.origins = list(origins)

    def is_likelier_lesion(self, mask: Tensor, index: int, step: float) -> Tensor:
        """[N, H, W] bool: of the label `labels[index]`, gray values like that are at least as frequent in lesions as in
        what is healthy around them (over channels, the product of the shares).

        Args:
            mask: [N, C, H, W] in [0, 255], quantised to multiples of `step`.
        """
        width = max(step, WIDTH)
        num_levels = int(WHITE / width) + 1
        level_of = (torch.arange(NUM_GRAYS, device=mask.device) / width).long()
        lesions, healthy = (torch.zeros(num_levels, mask.shape[1], device=mask.device).index_add(0, level_of, shares)
                            for shares in (self.of_lesions[index], self.of_healthy[index]))
        evidence = ((lesions + RARE) / (healthy + RARE)).log()
        level = ((mask + 1e-3) / width).long().clamp(0, num_levels - 1)
        found = evidence.T[None].expand(len(mask), -1, -1).gather(2, level.flatten(2)).sum(1)
        return (found >= 0).view(mask[:, 0].shape)

    def _sorted(self, parts: Sequence[LesionParts]) -> tuple[Tensor, Tensor]:
        value = torch.cat([self.value[0, :0], *(part.value for part in parts)])
        pixels = torch.cat([self.cumulative[0, :0], *(part.pixels for part in parts)])
        order = value.mean(1).argsort(stable=True)
        return value[order], pixels[order]

    def draw(self, num_images: int, generator: torch.Generator | None) -> Tensor:
        """[N, L, C] a gray value for each image and label; without a generator the median. 0 for what does not exist.

        Every pixel of a labelled lesion is equally likely to give its value.
        """
        shape = (num_images, len(self.labels))
        device = self.cumulative.device
        if generator is None:
            return self.at(torch.full(shape, 0.5, device=device))
        return self.at(torch.rand(shape, generator=generator, device=generator.device).to(device))

    def at(self, share: Tensor) -> Tensor:
        """[N, L, C] the value below which this share of each label's pixels lies, from [N, L] in [0, 1)."""
        index = torch.searchsorted(self.cumulative, share.T.contiguous(), right=True)
        index = index.clamp_max(self.cumulative.shape[1] - 1)
        return self.value.gather(1, index[:, :, None].expand(-1, -1, self.value.shape[2])).transpose(0, 1)

    def sha256(self) -> str:
        """Of the list of origins."""
        return hashlib.sha256(json.dumps(self.origins).encode()).hexdigest()


def count_healthy(image: Tensor, segments: Tensor, label: Tensor, layout: Tensor, num_organs: int) -> Tensor:
    """How often each whole gray value is the mean of a superpixel's unlabelled part, in pixels of each organ.

    Args:
        image: [1, C, H, W] gray values from 0 to 255.
        segments, label, layout: [1, H, W] int64.

    Returns:
        [num_organs + 1, NUM_GRAYS, C] float64.
    """
    is_healthy = label == 0
    rest = int(segments.max()) + 1
    parts = torch.where(is_healthy, segments, rest)
    gray = paint(segment_means(image, parts, rest + 1), parts).long().clamp(0, NUM_GRAYS - 1)
    index = (layout[:, None] * NUM_GRAYS + gray)[0][:, is_healthy[0]]
    counts = [torch.bincount(channel, minlength=(num_organs + 1) * NUM_GRAYS) for channel in index]
    return torch.stack(counts, dim=-1).double().unflatten(0, (num_organs + 1, NUM_GRAYS))


def _shares(value: Tensor, pixels: Tensor) -> Tensor:
    """[NUM_GRAYS, C] of [K, C] gray values that so many pixels have; 0 where there are none."""
    gray = value.long().clamp(0, NUM_GRAYS - 1)
    counts = [torch.bincount(channel, pixels.double(), NUM_GRAYS) for channel in gray.T]
    return (torch.stack(counts, dim=-1) / pixels.double().sum().clamp_min(1)).float()


def _typical(value: Tensor, pixels: Tensor) -> Tensor:
    """[2] the `TYPICAL` quantiles of [K] values that so many pixels have; 0 where there are none."""
    if len(value) == 0:
        return value.new_zeros(2)
    value, order = value.sort()
    share = pixels[order].double().cumsum(0) / pixels.double().sum()
    index = torch.searchsorted(share, torch.tensor(TYPICAL, dtype=share.dtype, device=share.device))
    return value[index.clamp_max(len(value) - 1)]


# ----------------------------------------------------------------------------------------------------------------------
# The edit on the fly


def edit_mask(mask: Tensor, label: Tensor, layout: Tensor, values: LesionValues, step: float,
              generator: torch.Generator | None = None) -> Tensor:
    """The mask of an image after the lesions of `label` were put in its place and no others left.

    * Pixels of a label that `values` knows: one gray value an image and label, drawn from its histogram and quantised.
    * Pixels without a label that look like a lesion (`find_removed`): the most frequent value of the organ in this
      image. Where there is no layout, nothing is taken away.
    * All else stays.

    Args:
        mask: [N, C, H, W] in [0, 255], quantised to multiples of `step` (0 = not quantised).
        label: [N, H, W] int64 dataset labels.
        layout: [N, H, W] int64 anatomy, 0 = none.

    Returns:
        A new [N, C, H, W].
    """
    return edit_mask_with(mask, label, layout, values, step, values.draw(len(mask), generator))


def edit_mask_with(mask: Tensor, label: Tensor, layout: Tensor, values: LesionValues, step: float,
                   drawn: Tensor) -> Tensor:
    """`edit_mask` with the gray values given, [N, L, C], not yet quantised: a function of tensors alone."""
    healthy = organ_level(mask, layout, label == 0, values.num_organs, step)
    mask = torch.where(find_removed(mask, label, layout, values, step, healthy)[:, None], healthy, mask)
    if step > 0:
        drawn = quantise(drawn, step)
    for index, wanted in enumerate(values.labels):
        mask = insert(mask, (label == wanted) & values.exists[index], drawn[:, index])
    return mask


def find_removed(mask: Tensor, label: Tensor, layout: Tensor, values: LesionValues, step: float,
                 healthy: Tensor) -> Tensor:
    """[N, H, W] bool: has no label, lies where lesions lie, and looks like one.

    That is, its gray value is typical of lesions, at least as frequent in them as in the healthy organ (where lesions
    and lung share a level, the level is the lung's), and not what most of the organ has in this image: another scanner,
    or a lung breathed out, may have the gray value of lesions everywhere.

    Args:
        healthy: [N, C, H, W] of `organ_level`.
    """
    differs = ((mask - healthy).abs() >= max(step, 1.0) / 2).any(1)
    typical = values.typical if step == 0 else quantise(values.typical, step)
    looks_alike = torch.zeros_like(label, dtype=torch.bool)
    for index in range(len(values.labels)):
        low, high = typical[index][:, :, None, None]
        in_range = ((mask >= low) & (mask <= high)).all(1)
        looks_alike |= (in_range & values.is_likelier_lesion(mask, index, step) & values.organs[index][layout]
                        & values.exists[index])
    return looks_alike & differs & (label == 0) & (layout > 0)
