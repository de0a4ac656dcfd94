"""What every model draws for the same labels, and what single images tell: is the lesion found, is the image sharp?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.overlap import dice
from nnunet_synth.evaluation.sharpness import high_frequency_share, variance_of_laplacian
from nnunet_synth.progress import progress
from nnunet_synth.quality.image_set import ImageSet, ImageStore
from nnunet_synth.selection.acceptance import AcceptanceClassifier
from nnunet_synth.selection.segmenter import Segmenter
from nnunet_synth.synthesizers.base import Slices, SliceSource, Synthesizer
from nnunet_synth.synthesizers.gallery import overlay, to_gray
from nnunet_synth.synthesizers.semantic import SemanticClasses

BATCH_SIZE = 8
NUM_ROWS = 6        # of a gallery

# Slices → the images drawn for them [N, C, H, W] in network intensities, and [N] bool: which could be drawn.
Draw = Callable[[Slices], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Judge:
    """
    Attributes:
        conditions: labels to draw for: the same ones, in the same order, each time that it is called.
        number: of conditions.
        segmenter: None = nobody looks for the lesions.
        lesions: the labels that are looked for.
        to_unit: network intensities and the valid area → [-1, 1], see `acceptance.to_unit`.
    """

    conditions: Callable[[], Iterator[Slices]]
    number: int
    segmenter: Segmenter | None
    lesions: Sequence[int]
    semantic: SemanticClasses
    to_unit: Callable[[Tensor, Tensor], Tensor]

    def look_at(self, name: str, draw: Draw, scratch: Path) -> Judged:
        """Draw for every condition; the images are kept in the folder `scratch`, which must not exist.

        Raises:
            UserError: fewer than two images could be drawn.
        """
        store, found = ImageStore(name, scratch), Judged(name)
        for first, part in progress(self._numbered(), f"batches of {name}"):
            images, ok = draw(part)
            found.conditions += (first + ok.nonzero()[:, 0]).tolist()
            if ok.any():
                self._judge(found, store, images[ok].float(), take(part, ok))
        if len(found.conditions) < 2:
            raise UserError(f"{name} could draw {len(found.conditions)} of {self.number} images: it has no style for "
                            "the classes of these slices; leave it out with --synthesizer, or pretrain it again")
        found.images = store.finish(f"drawn by {name}", has_labels=False)
        return found

    def _numbered(self) -> Iterator[tuple[int, Slices]]:
        first = 0
        for part in self.conditions():
            yield first, part
            first += len(part.label)

    def _judge(self, found: Judged, store: ImageStore, images: Tensor, part: Slices) -> None:
        unit = self.to_unit(images, part.valid)
        for image, (case, _) in zip(unit.numpy(), part.origin, strict=True):
            store.add(image, None, case)
        found.laplacian += variance_of_laplacian((unit + 1) / 2, part.valid.to(unit.device)).tolist()
        found.high_frequencies += high_frequency_share((unit + 1) / 2).tolist()
        segmented = self._segment(images, part)
        found.dice += [self._dice(seen, label) for seen, label in zip(segmented, part.label.numpy(), strict=True)]
        found.rows += self._rows(part, unit, segmented)[:NUM_ROWS - len(found.rows)]

    def _segment(self, images: Tensor, part: Slices) -> list[np.ndarray | None]:
        if self.segmenter is None:
            return [None] * len(images)
        return list(self.segmenter.label(images.numpy(), part.layout.numpy()))

    def _dice(self, seen: np.ndarray | None, label: np.ndarray) -> float:
        """Mean over the lesions' labels that are there or were seen, background ignored; NaN without a segmenter."""
        if seen is None:
            return float("nan")
        scores = [dice(seen == value, label == value) for value in self.lesions]
        return float(np.nanmean(scores)) if not np.isnan(scores).all() else float("nan")

    def _rows(self, part: Slices, unit: Tensor, segmented: list[np.ndarray | None]) -> list[list[np.ndarray]]:
        """label | drawn | found, uint8 pictures."""
        classes = self.semantic.combine(part.label, part.layout).numpy()
        rows = []
        for image, asked, seen in zip(unit.numpy(), classes, segmented, strict=True):
            gray = to_gray(image)
            row = [overlay(np.zeros_like(gray), asked, opacity=1.0), gray]
            if seen is not None:
                label = torch.from_numpy(seen.astype(np.int64))
                row.append(overlay(gray, self.semantic.combine(label, torch.zeros_like(label)).numpy()))
            rows.append(row)
        return rows


@dataclass
class Judged:
    """What one model drew, image by image.

    Attributes:
        conditions: the number of the condition that each image was drawn for; what could not be drawn is missing.
        images: in [-1, 1].
        dice: of the segmenter on each image.
        laplacian: variance of the Laplacian of each image in [0, 1]; high_frequencies: the Fourier form.
        rows: of the gallery.
        probability_real: of the images that the classifier has not learnt from (`held_out`, their places).
    """

    name: str
    conditions: list[int] = field(default_factory=list)
    images: ImageSet | None = None
    dice: list[float] = field(default_factory=list)
    laplacian: list[float] = field(default_factory=list)
    high_frequencies: list[float] = field(default_factory=list)
    rows: list[list[np.ndarray]] = field(default_factory=list)
    held_out: list[int] = field(default_factory=list)
    probability_real: np.ndarray = field(default_factory=lambda: np.empty(0))

    def look_through(self, classifier: AcceptanceClassifier, held_out: Sequence[int], device: str) -> None:
        """Let the classifier judge the images in these places."""
        self.held_out = list(held_out)
        parts = [classifier.probability_real(torch.from_numpy(np.array(self.images.images[places])).to(device)).cpu()
                 for places in np.array_split(self.held_out, -(-len(self.held_out) // BATCH_SIZE))]
        self.probability_real = torch.cat(parts).double().numpy()


def lesion_conditions(slices: SliceSource, lesions: Sequence[int], patch_size: tuple[int, int], number: int,
                      seed: int) -> Iterator[Slices]:
    """`number` random crops of labelled training slices that show a lesion; the same ones for the same seed."""
    rng = np.random.default_rng([seed, 71])
    wanted = torch.tensor(lesions)
    done = 0
    while done < number:
        part = slices.sample(BATCH_SIZE, patch_size, rng)
        has_lesion = torch.isin(part.label, wanted).flatten(1).any(1)
        chosen = has_lesion & (has_lesion.cumsum(0) <= number - done)
        done += int(chosen.sum())
        if chosen.any():
            yield take(part, chosen)


def real(part: Slices) -> tuple[Tensor, Tensor]:
    """A `Draw`: the images that the labels belong to."""
    return part.image, torch.ones(len(part.label), dtype=torch.bool)


def drawing(synthesizer: Synthesizer, seed: int) -> Draw:
    """A `Draw` of a synthesizer with its style pool; the same seed draws the same images."""
    device = next(synthesizer.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def draw(part: Slices) -> tuple[Tensor, Tensor]:
        synthesizer.begin_step(generator)
        result = synthesizer.synthesize(part.to(device).request(generator))
        return result.image.cpu(), result.ok.cpu()

    return draw


def take(part: Slices, chosen: Tensor) -> Slices:
    """Those of a batch that [N] bool says."""
    origins = [origin for origin, is_chosen in zip(part.origin, chosen.tolist(), strict=True) if is_chosen]
    return replace(part, image=part.image[chosen], label=part.label[chosen], layout=part.layout[chosen],
                   valid=part.valid[chosen], origin=origins,
                   cluster=None if part.cluster is None else part.cluster[chosen])
