"""Layout maps beside nnU-Net's preprocessed cases: anatomy (and superpixel clusters) in the same voxel grid.

Stock nnU-Net would train on a second segmentation channel without a word (nnunet.md §3), so the maps live in a folder
of their own and reach the trainer through the loader's unused slot for previous-stage segmentations.
"""

from __future__ import annotations

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
NUM_LOCATIONS = 10_000          # as many as nnU-Net keeps for each class


def layout_file(experiment: Experiment, case_id: str) -> Path:
    """The stored map of a preprocessed case."""
    return experiment.layouts_folder / f"{case_id}.b2nd"


def locations_file(experiment: Experiment, case_id: str) -> Path:
    """[n, 4] int32 rows (0, z, y, x) of voxels inside the layout, drawn once."""
    return experiment.layouts_folder / f"{case_id}_locations.npy"


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


def preprocess_layout(experiment: Experiment, case_id: str, raw_file: Path, image_shape: tuple[int, ...],
                      properties: dict[str, Any]) -> None:
    """Bring one raw layout into the voxel grid of its preprocessed case and store it.

    Args:
        raw_file: CASE.ext of layoutsTr or layoutsUl.
        image_shape: [z, y, x] of the preprocessed case.
        properties: of the preprocessed case; say how nnU-Net cropped it.

    Raises:
        UserError: unreadable file, another shape than the image, or a value that dataset.json does not declare.
    """
    layout, _ = read_segmentation(raw_file, experiment.plans_manager.image_reader_writer_class())
    _check_labels(layout, experiment.layout_labels, raw_file)
    layout = layout.transpose([0, *(axis + 1 for axis in experiment.plans_manager.transpose_forward)])
    if layout.shape[1:] != tuple(properties["shape_before_cropping"]):
        expected = tuple(properties["shape_before_cropping"])
        raise UserError(f"{raw_file} has shape {layout.shape[1:]}, its image {expected}: a layout must have the voxel "
                        "grid of its image")

    crop = tuple(slice(low, high) for low, high in properties["bbox_used_for_cropping"])
    spacing = [properties["spacing"][axis] for axis in experiment.plans_manager.transpose_forward]
    configuration = experiment.configuration_manager
    target = list(configuration.spacing)
    if len(target) == 2:            # 2d configurations keep the distance between slices
        target = [spacing[0], *target]
    cropped = layout[(slice(None), *crop)]
    resampled = configuration.resampling_fn_seg(cropped, image_shape, spacing, target)[0].astype(np.int16)
    _write_locations(resampled, locations_file(experiment, case_id))
    # The map last: it says that the layout is complete.
    write_map(resampled, layout_file(experiment, case_id), tuple(configuration.patch_size))


def _check_labels(layout: np.ndarray, layout_labels: dict[str, int], raw_file: Path) -> None:
    undeclared = sorted(set(np.unique(layout).astype(int).tolist()) - {0, *layout_labels.values()})
    if undeclared:
        declared = ", ".join(f"{name}={value}" for name, value in layout_labels.items()) or "none"
        raise UserError(f"{raw_file} holds value(s) {undeclared[:5]} that dataset.json does not declare under "
                        f"nnunet_synth.layout_labels (declared: {declared})")


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
