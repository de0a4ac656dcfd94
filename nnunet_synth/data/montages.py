"""Montages: slices from different heights of one case, tiled into one image.

UM2I's representation of a volume (Xing et al., *Less is More*, IV.A, Fig. 4): slices with less than 10 % lung are
dropped (the paper speaks of those at the top and the bottom; here they are wherever they lie), the others divided into
four parts along the axis, and a random slice of each part is placed in a 2 × 2 image.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from nnunet_synth.data.layouts import CLUSTER_FACTOR
from nnunet_synth.data.slice_arrays import SliceArrays, random_crop, random_position
from nnunet_synth.data.slices import CaseSlices, FoldSlices, UnlabelledSlices, evenly, to_slices
from nnunet_synth.errors import UserError
from nnunet_synth.progress import progress
from nnunet_synth.synthesizers.base import Slices

MIN_SHARE = 0.1         # of a slice's pixels that must be anatomy


def parse_montage(text: str | None) -> list[int]:
    """"2x2" → [rows, columns]; None → [], which means single slices. Raises UserError for any other text."""
    if text is None:
        return []
    found = re.fullmatch(r"([1-9])x([1-9])", text)
    if found is None or text == "1x1":
        raise UserError(f"--montage {text}: give rows and columns of slices, e.g. 2x2")
    return [int(number) for number in found.groups()]


@dataclass(frozen=True)
class CaseParts:
    """A case, divided along its axis.

    Attributes:
        cases: that reads its slices.
        parts: the indices of the slices of each part, in order; none is empty.
        targets: (part, index) of the slices that hold a target label.
    """

    cases: CaseSlices
    case_id: str
    parts: list[np.ndarray]
    targets: list[tuple[int, int]]


class MontageSlices:
    """A `SliceSource` whose slices are montages of another one's.

    Labels, layouts, clusters and valid areas lie where their slices do. All tiles of a montage are cropped, flipped,
    turned and scaled alike, each about its own centre.

    Args:
        source: of single slices.

    Raises:
        UserError: a case has no layout, or every case has too few slices.
    """

    def __init__(self, source: FoldSlices | UnlabelledSlices, rows: int, columns: int) -> None:
        self.source, self.rows, self.columns = source, rows, columns
        is_labelled = isinstance(source, FoldSlices)
        self.case_ids = list(source.case_ids) if is_labelled else []
        self.target_labels = list(source.target_labels) if is_labelled else []
        targets: dict[str, set[int]] = {}
        for case_id, index in source.target_origins if is_labelled else ():
            targets.setdefault(case_id, set()).add(index)
        readable = [(source.cases, case_id) for case_id in source.case_ids] if is_labelled else \
            list(dict.fromkeys((cases, case_id) for cases, (case_id, _) in source.origins))
        found = [self._divide(cases, case_id, targets.get(case_id, set()))
                 for cases, case_id in progress(readable, "dividing cases into parts")]
        self.cases = [case for case in found if case is not None]
        self.target_cases = [case for case in self.cases if case.targets]
        self._report(len(found))

    def _divide(self, cases: CaseSlices, case_id: str, targets: set[int]) -> CaseParts | None:
        """None where the case has fewer slices than parts."""
        anatomy = np.asarray(cases.open(case_id)[2][:]) % CLUSTER_FACTOR > 0
        if not anatomy.any():
            raise UserError(f"case {case_id} has no layout, so nobody knows which of its slices show the organ: make "
                            "layouts with nnunet_synth layouts, or train without --montage")
        kept = np.flatnonzero(anatomy.mean((1, 2)) >= MIN_SHARE)
        if len(kept) < self.num_tiles:
            return None
        parts = np.array_split(kept, self.num_tiles)
        return CaseParts(cases, case_id, parts, [(number, int(index)) for number, part in enumerate(parts)
                                                 for index in part if index in targets])

    def _report(self, num_cases: int) -> None:
        short = num_cases - len(self.cases)
        if not self.cases:
            raise UserError(f"none of the {num_cases} cases has {self.num_tiles} slices with at least {MIN_SHARE:.0%} "
                            "anatomy: train without --montage")
        if self.target_labels and not self.target_cases:
            raise UserError("no slice of any montage would hold a target label: train without --montage")
        if short:
            print(f"warning: {short} of {num_cases} cases have fewer than {self.num_tiles} slices with at least "
                  f"{MIN_SHARE:.0%} anatomy and are left out", file=sys.stderr)

    @property
    def num_tiles(self) -> int:
        return self.rows * self.columns

    # -- SliceSource -------------------------------------------------------------------------------------------------

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        """Random montages of `patch_size`, of whose cases half are chosen for a slice with a target label, which is
        then in it; the other slices are drawn uniformly from their parts."""
        size = self.tile_size(patch_size)
        montages, origins = [], []
        for _ in range(num_slices):
            has_target = bool(self.target_cases) and rng.random() < 0.5
            pool = self.target_cases if has_target else self.cases
            case = pool[rng.integers(len(pool))]
            indices = [int(rng.choice(part)) for part in case.parts]
            focus = None
            if has_target:
                part, index = case.targets[rng.integers(len(case.targets))]
                indices[part] = index
                label = case.cases.read((case.case_id, index)).label
                focus = random_position(np.isin(label, self.target_labels), rng)
            montages.append(self._cropped(case, indices, size, focus, rng))
            origins.append((case.case_id, indices[0]))
        return to_slices(montages, origins)

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        """Whole clean montages in a fixed order, such that every slice occurs; `only_targets` = those with a target."""
        pool = [(case, indices) for case in self.cases for indices in _in_turn(case)
                if not only_targets or set(enumerate(indices)) & set(case.targets)]
        for number in evenly(len(pool), max_slices):
            case, indices = pool[number]
            tiles = [case.cases.read((case.case_id, index)) for index in indices]
            yield to_slices([tile(tiles, self.rows, self.columns)], [(case.case_id, indices[0])])

    def unlabelled(self) -> MontageSlices | None:
        return self._unlabelled

    @cached_property
    def _unlabelled(self) -> MontageSlices | None:
        source = self.source.unlabelled()
        return None if source is None else MontageSlices(source, self.rows, self.columns)

    # -- tiles -------------------------------------------------------------------------------------------------------

    def tile_size(self, patch_size: Sequence[int]) -> tuple[int, int]:
        """Of a montage of `patch_size`. Raises UserError where it cannot be divided."""
        height, width = patch_size
        if height % self.rows or width % self.columns:
            raise UserError(f"a montage of {height} × {width} pixels cannot be divided into {self.rows} × "
                            f"{self.columns} slices: choose another --patch-size")
        return height // self.rows, width // self.columns

    def _cropped(self, case: CaseParts, indices: Sequence[int], size: tuple[int, int],
                 focus: tuple[int, int] | None, rng: np.random.Generator) -> SliceArrays:
        seed = int(rng.integers(2 ** 63))       # the same for all tiles
        return tile([random_crop(case.cases.read((case.case_id, index)), size, focus, np.random.default_rng(seed))
                     for index in indices], self.rows, self.columns)


def tile(parts: Sequence[SliceArrays], rows: int, columns: int) -> SliceArrays:
    """Slices of one size → one montage, row by row."""
    def join(name: str) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        lines = [np.concatenate(arrays[row * columns:(row + 1) * columns], axis=-1) for row in range(rows)]
        return np.concatenate(lines, axis=-2)

    return SliceArrays(join("image"), join("label"), join("layout"), join("cluster"), join("valid"))


def cut_apart(montages: Slices, rows: int, columns: int) -> Slices:
    """N montages → N · rows · columns slices in the order in which they were tiled; `origin` is that of the montage."""
    def cut(tensor: torch.Tensor) -> torch.Tensor:
        height, width = tensor.shape[-2] // rows, tensor.shape[-1] // columns
        tiles = tensor.unflatten(-1, (columns, width)).unflatten(-3, (rows, height))        # […, rows, h, columns, w]
        return tiles.movedim((-4, -2), (1, 2)).flatten(0, 2).contiguous()

    return replace(montages, image=cut(montages.image), label=cut(montages.label), layout=cut(montages.layout),
                   valid=cut(montages.valid), cluster=None if montages.cluster is None else cut(montages.cluster),
                   origin=[origin for origin in montages.origin for _ in range(rows * columns)])


def _in_turn(case: CaseParts) -> list[list[int]]:
    """Indices of montages, as many as the longest part has slices; shorter parts repeat some of theirs."""
    longest = max(len(part) for part in case.parts)
    return [[int(part[number * len(part) // longest]) for part in case.parts] for number in range(longest)]
