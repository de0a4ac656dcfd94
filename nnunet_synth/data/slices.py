"""Labelled training slices of one fold, for the synthesizers: nnU-Net's preprocessed cases, cut and augmented.

Only the ids of the fold's labelled training cases are ever opened. Slices lie along the first axis of the preprocessed
array, as in nnU-Net's 2d configurations.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from scipy.ndimage import affine_transform, binary_fill_holes

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.layouts import CLUSTER_FACTOR, open_layout
from nnunet_synth.errors import UserError
from nnunet_synth.progress import progress
from nnunet_synth.synthesizers.base import Slices

P_ROTATION, MAX_ROTATION = 0.2, np.deg2rad(15)
P_SCALING, SCALING = 0.2, (0.8, 1.25)
CACHE_BYTES = 1024 ** 3

Origin = tuple[str, int]        # case id, index along the slice axis


@dataclass(frozen=True)
class SliceArrays:
    """One clean slice or crop of it.

    Attributes:
        image: [C, H, W] float32, network intensities; 0 outside the array, as nnU-Net pads.
        label: [H, W] int16, 0 where the annotation is −1 or ignored.
        layout: [H, W] int16 anatomy, 0 = none.
        valid: [H, W] bool, False where the annotation is −1 (but for holes) or ignored, and outside the array.
    """

    image: np.ndarray
    label: np.ndarray
    layout: np.ndarray
    valid: np.ndarray

    def map(self, function: Callable[[np.ndarray, int], np.ndarray]) -> SliceArrays:
        """`function(array [n, H, W], order of interpolation)` for each of the four."""
        maps = (function(array[None], 0)[0] for array in (self.label, self.layout, self.valid))
        return SliceArrays(function(self.image, 1), *maps)

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + self.label.nbytes + self.layout.nbytes + self.valid.nbytes


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
        self._dataset = infer_dataset_class(str(folder))(str(folder), self.case_ids)
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

    def _clean(self, image: np.ndarray, segmentation: np.ndarray, layout: np.ndarray) -> SliceArrays:
        # In single pictures nnU-Net marks every pixel of raw value 0 as outside, also those amid the lung: its own
        # filling of holes works in 3D, where a picture of one slice has no inside.
        valid = binary_fill_holes(segmentation >= 0)
        if self._ignore_label is not None and not self._hide_labels:
            valid &= segmentation != self._ignore_label
        label = np.where(valid & (segmentation > 0) & (not self._hide_labels), segmentation, 0)
        return SliceArrays(image=np.ascontiguousarray(image, dtype=np.float32), label=label.astype(np.int16),
                           layout=(layout % CLUSTER_FACTOR).astype(np.int16), valid=valid)


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
            focus = _random_position(np.isin(whole.label, self.target_labels), rng) if has_target else None
            crops.append(random_crop(whole, tuple(patch_size), focus, rng))
            origins.append(origin)
        return to_slices(crops, origins)

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        """Whole clean slices, one at a time, in a fixed order; a cap takes them evenly from the whole list."""
        pool = self.target_origins if only_targets else self.origins
        for number in _evenly(len(pool), max_slices):
            yield to_slices([self.cases.read(pool[number])], [pool[number]])

    def _index(self, case_id: str) -> None:
        """List the slices of a case. The whole annotation is read: `class_locations` is a sample that misses slices."""
        _, segmentation, layout = self.cases.open(case_id)
        segmentation, anatomy = segmentation[0], layout[:] % CLUSTER_FACTOR
        axes = (1, 2)
        has_target = np.isin(segmentation, self.target_labels).any(axes)
        # Whole CT volumes hold many slices far from the organ: where anatomy is known, a slice shows some of it.
        shows = (anatomy > 0).any(axes) if anatomy.any() else (segmentation >= 0).any(axes)
        self.origins += [(case_id, int(z)) for z in np.flatnonzero(shows | has_target)]
        self.target_origins += [(case_id, int(z)) for z in np.flatnonzero(has_target)]


def to_slices(arrays: Sequence[SliceArrays], origins: Sequence[Origin]) -> Slices:
    """A batch of tensors from arrays of one size."""
    def stack(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(part, name) for part in arrays])).to(dtype)

    return Slices(image=stack("image", torch.float32), label=stack("label", torch.int64),
                  layout=stack("layout", torch.int64), valid=stack("valid", torch.bool), origin=list(origins))


def _check_cases(experiment: Experiment, case_ids: Sequence[str]) -> None:
    leaked = sorted(set(case_ids) & {*experiment.val_ids, *experiment.unlabelled_ids})
    if leaked:
        raise UserError(f"case(s) {', '.join(leaked[:5])} are not labelled training cases of fold {experiment.fold}: a "
                        "synthesizer must not see them")
    missing = [case_id for case_id in case_ids if case_id not in set(experiment.labelled_ids)]
    if missing:
        raise UserError(f"training case(s) {', '.join(missing[:5])} of fold {experiment.fold} are not in "
                        f"{experiment.data_folder}: run nnUNetv2_plan_and_preprocess again")


def _evenly(length: int, at_most: int | None) -> list[int]:
    """At most `at_most` of 0 … length − 1, evenly spread, first and last included."""
    if at_most is None or at_most >= length:
        return list(range(length))
    return np.linspace(0, length - 1, at_most).round().astype(int).tolist()


# ----------------------------------------------------------------------------------------------------------------------
# Random crops


def random_crop(whole: SliceArrays, patch_size: tuple[int, int], focus: tuple[int, int] | None,
                 rng: np.random.Generator) -> SliceArrays:
    """A crop of `patch_size` that holds the pixel `focus`, flipped, rotated and scaled at random."""
    corner = [_random_start(length, size, None if focus is None else focus[axis], rng)
              for axis, (length, size) in enumerate(zip(whole.label.shape, patch_size, strict=True))]
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION) if rng.random() < P_ROTATION else 0.0
    scale = np.exp(rng.uniform(*np.log(SCALING))) if rng.random() < P_SCALING else 1.0
    flipped = [axis - 2 for axis in (0, 1) if rng.random() < 0.5]
    if angle or scale != 1:
        cropped = whole.map(lambda array, order: _turn(array, corner, patch_size, angle, scale, order))
    else:
        cropped = whole.map(lambda array, order: _cut(array, corner, patch_size))
    return cropped.map(lambda array, order: np.flip(array, flipped))


def _random_position(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    chosen = rng.choice(np.flatnonzero(mask))
    return divmod(int(chosen), mask.shape[1])


def _random_start(length: int, size: int, focus: int | None, rng: np.random.Generator) -> int:
    """Where a crop of `size` begins on an axis of `length`; a smaller axis is centred (negative start)."""
    if length <= size:
        return -((size - length) // 2)
    lowest, highest = 0, length - size
    if focus is not None:
        lowest, highest = max(lowest, focus - size + 1), min(highest, focus)
    return int(rng.integers(lowest, highest + 1))


def _cut(array: np.ndarray, corner: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """[n, H, W] → [n, *size] beginning at `corner`, zeros outside."""
    cropped = np.zeros((len(array), *size), array.dtype)
    source = [slice(max(start, 0), start + length) for start, length in zip(corner, size, strict=True)]
    found = array[:, source[0], source[1]]
    top, left = (max(-start, 0) for start in corner)
    cropped[:, top:top + found.shape[1], left:left + found.shape[2]] = found
    return cropped


def _turn(array: np.ndarray, corner: Sequence[int], size: tuple[int, int], angle: float, scale: float,
          order: int) -> np.ndarray:
    """`_cut` after turning by `angle` (radians) and magnifying by `scale` about the crop's centre."""
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.asarray(size) - 1) / 2
    offset = np.asarray(corner) + centre - matrix @ centre
    numbers = array.astype(np.uint8) if array.dtype == bool else array
    return np.stack([affine_transform(channel, matrix, offset, output_shape=size, order=order, cval=0)
                     for channel in numbers]).astype(array.dtype)
