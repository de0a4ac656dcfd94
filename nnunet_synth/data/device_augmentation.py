"""nnU-Net's training transforms for a whole batch at once, on the device of the training.

With `augmentation: device` the loader workers only read and crop; all the rest is done here, in the order of
`nnUNetTrainer.get_training_transforms` (nnU-Net 2.8.1), in float32 and from one random number generator. What comes
out is what the workers hand over with `augmentation: cpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synth.data.device_augmentation_spatial import OUTSIDE, Geometry, mirror, rotate_scale_crop
from nnunet_synth.data.intensity_augmentation import augment_intensity
from nnunet_synth.data.layouts import CLUSTER_FACTOR


@dataclass(frozen=True)
class DeviceAugmentation:
    """What is done to a stream of enlarged patches.

    Attributes:
        masked_channels: of the image, that are 0 outside the scan (`use_mask_for_norm`).
        has_target: the segmentation of this stream is a target; that of the plain unlabelled stream is none.
        regions: labels of each output channel, for region-based training (with the ignore label, if there is one).
        deep_supervision_scales: of each level of the target along each axis; None = one level, and no list of it.
    """

    geometry: Geometry
    masked_channels: tuple[int, ...] = ()
    has_target: bool = True
    regions: Sequence[int | Sequence[int]] | None = None
    deep_supervision_scales: Sequence[Sequence[float]] | None = None

    @torch.no_grad()
    def __call__(self, image: Tensor, labels: Tensor,
                 generator: torch.Generator) -> tuple[Tensor, Tensor | list[Tensor] | None]:
        """Augment a batch; every draw is from `generator`, on the CPU, so that no GPU is waited for to know sizes.

        (Only the vote on labels of rotated patches waits, twice a batch: how many voxels are contested is data.)

        Args:
            image: [N, C, *size] float32, normalised and larger than the patch.
            labels: [N, 2, *size] int16 on the same device: segmentation (-1 outside the scan, `loaders.HOLE` in what
                only looks like it) and layout map.

        Returns:
            data: [N, C + 3, *patch] float32; the last channels are layout, cluster and valid.
            target: [N, 1, *patch] int16 or [N, R, *patch] bool, or a list of it, one for each scale.
        """
        image, labels = rotate_scale_crop(image, labels, self.geometry, generator)
        # nnU-Net's low resolution leaves the first axis alone where it augments slices.
        image = augment_intensity(image, generator, ignore_axes=(0,) if self.geometry.dummy_2d else None)
        mirror(image, labels, self.geometry, generator)
        segmentation, layout_map = labels[:, :1], labels[:, 1:].clamp(min=0)
        for channel in self.masked_channels:
            image[:, channel].masked_fill_(segmentation[:, 0] < 0, 0)
        extra = layout_map % CLUSTER_FACTOR, layout_map // CLUSTER_FACTOR, segmentation != OUTSIDE
        data = torch.cat([image, *(channel.to(image.dtype) for channel in extra)], 1)
        return data, self._target(segmentation.clamp(min=0)) if self.has_target else None

    def _target(self, segmentation: Tensor) -> Tensor | list[Tensor]:
        target = segmentation if self.regions is None else to_regions(segmentation, self.regions)
        if self.deep_supervision_scales is None:
            return target
        return [at_scale(target, scale) for scale in self.deep_supervision_scales]


def to_regions(segmentation: Tensor, regions: Sequence[int | Sequence[int]]) -> Tensor:
    """[N, 1, …] labels → [N, R, …] bool, which of them belong to each region."""
    labels = [[region] if isinstance(region, int) else region for region in regions]
    return torch.cat([torch.isin(segmentation, segmentation.new_tensor(each)) for each in labels], 1)


def at_scale(target: Tensor, scale: Sequence[float]) -> Tensor:
    """[N, R, *sp] at a part of its resolution, by nearest neighbour, as nnU-Net brings it to its outputs."""
    if all(factor == 1 for factor in scale):
        return target
    size = [round(length * factor) for length, factor in zip(target.shape[2:], scale, strict=True)]
    return F.interpolate(target.float(), size, mode="nearest-exact").to(target.dtype)
