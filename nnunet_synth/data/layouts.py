"""Layout maps beside nnU-Net's preprocessed cases: anatomy and clusters, or either, in the same voxel grid.

Anatomy comes from layoutsTr and layoutsUl of the raw dataset, clusters (quantised superpixels, or those of CS2's
network) from clustersTr and clustersUl.

Stock nnU-Net would train on a second segmentation channel without a word (nnunet.md §3), so the maps live in a folder
of their own and reach the trainer through the loader's unused slot for previous-stage segmentations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from nnunet_synth.atomic import atomic_file
from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.raw_images import read_segmentation
from nnunet_synth.errors import UserError

CLUSTER_FACTOR = 256            # map value = layout + 256 · cluster
MAX_CLUSTER = 127               # the map is int16
NUM_LOCATIONS = 10_000          # as many as nnU-Net keeps for each class


@dataclass(frozen=True)
class RawMaps:
    """The raw files that one map is made of."""

    layout: Path | None
    cluster: Path | None

    @classmethod
    def find(cls, raw_folder: Path, part: str, name: str) -> RawMaps:
        """Those that exist of `name` (CASE.ext) in layouts`part` and clusters`part`; `part` is Tr or Ul."""
        files = (raw_folder / f"{kind}{part}" / name for kind in ("layouts", "clusters"))
        return cls(*(file if file.exists() else None for file in files))

    @property
    def files(self) -> list[Path]:
        return [file for file in (self.layout, self.cluster) if file is not None]


def layout_file(experiment: Experiment, case_id: str) -> Path:
    """The stored map of a preprocessed case."""
    return experiment.layouts_folder / f"{case_id}.b2nd"


def locations_file(experiment: Experiment, case_id: str) -> Path:
    """[n, 4] int32 rows (0, z, y, x) of voxels inside the layout, drawn once."""
    return experiment.layouts_folder / f"{case_id}_locations.npy"


def layout_note(experiment: Experiment, case_id: str) -> Path:
    """What the stored map was made of."""
    return experiment.layouts_folder / f"{case_id}_made_of.json"


def open_layout(layouts_folder: Path, case_id: str, shape: tuple[int, ...]) -> Any:
    """The [z, y, x] int16 map of a case, lazily read; zeros (of no size in memory) where a case has none."""
    path = Path(layouts_folder) / f"{case_id}.b2nd"
    if not path.exists():
        return np.broadcast_to(np.int16(0), shape)
    stored = open_map(path)
    if stored.shape != tuple(shape):
        raise UserError(f"the layout of case {case_id} has shape {stored.shape}, the preprocessed image {tuple(shape)}:"
                        " run nnunet_synth preprocess again")
    return stored


def preprocess_layout(experiment: Experiment, case_id: str, raw: RawMaps, image_shape: tuple[int, ...],
                      properties: dict[str, Any]) -> None:
    """Bring a raw layout, raw clusters or both into the voxel grid of their preprocessed case; store them as one map.

    Args:
        image_shape: [z, y, x] of the preprocessed case.
        properties: of the preprocessed case; say how nnU-Net cropped it.

    Raises:
        UserError: unreadable file, another shape than the image, a layout value that dataset.json does not declare, or
            a cluster that is not one of 0 … 127.
    """
    resampled = np.zeros(image_shape, np.int16)
    if raw.layout is not None:
        layout = _read(experiment, raw.layout, properties)
        _check_labels(layout, experiment.layout_labels, raw.layout)
        resampled += _resample(experiment, layout, image_shape, properties)
    if raw.cluster is not None:
        cluster = _read(experiment, raw.cluster, properties)
        _check_clusters(cluster, raw.cluster)
        resampled += CLUSTER_FACTOR * _resample(experiment, cluster, image_shape, properties)
    _write_locations(resampled, locations_file(experiment, case_id))
    write_map(resampled, layout_file(experiment, case_id), tuple(experiment.configuration_manager.patch_size))


def _read(experiment: Experiment, raw_file: Path, properties: dict[str, Any]) -> np.ndarray:
    """[1, z, y, x], transposed as nnU-Net's plans say."""
    raw, _ = read_segmentation(raw_file, experiment.plans_manager.image_reader_writer_class())
    raw = raw.transpose([0, *(axis + 1 for axis in experiment.plans_manager.transpose_forward)])
    if raw.shape[1:] != tuple(properties["shape_before_cropping"]):
        expected = tuple(properties["shape_before_cropping"])
        raise UserError(f"{raw_file} has shape {raw.shape[1:]}, its image {expected}: a layout must have the voxel "
                        "grid of its image")
    return raw


def _resample(experiment: Experiment, raw: np.ndarray, image_shape: tuple[int, ...],
              properties: dict[str, Any]) -> np.ndarray:
    """[1, z, y, x] → int16 in the shape of the preprocessed image."""
    crop = tuple(slice(low, high) for low, high in properties["bbox_used_for_cropping"])
    spacing = [properties["spacing"][axis] for axis in experiment.plans_manager.transpose_forward]
    configuration = experiment.configuration_manager
    target = list(configuration.spacing)
    if len(target) == 2:            # 2d configurations keep the distance between slices
        target = [spacing[0], *target]
    return configuration.resampling_fn_seg(raw[(slice(None), *crop)], image_shape, spacing, target)[0].astype(np.int16)


def _check_labels(layout: np.ndarray, layout_labels: dict[str, int], raw_file: Path) -> None:
    undeclared = sorted(set(np.unique(layout).astype(int).tolist()) - {0, *layout_labels.values()})
    if undeclared:
        declared = ", ".join(f"{name}={value}" for name, value in layout_labels.items()) or "none"
        raise UserError(f"{raw_file} holds value(s) {undeclared[:5]} that dataset.json does not declare under "
                        f"nnunet_synth.layout_labels (declared: {declared})")


def _check_clusters(cluster: np.ndarray, raw_file: Path) -> None:
    lowest, highest = int(cluster.min()), int(cluster.max())
    if lowest < 0 or highest > MAX_CLUSTER:
        raise UserError(f"{raw_file} holds values from {lowest} to {highest}: clusters are numbered from 1 to "
                        f"{MAX_CLUSTER}, 0 means none")


def open_map(path: Path) -> Any:
    """What `write_map` stored, lazily read."""
    return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1})


def write_map(voxels: np.ndarray, target: Path, patch_size: tuple[int, ...]) -> None:
    """Store integers [z, y, x] or [1, z, y, x] so that patches of this size are read fast; atomic."""
    blocks, chunks = comp_blosc2_params((1, *voxels.shape[-3:]), patch_size, voxels.itemsize)
    with atomic_file(target) as temporary:
        temporary.unlink()          # blosc2 opens existing files instead of replacing them
        blosc2.asarray(np.ascontiguousarray(voxels), urlpath=str(temporary), chunks=chunks[-voxels.ndim:],
                       blocks=blocks[-voxels.ndim:], cparams={"nthreads": 1})


def _write_locations(layout: np.ndarray, target: Path) -> None:
    inside = np.flatnonzero(layout % CLUSTER_FACTOR)
    rng = np.random.default_rng(1234)       # fixed: preprocessing again must not change what is drawn
    chosen = rng.choice(inside, min(NUM_LOCATIONS, inside.size), replace=False) if inside.size else inside
    coordinates = np.stack(np.unravel_index(np.sort(chosen), layout.shape), axis=1)
    rows = np.concatenate([np.zeros((len(coordinates), 1), np.int64), coordinates], axis=1).astype(np.int32)
    with atomic_file(target) as temporary:
        np.save(temporary, rows, allow_pickle=False)
