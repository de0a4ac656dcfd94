"""Synthetic images as a normal nnU-Net raw dataset: same channels, labels, reader and file ending as the one they were
learnt from, intensities of the raw images again, and in dataset.json where they come from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from nnunet_synth import __version__
from nnunet_synth.atomic import write_json
from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.intensities import intensity_outside, to_raw_intensities
from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription
from nnunet_synth.dataset_conversion.writer import convert_case
from nnunet_synth.synthesizers.base import Slices, SynthMeta

PICTURE_READER = "NaturalImage2DIO"


class SyntheticWriter:
    """Writes slices as cases: pictures where the dataset holds pictures, volumes of one slice otherwise; or whole
    volumes.

    Args:
        experiment: that the synthesizer was trained on.
        folder: of the new dataset; `imagesTr`, `labelsTr`, `layoutsTr` are made in it.
        has_layouts: False = nobody knows the anatomy of what was drawn.
    """

    def __init__(self, experiment: Experiment, meta: SynthMeta, folder: Path, has_layouts: bool = True) -> None:
        self.experiment, self.meta, self.folder = experiment, meta, folder
        self.layout_labels = experiment.layout_labels if has_layouts else {}
        self.is_picture = experiment.plans["image_reader_writer"] == PICTURE_READER
        self.description = DatasetDescription(
            name="Synthetic", channel_names=tuple(experiment.channel_names),
            labels={"background": 0, **experiment.foreground_labels},
            file_ending=experiment.dataset_json["file_ending"],
            reader_writer=experiment.plans["image_reader_writer"], num_dimensions=2 if self.is_picture else 3,
            licence="", citation="", source="", layout_labels=self.layout_labels)
        self.meanings: list[str] = []
        self.num_written = 0

    def write(self, part: Slices, image: np.ndarray) -> None:
        """One case: `part` [1, …] holds label, layout and valid area of `image` [C, H, W], in network intensities."""
        self.write_arrays(part.label[0].numpy(), part.layout[0].numpy(), part.valid[0].numpy(), image)

    def write_arrays(self, label: np.ndarray, layout: np.ndarray, valid: np.ndarray, image: np.ndarray,
                     slice_spacing: float | None = None) -> None:
        """One case: label, layout and valid area [H, W] or [D, H, W] of `image` [C, …], in network intensities.

        Args:
            slice_spacing: mm between slices; by default that of the plans.
        """
        bounds = self.meta.intensity_range
        outside = intensity_outside(self.experiment, bounds).reshape(-1, *(1,) * label.ndim)
        raw, self.meanings = to_raw_intensities(self.experiment, np.where(valid, image, outside), bounds,
                                                eight_bit=self.is_picture)
        case = Case(f"{self.meta.synthesizer}_{self.num_written:05d}", "labelled", (),
                    partial(self._content, label, layout, raw, slice_spacing))
        report = convert_case(case, self.description, self.folder)
        if report.status == "rejected":
            raise RuntimeError(f"a synthetic case was rejected: {report.reason}")
        self.num_written += 1

    def finish(self, name: str, provenance: dict[str, Any]) -> None:
        """Write dataset.json: the original's labels, regions and channels, and where these images come from."""
        original = self.experiment.dataset_json
        copied = ("channel_names", "labels", "regions_class_order", "file_ending")
        ours = original.get("nnunet_synth", {})
        write_json({
            **{key: original[key] for key in copied if key in original},
            "numTraining": self.num_written,
            "name": name,
            "overwrite_image_reader_writer": self.experiment.plans["image_reader_writer"],
            "description": f"Synthetic images for {self.experiment.dataset_name}. They resemble the cases that the "
                           "synthesizer was trained on: never validate on those",
            "licence": ours.get("licence", original.get("licence", "as the dataset it was trained on")),
            "nnunet_synth": {
                "layout_labels": self.layout_labels,
                "source": f"drawn by nnunet_synth {__version__}",
                "synthetic": {
                    "synthesizer": self.meta.synthesizer,
                    "steps": self.meta.steps,
                    "trained_on": self.meta.dataset,
                    "fold": self.meta.fold,
                    "train_case_ids": self.meta.train_case_ids,
                    "intensity_range": self._drawn_range(),
                    "intensities": dict(zip(self.meta.channel_names, self.meanings, strict=True)),
                    **provenance,
                },
            },
        }, self.folder / "dataset.json")

    def _drawn_range(self) -> list[list[float]]:
        """[lo, hi] of each channel in the intensities of the files: nothing drawn lies outside."""
        bounds = self.meta.intensity_range
        raw = to_raw_intensities(self.experiment, np.array(bounds), bounds, eight_bit=self.is_picture)[0]
        return [[float(low), float(high)] for low, high in raw]

    def _content(self, label: np.ndarray, layout: np.ndarray, raw: np.ndarray,
                 slice_spacing: float | None) -> CaseContent:
        if self.is_picture:
            raw = np.clip(np.rint(raw), 0, 255).astype(np.uint8)
        elif set(self.experiment.configuration_manager.normalization_schemes) == {"CTNormalization"}:
            raw = np.rint(raw).astype(np.int16)
        return CaseContent(images=tuple(self._image(channel, slice_spacing) for channel in raw),
                           label=self._image(label.astype(np.uint8), slice_spacing),
                           layout=self._image(layout.astype(np.uint8), slice_spacing) if self.layout_labels else None)

    def _image(self, array: np.ndarray, slice_spacing: float | None) -> SimpleITK.Image:
        """[H, W] as a picture; or as a volume of one slice, or [D, H, W] as it is, in the axes of the raw images."""
        if self.is_picture:
            return SimpleITK.GetImageFromArray(array)
        backward = self.experiment.plans_manager.transpose_backward
        spacing = list(self.experiment.configuration_manager.spacing)
        if len(spacing) == 2:           # 2d configurations keep the distance between slices
            planned = self.experiment.plans["original_median_spacing_after_transp"][0]
            spacing = [slice_spacing or planned, *spacing]
        volume = array if array.ndim == 3 else array[None]
        image = SimpleITK.GetImageFromArray(volume.transpose(backward))
        image.SetSpacing([float(spacing[axis]) for axis in backward][::-1])
        return image
