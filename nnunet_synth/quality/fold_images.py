"""Real and synthetic images of one fold: slices as its synthesizers learnt them, and what these draw for such ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.intensities import intensity_outside, to_raw_intensities
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.dataset_conversion.synthetic import PICTURE_READER
from nnunet_synth.errors import UserError
from nnunet_synth.progress import progress
from nnunet_synth.quality.image_set import ImageSet, ImageStore
from nnunet_synth.synthesizers.base import Slices, Synthesizer

BATCH_SIZE = 8
MAX_MISSES = 20                 # images without a lesion in a row, for each slice of the fold, until we give up
REAL, CONDITIONS = 31, 32       # part of the seeds: the real images are not those whose labels are drawn

# A synthesizer and batches of conditions → pairs of one slice [1, …] and the image [C, H, W] drawn for it, without end.
Draw = Callable[[Synthesizer, Iterator[Slices]], Iterator[tuple[Slices, np.ndarray]]]


@dataclass(frozen=True)
class FoldImages:
    """Where the images of a comparison come from.

    Attributes:
        slices: the fold's labelled training slices.
        patch_size: of all images.
        bounds: [lo, hi] of each channel in network intensities, see `intensity_range`.
        lesions: the labels that are lesions.
        number: of images in each set.
        lesions_only: only images with a lesion.
        size: images are resized to size × size; None = they stay.
        seed: of all random choices.
    """

    experiment: Experiment
    slices: FoldSlices
    patch_size: tuple[int, int]
    bounds: list[list[float]]
    lesions: Sequence[int]
    number: int
    lesions_only: bool = False
    size: int | None = None
    seed: int = 0

    def real(self, name: str, scratch: Path) -> ImageSet:
        """Random crops of training slices, half of them with a lesion, moved and turned as in pretraining."""
        parts = ((part, image) for batch in self._crops(REAL) for part, image in _single(batch))
        return self._store(name, scratch, parts, f"training slices of fold {self.experiment.fold} of "
                                                 f"{self.experiment.dataset_name}")

    def drawn(self, name: str, synthesizer: Synthesizer, draw: Draw, scratch: Path) -> ImageSet:
        """What a synthesizer draws for the labels of other crops of this kind."""
        synthesizer.fit_pool(self.slices)
        with torch.random.fork_rng([]):
            return self._store(name, scratch, draw(synthesizer, self._crops(CONDITIONS)),
                               f"drawn by {synthesizer.name} for labels of fold {self.experiment.fold}")

    def _crops(self, stream: int) -> Iterator[Slices]:
        rng = np.random.default_rng([self.seed, stream])
        while True:
            yield self.slices.sample(BATCH_SIZE, self.patch_size, rng)

    def _store(self, name: str, scratch: Path, parts: Iterator[tuple[Slices, np.ndarray]], origin: str) -> ImageSet:
        self._check_lesions()
        store = ImageStore(name, scratch, self.size)
        wanted = self._wanted(parts, name)
        for _ in progress(range(self.number), f"images of {name}"):
            part, label, image = next(wanted)
            store.add(self._in_raw_unit(part, image), label, part.origin[0][0])
        return store.finish(origin, has_labels=True)

    def _check_lesions(self) -> None:
        """Raises UserError where only images with a lesion are wanted and no slice holds one: nothing would be found,
        however long one looked."""
        parts = self.slices.iterate(only_targets=set(self.lesions) <= set(self.slices.target_labels))
        if self.lesions_only and not any(np.isin(part.label.numpy(), self.lesions).any() for part in parts):
            raise UserError(f"--lesions-only: no labelled training slice of fold {self.experiment.fold} of "
                            f"{self.experiment.dataset_name} holds {self._lesion_names()}: choose other --labels")

    def _wanted(self, parts: Iterator[tuple[Slices, np.ndarray]],
                name: str) -> Iterator[tuple[Slices, np.ndarray, np.ndarray]]:
        at_most, misses = MAX_MISSES * len(self.slices.origins), 0
        for part, image in parts:
            label = part.label[0].numpy()
            label = np.where(np.isin(label, self.lesions), label, 0)
            if label.any() or not self.lesions_only:
                misses = 0
                yield part, label, image
            else:
                misses += 1
            if misses == at_most:       # a synthesizer may be unable to draw a class
                raise UserError(f"--lesions-only: {misses} images of {name} for fold {self.experiment.fold} in a row "
                                f"hold no {self._lesion_names()}: choose other --labels")

    def _lesion_names(self) -> str:
        names = {value: label for label, value in self.experiment.foreground_labels.items()}
        return "label " + " or ".join(str(names.get(value, value)) for value in self.lesions)

    def _in_raw_unit(self, part: Slices, image: np.ndarray) -> np.ndarray:
        """As `nnunet_synth sample` writes it: air where nothing was scanned, in the unit of the raw images."""
        outside = intensity_outside(self.experiment, self.bounds)[:, None, None]
        image = np.where(part.valid[0].numpy(), image, outside)
        is_picture = self.experiment.plans["image_reader_writer"] == PICTURE_READER
        return to_raw_intensities(self.experiment, image, self.bounds, eight_bit=is_picture)[0]


def _single(batch: Slices) -> Iterator[tuple[Slices, np.ndarray]]:
    """Each slice of a batch, [1, …], and its image."""
    for index in range(len(batch.label)):
        one = Slices(batch.image[index:index + 1], batch.label[index:index + 1], batch.layout[index:index + 1],
                     batch.valid[index:index + 1], batch.origin[index:index + 1])
        yield one, one.image[0].numpy()
