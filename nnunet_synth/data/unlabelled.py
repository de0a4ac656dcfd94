"""The unlabelled pool: `imagesUl`, preprocessed by nnU-Net's own preprocessor with the dataset's own plans.

It lies beside nnU-Net's folder, never in it: there its cases would end up in splits and in the final validation.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, infer_dataset_class, nnUNetDatasetBlosc2

from nnunet_synth.atomic import naming_a_full_disk, remove_abandoned, remove_folder, write_json
from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.layouts import RawMaps, layout_file, locations_file, preprocess_layout, stored_kinds
from nnunet_synth.data.raw_images import read_image
from nnunet_synth.errors import UserError
from nnunet_synth.lock import only_writer
from nnunet_synth.parallel import parallel_map
from nnunet_synth.progress import progress

# Pool images this many times finer or coarser than any labelled one are taken for a mistake in the header.
PLAUSIBLE_SPACING_FACTOR = 4.0


@dataclass(frozen=True)
class PoolPlan:
    """What has to be done before training: which cases and layouts are missing or older than their sources."""

    experiment: Experiment

    @property
    def manifest_file(self) -> Path:
        # Outside the folder of the cases: nnU-Net stops at any foreign file in there.
        return self.experiment.pool_folder.with_name(f"{self.experiment.pool_folder.name}.json")

    @cached_property
    def preprocessing_sha256(self) -> str:
        """Hash of everything in the plans that decides how a case looks after preprocessing."""
        configuration = self.experiment.configuration_manager
        content = [self.experiment.plans_sha256, list(configuration.spacing),
                   self.experiment.plans["image_reader_writer"],
                   configuration.configuration["preprocessor_name"],
                   *(configuration.configuration[key] for key in sorted(configuration.configuration)
                     if key.startswith("resampling_fn"))]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def is_stale(self) -> bool:
        """The pool was preprocessed with other plans."""
        if not self.manifest_file.exists():
            return self.experiment.pool_folder.exists()
        return json.loads(self.manifest_file.read_text())["preprocessing_sha256"] != self.preprocessing_sha256

    def image_files(self, case_id: str) -> list[Path]:
        """The channels of a pool case. Raises UserError when their number is not the dataset's."""
        ending = self.experiment.dataset_json["file_ending"]
        files = self.experiment.pool_images[case_id]
        expected = [f"{case_id}_{channel:04d}{ending}" for channel in range(len(self.experiment.channel_names))]
        if [file.name for file in files] != expected:
            raise UserError(f"imagesUl holds {', '.join(file.name for file in files)} but the dataset has "
                            f"{len(expected)} channel(s): expected {', '.join(expected)}")
        return files

    @cached_property
    def missing_cases(self) -> list[str]:
        folder = self.experiment.pool_folder
        if self.is_stale:
            return list(self.experiment.pool_ids)
        return [case_id for case_id in self.experiment.pool_ids
                if is_older(folder / f"{case_id}.pkl", *self.image_files(case_id))]

    @cached_property
    def missing_layouts(self) -> list[tuple[str, RawMaps]]:
        """(case id, raw layout and clusters) of each map that is not stored yet, older than its sources, or made of
        others."""
        experiment = self.experiment
        todo = []
        for part, folder, case_ids in (("Tr", experiment.data_folder, experiment.labelled_ids),
                                       ("Ul", experiment.pool_folder, experiment.pool_ids)):
            for case_id in case_ids:
                raw = RawMaps.find(experiment.raw_folder, part, f"{case_id}{experiment.dataset_json['file_ending']}")
                redone = folder == experiment.pool_folder and case_id in self.missing_cases
                sources = [*raw.files, folder / f"{case_id}.pkl"]
                if raw.files and (redone or is_older(layout_file(experiment, case_id),
                                                     *(path for path in sources if path.exists()))
                                  or stored_kinds(experiment, case_id) != raw.kinds):
                    todo.append((case_id, raw))
        return todo

    @property
    def is_complete(self) -> bool:
        return not self.missing_cases and not self.missing_layouts


def check_pool(experiment: Experiment) -> None:
    """Raise UserError if an unlabelled case is also a labelled or a test case."""
    pool = set(experiment.pool_ids)
    for other, where in ((experiment.labelled_ids, "labelled (imagesTr)"),
                         (experiment.test_ids, "test cases (imagesTs)")):
        both = sorted(pool & set(other))
        if both:
            raise UserError(f"case(s) {', '.join(both[:5])} of imagesUl are also {where}: remove them from one of the "
                            "two")


def preprocess_pool(experiment: Experiment, num_processes: int = 1, force: bool = False,
                    waits: bool = False) -> PoolPlan:
    """Preprocess what is missing or stale of the pool and of all layouts; returns the plan that was carried out.

    Interrupted, it continues where it stopped; a case appears complete or not at all.

    Args:
        num_processes: worker processes.
        force: do everything again.
        waits: for another process that does it, as trainings of several folds that were started together.

    Raises:
        UserError: see `check_pool`, `PoolPlan.image_files`, `preprocess_layout`; an image that cannot be read, holds
            NaN or Inf, or whose spacing cannot be right; another process is at it.
    """
    check_pool(experiment)
    with only_writer(experiment.pool_folder, waits):
        return _preprocess_pool(experiment, num_processes, force)


def _preprocess_pool(experiment: Experiment, num_processes: int, force: bool) -> PoolPlan:
    plan = PoolPlan(experiment)
    if force or plan.is_stale:
        remove_folder(experiment.pool_folder)
        remove_folder(experiment.layouts_folder)
        plan = PoolPlan(experiment)
    _remove_orphans(experiment)
    remove_abandoned(experiment.pool_folder)
    cases, layouts = plan.missing_cases, plan.missing_layouts
    if cases:
        experiment.pool_folder.mkdir(parents=True, exist_ok=True)
        # Written before the first case: an interrupted run must be recognised as made with these plans.
        write_json({"preprocessing_sha256": plan.preprocessing_sha256}, plan.manifest_file)
        preprocess = partial(_preprocess_case, experiment, _labelled_spacings(experiment))
        _for_each(preprocess, [(case_id, plan.image_files(case_id)) for case_id in cases], num_processes,
                  "preprocessing unlabelled cases")
    if layouts:
        if not experiment.layout_labels and any(raw.layout for _, raw in layouts):
            raise UserError(f"{experiment.dataset_name} has layouts but its dataset.json does not say what their "
                            'values mean: add "nnunet_synth": {"layout_labels": {"left_lung": 1, "right_lung": 2}}')
        _for_each(partial(_preprocess_case_layout, experiment), layouts, num_processes, "preprocessing layouts")
    return plan


def _preprocess_case(experiment: Experiment, labelled_spacings: tuple[float, float],
                     case: tuple[str, list[Path]]) -> None:
    """nnU-Net's preprocessing of one case without a label."""
    case_id, image_files = case
    preprocessor = experiment.configuration_manager.preprocessor_class(verbose=False)
    image, properties = read_image(image_files, experiment.plans_manager.image_reader_writer_class())
    _check_spacing(labelled_spacings, properties["spacing"], image_files[0])
    data, outside, properties = preprocessor.run_case_npy(
        image, None, properties, experiment.plans_manager, experiment.configuration_manager, experiment.dataset_json)
    properties["class_locations"] = {}      # nothing to oversample: nobody labelled it
    patch_size = tuple(experiment.configuration_manager.patch_size)
    data, outside = data.astype(np.float32, copy=False), outside.astype(np.int16, copy=False)
    blocks, chunks = comp_blosc2_params(data.shape, patch_size, data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(outside.shape, patch_size, outside.itemsize)

    folder = experiment.pool_folder
    # Written beside the folder: nnU-Net would take a half-written case inside it for a whole one.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name, \
            naming_a_full_disk(folder.parent, Path(name)):
        temporary = Path(name)
        nnUNetDatasetBlosc2.save_case(data, outside, properties, str(temporary / case_id), chunks=chunks, blocks=blocks,
                                      chunks_seg=chunks_seg, blocks_seg=blocks_seg)
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):       # the .pkl last: it says that the case is complete
            (temporary / f"{case_id}{ending}").replace(folder / f"{case_id}{ending}")


def _preprocess_case_layout(experiment: Experiment, case: tuple[str, RawMaps]) -> None:
    case_id, raw = case
    folder = experiment.data_folder if raw.files[0].parent.name.endswith("Tr") else experiment.pool_folder
    data, _, _, properties = infer_dataset_class(str(folder))(str(folder), [case_id]).load_case(case_id)
    preprocess_layout(experiment, case_id, raw, data.shape[1:], properties)


def _labelled_spacings(experiment: Experiment) -> tuple[float, float]:
    """The finest and the coarsest spacing of the labelled cases, mm.

    Without order: which axis is the slice axis differs between scanners' exports.
    """
    fingerprint = json.loads((experiment.preprocessed_folder / "dataset_fingerprint.json").read_text())
    labelled = np.array(fingerprint["spacings"], dtype=float)
    return float(labelled.min()), float(labelled.max())


def _check_spacing(labelled: tuple[float, float], spacing: list[float], file: Path) -> None:
    finest, coarsest = labelled
    spacing = np.asarray(spacing, dtype=float)
    if not np.all(np.isfinite(spacing)) or spacing.min() < finest / PLAUSIBLE_SPACING_FACTOR \
            or spacing.max() > coarsest * PLAUSIBLE_SPACING_FACTOR:
        raise UserError(f"{file} has spacing {np.round(spacing, 4).tolist()} mm, the labelled cases "
                        f"{finest:.4g} to {coarsest:.4g} mm: correct its header, or leave it out of imagesUl")


def _remove_orphans(experiment: Experiment) -> None:
    """Delete stored cases and layouts whose raw files are gone."""
    pool = set(experiment.pool_ids)
    for path in experiment.pool_folder.glob("*.pkl"):
        if path.stem not in pool:
            for ending in (".pkl", ".b2nd", "_seg.b2nd"):
                path.with_name(path.stem + ending).unlink(missing_ok=True)
    ending = experiment.dataset_json["file_ending"]
    for path in experiment.layouts_folder.glob("*.b2nd"):
        part = "Ul" if path.stem in pool else "Tr"
        if not RawMaps.find(experiment.raw_folder, part, f"{path.stem}{ending}").files:
            path.unlink()
            locations_file(experiment, path.stem).unlink(missing_ok=True)


def _for_each(function: Callable[[tuple], None], items: list[tuple], num_processes: int, description: str) -> None:
    for _ in progress(parallel_map(function, items, num_processes), description, total=len(items)):
        pass


def is_older(target: Path, *sources: Path) -> bool:
    """`target` does not exist, or a source was written after it."""
    if not target.exists():
        return True
    written = target.stat().st_mtime_ns
    return any(source.stat().st_mtime_ns > written for source in sources)
