"""A raw image in the network's voxel grid and intensities, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.raw_images import read_image
from nnunet_synth.errors import UserError


@dataclass(frozen=True)
class Intensities:
    """network = factor · raw + offset: every normalisation of nnU-Net, but for clipping, with this image's own mean."""

    factor: float
    offset: float

    @classmethod
    def between(cls, raw: np.ndarray, network: np.ndarray) -> Intensities:
        """The line through the voxels of one image before and after normalisation that were not clipped.

        Raises:
            UserError: the image is constant.
        """
        kept = (network > network.min()) & (network < network.max())
        if not kept.any() or np.ptp(raw[kept]) == 0:
            raise UserError("the image has the same intensity everywhere: there is nothing to edit")
        factor, offset = np.polyfit(raw[kept].astype(np.float64), network[kept].astype(np.float64), 1)
        return cls(float(factor), float(offset))

    def to_network(self, raw: float) -> float:
        return self.factor * raw + self.offset

    def to_raw(self, network: np.ndarray) -> np.ndarray:
        return (network - self.offset) / self.factor


@dataclass(frozen=True)
class OpenedImage:
    """One image of one channel, preprocessed as nnU-Net does.

    Attributes:
        raw: [z, y, x] float32 as the reader gives it.
        network: [z', y', x'] float32, transposed, cropped, normalised, resampled in plane.
        regions: [z', y', x'] int16, the numbered edits; 0 = none, −1 = outside the image.
        intensities: raw ↔ network.
        properties: what nnU-Net knows about the image.
    """

    experiment: Experiment
    raw: np.ndarray
    network: np.ndarray
    regions: np.ndarray
    intensities: Intensities
    properties: dict[str, Any]

    @classmethod
    def open(cls, experiment: Experiment, files: Sequence[Path], regions: np.ndarray | None = None) -> OpenedImage:
        """Read and preprocess.

        Args:
            files: the image; one, as edits are given for one channel.
            regions: [z, y, x] numbers of the edits in the raw grid.

        Raises:
            UserError: unreadable file, several channels, or a configuration that resamples across slices.
        """
        if len(files) != 1 or len(experiment.channel_names) != 1:
            raise UserError(f"edits name one intensity, but the images of {experiment.dataset_name} have "
                            f"{len(experiment.channel_names)} channels: edit needs a dataset with one")
        image, properties = read_image(files, experiment.plans_manager.image_reader_writer_class())
        if len(image) != 1:
            raise UserError(f"{files[0]} has {len(image)} channels: edit needs a gray image")
        configuration, plans = experiment.configuration_manager, experiment.plans_manager
        preprocessor = configuration.preprocessor_class(verbose=False)
        marked = np.zeros_like(image, dtype=np.int16) if regions is None else regions[None].astype(np.int16)
        network, moved, properties = preprocessor.run_case_npy(image, marked, properties, plans, configuration,
                                                               experiment.dataset_json)
        if network.shape[1] != properties["shape_after_cropping_and_before_resampling"][0]:
            raise UserError(f"configuration {experiment.configuration} changes the distance between slices: edit with "
                            "a 2d configuration")
        cropped, outside, _ = crop_to_nonzero(image.transpose([0, *(axis + 1 for axis in plans.transpose_forward)]))
        normalised = preprocessor._normalize(cropped.astype(np.float32), outside, configuration,
                                             plans.foreground_intensity_properties_per_channel)
        scanned = outside >= 0
        return cls(experiment, image[0], network[0].astype(np.float32), moved[0].astype(np.int16),
                   Intensities.between(cropped[scanned], normalised[scanned]), properties)

    @property
    def slice_axis(self) -> int:
        """Which axis of the raw array the network's slices lie along."""
        return self.experiment.plans_manager.transpose_forward[0]

    def replace_slices(self, drawn: dict[int, np.ndarray]) -> np.ndarray:
        """[z, y, x] float32: the raw image with some slices drawn anew.

        Args:
            drawn: slice of `network` → its new [y', x'] network intensities.
        """
        images = {number: self.intensities.to_raw(image) for number, image in drawn.items()}
        return self._pasted(self.raw, images, self.experiment.configuration_manager.resampling_fn_data)

    def replace_labels(self, before: np.ndarray, drawn: dict[int, np.ndarray]) -> np.ndarray:
        """[z, y, x] labels of the raw grid with some slices replaced; `drawn` as above, [y', x'] integers."""
        return np.rint(self._pasted(before, drawn, self.experiment.configuration_manager.resampling_fn_seg)).astype(
            before.dtype)

    # -- the way back ------------------------------------------------------------------------------------------------

    @property
    def _crop(self) -> tuple[slice, ...]:
        return tuple(slice(low, high) for low, high in self.properties["bbox_used_for_cropping"])

    def _pasted(self, raw: np.ndarray, slices: dict[int, np.ndarray], resample: Any) -> np.ndarray:
        forward, backward = (self.experiment.plans_manager.transpose_forward,
                             self.experiment.plans_manager.transpose_backward)
        turned = raw.transpose(forward).copy()
        inside = turned[self._crop]             # a view
        spacing = [self.properties["spacing"][axis] for axis in forward]
        target = [spacing[0], *list(self.experiment.configuration_manager.spacing)[-2:]]
        for number, content in slices.items():
            resampled = resample(content[None, None].astype(np.float32), (1, *inside.shape[1:]), target, spacing)
            inside[number] = resampled[0, 0]
        return turned.transpose(backward)
