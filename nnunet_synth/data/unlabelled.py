"""The unlabelled pool: `imagesUl`, preprocessed by nnU-Net's own preprocessor with the dataset's own plans.

It lies beside nnU-Net's folder, never in it: there its cases would end up in splits and in the final validation.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from nnunet_synth.atomic import naming_a_full_disk, remove_abandoned, remove_folder, write_json
from nnunet_synth.data.content import Content
from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.hounsfield import not_hounsfield
from nnunet_synth.data.labelled_geometry import LabelledGeometry
from nnunet_synth.data.layouts import RawMaps, layout_file, layout_note, locations_file, preprocess_layout
from nnunet_synth.data.made_of import is_made_of, read_note, stamps, write_note
from nnunet_synth.data.misnamed import misnamed, passed_over
from nnunet_synth.data.planned_files import naming_unusable_plans
from nnunet_synth.data.pool_copies import (
    Contents,
    compared,
    contents_of_labelled_and_test,
    noted_content,
    notes_folder,
    refuse_copies,
)
from nnunet_synth.data.preprocessed_cases import dataset_class
from nnunet_synth.data.raw_images import check_channels, read_image
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object
from nnunet_synth.lock import only_writer
from nnunet_synth.parallel import parallel_map
from nnunet_synth.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PoolPlan:
    """What has to be done before training: which cases and layouts are missing or made of other sources than are there
    now."""

    experiment: Experiment
    warnings: list[str] = field(default_factory=list)       # what the user should know, after it was carried out

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
        cure = "remove it, and the pool is preprocessed again"
        stored = read_object(self.manifest_file, cure, cure, "preprocessing_sha256")
        return stored["preprocessing_sha256"] != self.preprocessing_sha256

    def note_file(self, case_id: str) -> Path:
        """What a preprocessed case was made of and what it shows."""
        return self.experiment.pool_notes_folder / f"{case_id}.json"

    def image_files(self, case_id: str) -> list[Path]:
        """The files of a pool case: one a channel, or one that holds them all (an RGB picture), as reading will tell.

        Raises:
            UserError: their number is neither.
        """
        ending = self.experiment.dataset_json["file_ending"]
        files = self.experiment.pool_images[case_id]
        expected = [f"{case_id}_{channel:04d}{ending}" for channel in range(len(self.experiment.channel_names))]
        if [file.name for file in files] not in (expected, expected[:1]):
            raise UserError(f"imagesUl holds {', '.join(file.name for file in files)} but the dataset has "
                            f"{len(expected)} channel(s): expected {', '.join(expected)}")
        return files

    @cached_property
    def finished_cases(self) -> dict[str, Content]:
        """Id → what it shows, of each case that is preprocessed with these plans from the images that are there now."""
        if self.is_stale:
            return {}
        found = {case_id: noted_content(self.note_file(case_id), self.image_files(case_id))
                 for case_id in self.experiment.pool_ids
                 if (self.experiment.pool_folder / f"{case_id}.pkl").exists()}
        return {case_id: content for case_id, content in found.items() if content is not None}

    @property
    def missing_cases(self) -> list[str]:
        return [case_id for case_id in self.experiment.pool_ids if case_id not in self.finished_cases]

    @cached_property
    def missing_layouts(self) -> list[tuple[str, RawMaps]]:
        """(case id, raw layout and clusters) of each map that is not stored yet, or made of others, for others or with
        other plans."""
        experiment = self.experiment
        todo = []
        for part, folder, case_ids in (("Tr", experiment.data_folder, experiment.labelled_ids),
                                       ("Ul", experiment.pool_folder, experiment.pool_ids)):
            for case_id in case_ids:
                raw = RawMaps.find(experiment.raw_folder, part, f"{case_id}{experiment.dataset_json['file_ending']}")
                is_redone = part == "Ul" and case_id not in self.finished_cases
                if raw.files and (is_redone or not self._has_layout_of(case_id, raw, folder)):
                    todo.append((case_id, raw))
        return todo

    def _has_layout_of(self, case_id: str, raw: RawMaps, folder: Path) -> bool:
        note, experiment = layout_note(self.experiment, case_id), self.experiment
        stored = read_note(note)
        return layout_file(experiment, case_id).exists() and stored is not None \
            and stored.get("preprocessing_sha256") == self.preprocessing_sha256 \
            and is_made_of(note, layout_sources(case_id, raw, folder))

    @property
    def is_complete(self) -> bool:
        return not self.missing_cases and not self.missing_layouts


def layout_sources(case_id: str, raw: RawMaps, folder: Path) -> list[Path]:
    """What decides how the stored map of a case looks; the .pkl in the folder of the preprocessed case says how nnU-Net
    cropped it."""
    return [*raw.files, folder / f"{case_id}.pkl"]


def check_pool(experiment: Experiment) -> None:
    """Raise UserError if an unlabelled case is called as a labelled or a test case, or if all files of imagesUl are
    called in another way than nnU-Net's."""
    if not experiment.pool_ids and (said := passed_over(experiment.raw_folder / "imagesUl", experiment.file_ending)):
        raise UserError(said)
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
        UserError: see `check_pool`, `pool_copies.refuse_copies`, `PoolPlan.image_files`, `preprocess_layout`; an image
            that cannot be read, holds NaN or Inf, has other channels or dimensions than the labelled ones, or whose
            spacing or Hounsfield units cannot be right; another process is at it.
    """
    check_pool(experiment)
    with only_writer(experiment.pool_folder, waits):
        return _preprocess_pool(experiment, num_processes, force)


def _preprocess_pool(experiment: Experiment, num_processes: int, force: bool) -> PoolPlan:
    plan = PoolPlan(experiment)
    if force or plan.is_stale:
        for folder in (experiment.pool_folder, experiment.pool_notes_folder, experiment.layouts_folder):
            remove_folder(folder)
        plan = PoolPlan(experiment)
    _remove_orphans(experiment)
    remove_abandoned(experiment.pool_folder)
    cases, layouts = plan.missing_cases, plan.missing_layouts
    if experiment.pool_ids:
        others, failed = _labelled_and_test(experiment, num_processes)
        contents = {f"imagesUl/{case_id}": content for case_id, content in plan.finished_cases.items()}
        refuse_copies(contents, others)
    if cases:
        experiment.pool_folder.mkdir(parents=True, exist_ok=True)
        # Written before the first case: an interrupted run must be recognised as made with these plans.
        write_json({"preprocessing_sha256": plan.preprocessing_sha256}, plan.manifest_file)
        preprocess = partial(_preprocess_case, experiment, LabelledGeometry.of(experiment))
        todo = [(case_id, plan.image_files(case_id)) for case_id in cases]
        for case_id, content in _for_each(preprocess, todo, num_processes, "preprocessing unlabelled cases"):
            # At once, not after hours.
            refuse_copies({f"imagesUl/{case_id}": content}, others)
            contents[f"imagesUl/{case_id}"] = content
    if experiment.pool_ids:
        plan.warnings.extend([*failed, *compared(contents, others, _copies_file(experiment))])
    if layouts:
        if not experiment.layout_labels and any(raw.layout for _, raw in layouts):
            raise UserError(f"{experiment.dataset_name} has layouts but its dataset.json does not say what their "
                            'values mean: add "nnunet_synth": {"layout_labels": {"left_lung": 1, "right_lung": 2}}')
        preprocess = partial(_preprocess_case_layout, experiment, plan.preprocessing_sha256)
        for _ in _for_each(preprocess, layouts, num_processes, "preprocessing layouts"):
            pass
    plan.warnings.extend(misnamed(experiment))
    return plan


def _labelled_and_test(experiment: Experiment, num_processes: int) -> tuple[Contents, list[str]]:
    return contents_of_labelled_and_test(experiment.raw_folder, notes_folder(experiment.preprocessed_folder),
                                         experiment.file_ending, experiment.plans_manager.image_reader_writer_class,
                                         num_processes)


def _copies_file(experiment: Experiment) -> Path:
    return experiment.pool_folder.with_name(f"{experiment.pool_folder.name}_copies.json")


def _preprocess_case(experiment: Experiment, labelled: LabelledGeometry,
                     case: tuple[str, list[Path]]) -> tuple[str, Content]:
    """nnU-Net's preprocessing of one case without a label; returns its id and what it shows."""
    case_id, image_files = case
    sources = stamps(image_files)
    with naming_unusable_plans(experiment.plans_file):
        preprocessor = experiment.configuration_manager.preprocessor_class(verbose=False)
        reader = experiment.plans_manager.image_reader_writer_class()
    labelled.check_dimensions(image_files)
    image, properties = read_image(image_files, reader)
    check_channels(image, experiment.channel_names, image_files[0])
    _check_intensities(image, experiment.channel_names, image_files)
    labelled.check_spacing(properties["spacing"], image_files[0])
    content = Content.of(image)
    with naming_unusable_plans(experiment.plans_file):
        data, outside, properties = preprocessor.run_case_npy(
            image, None, properties, experiment.plans_manager, experiment.configuration_manager,
            experiment.dataset_json)
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
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):       # the .pkl last: it says that nnU-Net's files are complete
            (temporary / f"{case_id}{ending}").replace(folder / f"{case_id}{ending}")
    write_note(experiment.pool_notes_folder / f"{case_id}.json", sources, **content.to_json())
    return case_id, content


def _preprocess_case_layout(experiment: Experiment, preprocessing_sha256: str, case: tuple[str, RawMaps]) -> None:
    case_id, raw = case
    folder = experiment.data_folder if raw.files[0].parent.name.endswith("Tr") else experiment.pool_folder
    sources = stamps(layout_sources(case_id, raw, folder))
    data, _, _, properties = dataset_class(folder)(str(folder), [case_id]).load_case(case_id)
    preprocess_layout(experiment, case_id, raw, data.shape[1:], properties)
    write_note(layout_note(experiment, case_id), sources, preprocessing_sha256=preprocessing_sha256)


def _check_intensities(image: np.ndarray, channel_names: list[str], files: list[Path]) -> None:
    for channel, name in enumerate(channel_names):
        if name.lower() == "ct" and (reason := not_hounsfield(image[channel])):
            raise UserError(f"{files[min(channel, len(files) - 1)]} {reason}, or leave it out of imagesUl")


def _remove_orphans(experiment: Experiment) -> None:
    """Delete stored cases and layouts whose raw files are gone."""
    pool = set(experiment.pool_ids)
    for path in experiment.pool_folder.glob("*.pkl"):
        if path.stem not in pool:
            for ending in (".pkl", ".b2nd", "_seg.b2nd"):
                path.with_name(path.stem + ending).unlink(missing_ok=True)
            (experiment.pool_notes_folder / f"{path.stem}.json").unlink(missing_ok=True)
    ending = experiment.file_ending
    for path in experiment.layouts_folder.glob("*.b2nd"):
        part = "Ul" if path.stem in pool else "Tr"
        if not RawMaps.find(experiment.raw_folder, part, f"{path.stem}{ending}").files:
            path.unlink()
            for file in (locations_file(experiment, path.stem), layout_note(experiment, path.stem)):
                file.unlink(missing_ok=True)


def _for_each(function: Callable[[Item], Result], items: Sequence[Item], num_processes: int,
              description: str) -> Iterator[Result]:
    return progress(parallel_map(function, items, num_processes), description, total=len(items))
