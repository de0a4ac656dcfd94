"""Unsupervised masks of whole cases, written beside the raw images: anatomy without any annotation.

As a layout, each level of gray is a class that the label-conditioned synthesizers draw. As clusters (cluster = 1 +
level), they reach the synthesizers that draw from unsupervised masks, where superpixels cannot be found in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_synth.data.find_layouts import (
    Found,
    LayoutReport,
    holds_hu,
    read_dataset_json,
    reader_writer_of,
    write_maps,
)
from nnunet_synth.data.intensities import MEASURED_PERCENTILES
from nnunet_synth.data.layouts import MAX_CLUSTER
from nnunet_synth.data.raw_images import read_image
from nnunet_synth.errors import UserError
from nnunet_synth.superpixels import METHODS, WHITE, Method, num_levels, scaled_num_segments, segment, unsupervised_mask

CT_WINDOW = (-1500.0, 100.0)        # HU; UM2I §IV-A


@dataclass(frozen=True)
class SuperpixelSettings:
    """How unsupervised masks are made, see `nnunet_synth.superpixels`.

    Attributes:
        segmentation: of scikit-image's two, Felzenszwalb's chooses the number of superpixels itself.
        num_segments: M in a slice of 512 × 512; other sizes have superpixels of the same area.
        step: t, between gray values 0 … 255 of the window.
    """

    segmentation: Method = "slic"
    num_segments: int = 512
    step: float = 50.0

    def __post_init__(self) -> None:
        if self.segmentation not in METHODS:
            raise UserError(f"unknown superpixels {self.segmentation!r}: choose one of {', '.join(METHODS)}")
        if self.num_segments < 1:
            raise UserError(f"--segments {self.num_segments}: at least one superpixel is needed")
        if self.num_segments > 512 ** 2:
            raise UserError(f"--segments {self.num_segments}: choose at most {512 ** 2}, as many as a slice of "
                            "512 × 512 has pixels")
        if num_levels(self.step) > MAX_CLUSTER:
            raise UserError(f"--step {self.step:g} makes {num_levels(self.step)} levels, a map holds at most "
                            f"{MAX_CLUSTER}: choose at least {WHITE / (MAX_CLUSTER - 1):.3g}")

    @property
    def layout_labels(self) -> dict[str, int]:
        """Name → value of each level of gray, from dark to bright; 0 stays the background."""
        lower = [level * self.step for level in range(num_levels(self.step))]
        return {f"superpixel {low:g}-{min(low + self.step, WHITE):g}": 1 + level for level, low in enumerate(lower)}


def write_superpixels(raw_folder: Path, settings: SuperpixelSettings, into: str = "layout", num_jobs: int = 1,
                      overwrite: bool = False) -> list[LayoutReport]:
    """Write the unsupervised masks of every labelled and unlabelled case of a raw dataset.

    Args:
        into: `layout` writes layoutsTr and layoutsUl, `cluster` clustersTr and clustersUl.

    Raises:
        UserError: see `find_layouts.write_maps`.
    """
    dataset_json = read_dataset_json(raw_folder)
    finder = partial(find_in_slices, dataset_json=dataset_json, find=partial(find_levels, settings=settings))
    description = {"method": "superpixel", **asdict(settings)}
    labels = settings.layout_labels if into == "layout" else {}
    return write_maps(raw_folder, finder, labels, description, into, num_jobs=num_jobs, overwrite=overwrite)


def find_in_slices(case_id: str, files: Sequence[Path], dataset_json: Mapping[str, Any],
                   find: Callable[[np.ndarray], np.ndarray]) -> Found:
    """A map of one case by `find`, which gets a slice [C, H, W] in [0, 1] and returns its map [H, W] uint8."""
    reader_writer = reader_writer_of(dataset_json, files[0])
    image, properties = read_image(files, reader_writer)
    axis = slice_axis(properties["spacing"])
    slices = np.moveaxis(to_unit_range(image, dataset_json), 1 + axis, 0)
    found = np.stack([find(np.ascontiguousarray(one)) for one in slices])
    return Found(np.ascontiguousarray(np.moveaxis(found, 0, axis)), properties, reader_writer)


def find_levels(image: np.ndarray, settings: SuperpixelSettings) -> np.ndarray:
    """[C, H, W] in [0, 1] → [H, W] uint8: superpixels of all channels, their level in the first one, from 1."""
    pixels = torch.from_numpy(image)[None]
    num_segments = scaled_num_segments(*image.shape[1:], settings.num_segments)
    segments = segment(pixels, settings.segmentation, num_segments)
    mask = unsupervised_mask(pixels[:, :1], step=settings.step, segments=segments)[0, 0]
    return (1 + (mask / settings.step).round()).to(torch.uint8).numpy()


def to_unit_range(image: np.ndarray, dataset_json: Mapping[str, Any]) -> np.ndarray:
    """Raw intensities [C, z, y, x] → [0, 1]: CT from −1500 to 100 HU, others between two percentiles of the case."""
    unit = np.empty(image.shape, np.float32)
    for channel, values in enumerate(image):
        low, high = CT_WINDOW if holds_hu(values, dataset_json, channel) else np.percentile(values,
                                                                                            MEASURED_PERCENTILES)
        unit[channel] = np.clip((values - low) / max(high - low, 1e-8), 0, 1)
    return unit


def slice_axis(spacing: Sequence[float]) -> int:
    """Along which axis slices lie: that of the largest spacing, as in nnU-Net's 2d configurations."""
    return int(np.argmax(spacing))
