"""Training slices of one fold, for the synthesizers: nnU-Net's preprocessed cases, cut and augmented.

Only the ids of the fold's training cases are ever opened, and the labels of labelled ones alone. Slices lie along the
first axis of the preprocessed array, as in nnU-Net's 2d configurations.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.layouts import CLUSTER_FACTOR, open_layout
from nnunet_synth.data.preprocessed_cases import dataset_class
from nnunet_synth.data.slice_arrays import SliceArrays, random_crop, random_position
from nnunet_synth.errors import UserError
from nnunet_synth.progress import progress
from nnunet_synth.synthesizers.base import Slices

CACHE_BYTES = 1024 ** 3

Origin = tuple[str, int]        # case id, index along the slice axis


class CaseSlices:
    """Reads single slices of preprocessed cases, lazily, and keeps the last ones decompressed.

    Args:
        folder: of nnU-Net's preprocessed cases.
        layouts_folder: of their layout maps; a case without one has layout 0.
        ignore_label: value of the annotation that means "ignore", if there is one.
        hide_labels: report label 0 everywhere, for cases whose annotation must not be used.
        cache_bytes: slices are kept up to this size.
    """

    def __init__(self, folder: Path, case_ids: Sequence[str], layouts_folder: Path, ignore_label: int | None = None,
                 hide_labels: bool = False, cache_bytes: int = CACHE_BYTES) -> None:
        self.case_ids = list(case_ids)
        self._dataset = dataset_class(folder)(str(folder), self.case_ids)
        self._layouts_folder = layouts_folder
        self._ignore_label, self._hide_labels = ignore_label, hide_labels
        self._opened: dict[str, tuple[Any, Any, Any]] = {}
        self._cache: OrderedDict[Origin, SliceArrays] = OrderedDict()
        self._cache_room = cache_bytes
        self._lock = threading.Lock()           # the training loop samples in a thread of its own

    def read(self, origin: Origin) -> SliceArrays:
        """One whole slice."""
        with self._lock:
            if origin in self._cache:
                self._cache.move_to_end(origin)
                return self._cache[origin]
            image, segmentation, layout = self.open(origin[0])
            found = self._clean(image[:, origin[1]], segmentation[0, origin[1]], layout[origin[1]])
            self._cache[origin] = found
            self._cache_room -= found.nbytes
            while self._cache_room < 0 and len(self._cache) > 1:
                self._cache_room += self._cache.popitem(last=False)[1].nbytes
            return found

    def open(self, case_id: str) -> tuple[Any, Any, Any]:
        """Image [C, z, y, x], annotation [1, z, y, x] and layout map [z, y, x] as they are stored, lazily."""
        if case_id not in self._opened:
            image, segmentation, _, _ = self._dataset.load_case(case_id)
            self._opened[case_id] = image, segmentation, open_layout(self._layouts_folder, case_id, image.shape[1:])
        return self._opened[case_id]

    def properties(self, case_id: str) -> dict[str, Any]:
        """What nnU-Net noted of the case when it was preprocessed."""
        return self._dataset.load_case(case_id)[3]

    def _clean(self, image: np.ndarray, segmentation: np.ndarray, layout: np.ndarray) -> SliceArrays:
        # In single pictures nnU-Net marks every pixel of raw value 0 as outside, also those amid the lung: its own
        # filling of holes works in 3D, where a picture of one slice has no inside.
        valid = binary_fill_holes(segmentation >= 0)
        if self._ignore_label is not None and not self._hide_labels:
            valid &= segmentation != self._ignore_label
        label = np.where(valid & (segmentation > 0) & (not self._hide_labels), segmentation, 0)
        return SliceArrays(image=np.ascontiguousarray(image, dtype=np.float32), label=label.astype(np.int16),
                           layout=(layout % CLUSTER_FACTOR).astype(np.int16),
                           cluster=(layout // CLUSTER_FACTOR).astype(np.int16), valid=valid)


class FoldSlices:
    """The labelled training slices of a fold: a `SliceSource`.

    Args:
        case_ids: by default the fold's labelled training cases.
        target_labels: dataset labels that make a slice a member of N+ (SA-CPS Eq. 1); by default all foreground.
        cache_bytes: decompressed slices are kept up to this size.

    Raises:
        UserError: a case was not preprocessed or is a validation case, or no slice holds a target label.
    """

    def __init__(self, experiment: Experiment, case_ids: Sequence[str] | None = None,
                 target_labels: Sequence[int] | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self._experiment = experiment
        self.case_ids = list(experiment.train_ids if case_ids is None else case_ids)
        self.target_labels = sorted(experiment.foreground_labels.values() if target_labels is None else target_labels)
        _check_cases(experiment, self.case_ids)
        self.cases = CaseSlices(experiment.data_folder, self.case_ids, experiment.layouts_folder,
                                experiment.label_manager.ignore_label, cache_bytes=cache_bytes)
        self.origins: list[Origin] = []             # all slices that show something
        self.target_origins: list[Origin] = []      # N+
        for case_id in progress(self.case_ids, "indexing training slices"):
            self._index(case_id)
        if not self.target_origins:
            raise UserError(f"no labelled training slice of fold {experiment.fold} holds a target label "
                            f"({', '.join(map(str, self.target_labels))}): a synthesizer cannot learn what it never "
                            "sees; choose another fold, or label more cases")

    # -- SliceSource -------------------------------------------------------------------------------------------------

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        """Random crops: half of them hold a target pixel, the others come uniformly from all slices.

        Flips, and rotation (±15°) and scaling (0.8–1.25), each with probability 0.2. All randomness is `rng`'s.
        """
        crops, origins = [], []
        for _ in range(num_slices):
            has_target = rng.random() < 0.5
            pool = self.target_origins if has_target else self.origins
            origin = pool[rng.integers(len(pool))]
            whole = self.cases.read(origin)
            focus = random_position(np.isin(whole.label, self.target_labels), rng) if has_target else None
            crops.append(random_crop(whole, tuple(patch_size), focus, rng))
            origins.append(origin)
        return to_slices(crops, origins)

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        """Whole clean slices, one at a time, in a fixed order; a cap takes them evenly from the whole list."""
        pool = self.target_origins if only_targets else self.origins
        for number in evenly(len(pool), max_slices):
            yield to_slices([self.cases.read(pool[number])], [pool[number]])

    def unlabelled(self) -> UnlabelledSlices | None:
        return self._unlabelled

    @cached_property
    def _unlabelled(self) -> UnlabelledSlices | None:
        slices = UnlabelledSlices(self._experiment)
        return slices if slices.origins else None

    def _index(self, case_id: str) -> None:
        """List the slices of a case. The whole annotation is read: `class_locations` is a sample that misses slices."""
        _, segmentation, layout = self.cases.open(case_id)
        has_target = np.isin(segmentation[0], self.target_labels).any((1, 2))
        shows = _shows_something(segmentation, layout)
        self.origins += [(case_id, int(z)) for z in np.flatnonzero(shows | has_target)]
        self.target_origins += [(case_id, int(z)) for z in np.flatnonzero(has_target)]


class UnlabelledSlices:
    """The unlabelled training slices of a fold, a `SliceSource`: the preprocessed pool, and cases whose labels the fold
    hides. Their labels are never read: label 0 everywhere.

    Attributes:
        origins: where each slice that shows something can be read.
    """

    def __init__(self, experiment: Experiment, cache_bytes: int = CACHE_BYTES) -> None:
        sources = [CaseSlices(folder, ids, experiment.layouts_folder, hide_labels=True, cache_bytes=cache_bytes // 2)
                   for folder, ids in ((experiment.pool_folder, experiment.pool_ids),
                                       (experiment.data_folder, experiment.unlabelled_ids)) if ids and folder.is_dir()]
        self.origins: list[tuple[CaseSlices, Origin]] = [
            (cases, (case_id, int(z))) for cases in sources
            for case_id in progress(cases.case_ids, "indexing unlabelled slices")
            for z in np.flatnonzero(_shows_something(*cases.open(case_id)[1:]))]

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        """Random crops of slices drawn uniformly; flips, rotation and scaling as `FoldSlices`."""
        chosen = [self.origins[number] for number in rng.integers(len(self.origins), size=num_slices)]
        crops = [random_crop(cases.read(origin), tuple(patch_size), None, rng) for cases, origin in chosen]
        return to_slices(crops, [origin for _, origin in chosen])

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        """Whole clean slices, one at a time, in a fixed order; none is a target."""
        for number in [] if only_targets else evenly(len(self.origins), max_slices):
            cases, origin = self.origins[number]
            yield to_slices([cases.read(origin)], [origin])

    def unlabelled(self) -> UnlabelledSlices:
        return self


def to_slices(arrays: Sequence[SliceArrays], origins: Sequence[Origin]) -> Slices:
    """A batch of tensors from arrays of one size."""
    def stack(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(part, name) for part in arrays])).to(dtype)

    return Slices(image=stack("image", torch.float32), label=stack("label", torch.int64),
                  layout=stack("layout", torch.int64), valid=stack("valid", torch.bool), origin=list(origins),
                  cluster=stack("cluster", torch.int64))


def _check_cases(experiment: Experiment, case_ids: Sequence[str]) -> None:
    leaked = sorted(set(case_ids) & {*experiment.val_ids, *experiment.unlabelled_ids})
    if leaked:
        raise UserError(f"case(s) {', '.join(leaked[:5])} are not labelled training cases of fold {experiment.fold}: a "
                        "synthesizer must not see them")
    missing = [case_id for case_id in case_ids if case_id not in set(experiment.labelled_ids)]
    if missing:
        raise UserError(f"training case(s) {', '.join(missing[:5])} of fold {experiment.fold} are not in "
                        f"{experiment.data_folder}: run nnUNetv2_plan_and_preprocess again")


def _shows_something(segmentation: Any, layout: Any) -> np.ndarray:
    """[z] bool. Whole CT volumes hold many slices far from the organ: where anatomy is known, a slice shows some."""
    anatomy = layout[:] % CLUSTER_FACTOR > 0
    shown = anatomy if anatomy.any() else segmentation[0] >= 0
    return shown.any((1, 2))


def evenly(length: int, at_most: int | None) -> list[int]:
    """At most `at_most` of 0 … length − 1, evenly spread, first and last included."""
    if at_most is None or at_most >= length:
        return list(range(length))
    return np.linspace(0, length - 1, at_most).round().astype(int).tolist()
