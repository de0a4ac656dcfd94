"""MM-FID and MM-STD: fidelity and variety of sets of images, seen by several networks at several resolutions.

X. Xing et al., Less is More: Unsupervised Mask-guided Annotated CT Image Synthesis with Minimum Manual Segmentations
(UM2I), Section III.C. A cell is one network at one resolution; every cell gives each set a Fréchet distance to the real
images and a standard deviation of features, and the methods are compared over the cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nnunet_synth.evaluation.statistics import holm, paired_wilcoxon
from nnunet_synth.quality.extractor import Extractor, batch_size_for
from nnunet_synth.quality.frechet import Gaussian, frechet_distance
from nnunet_synth.quality.image_set import ImageSet
from nnunet_synth.quality.kernel_distance import kernel_distance
from nnunet_synth.quality.moments import Moments

RESOLUTIONS = (128, 256, 512, 1024)     # 2⁷ … 2¹⁰, UM2I
MAX_KEPT = 1000         # feature vectors of a set that are kept for KID and for the map


# ----------------------------------------------------------------------------------------------------------------------
# One set in one cell


@dataclass(frozen=True)
class Features:
    """What is kept of the features of one set.

    Attributes:
        halves: moments of one half of the cases and of the other.
        kept: [K, D] float32, vectors of K images chosen at random.
    """

    halves: tuple[Moments, Moments]
    kept: np.ndarray

    @property
    def moments(self) -> Moments:
        """Of all images."""
        whole = Moments.empty(len(self.halves[0].mean))
        for half in self.halves:
            whole.merge(half)
        return whole


def extract(images: ImageSet, extractor: Extractor, resolution: int, seed: int = 0) -> Features:
    """Run all images of a set through a network, batch by batch."""
    in_second = second_half(images.cases, seed)
    keep = np.zeros(len(images), bool)
    keep[np.random.default_rng([seed, 1]).permutation(len(images))[:MAX_KEPT]] = True
    halves: tuple[Moments, Moments] | None = None
    kept = []
    for part in images.batches(batch_size_for(resolution)):
        features = extractor(images.images[part], resolution)
        if halves is None:
            halves = Moments.empty(features.shape[1]), Moments.empty(features.shape[1])
        for half, members in zip(halves, (~in_second[part], in_second[part]), strict=True):
            half.add(features[members])
        kept.append(features[keep[part]])
    return Features(halves, np.concatenate(kept))


def second_half(cases: Sequence[str], seed: int) -> np.ndarray:
    """[N] bool: the images of half of the cases, drawn at random; of one single case, half of its images.

    Slices of one patient resemble each other: in both halves, they would make them look more alike than two sets of
    patients are.
    """
    rng = np.random.default_rng([seed, 2])
    names = sorted(set(cases))
    if len(names) == 1:
        chosen = np.zeros(len(cases), bool)
        chosen[rng.permutation(len(cases))[:len(cases) // 2]] = True
        return chosen
    chosen_names = {names[place] for place in rng.permutation(len(names))[:len(names) // 2]}
    return np.fromiter((case in chosen_names for case in cases), bool, len(cases))


# ----------------------------------------------------------------------------------------------------------------------
# One cell


@dataclass(frozen=True)
class Cell:
    """The scores of all sets in one cell.

    Attributes:
        extractor, resolution: which cell it is.
        num_features: D.
        fid, kid: method → distance to the real images.
        deviation: set (the real one too) → mean standard deviation of its features.
        floor: FID of one half of the real cases against the other: what the number of images alone makes of it. NaN
            where a half has fewer than two images.
    """

    extractor: str
    resolution: int
    num_features: int
    fid: dict[str, float] = field(default_factory=dict)
    kid: dict[str, float] = field(default_factory=dict)
    deviation: dict[str, float] = field(default_factory=dict)
    floor: float = math.nan


def score_cell(real: ImageSet, methods: Iterable[ImageSet], extractor: Extractor, resolution: int,
               seed: int = 0) -> tuple[Cell, dict[str, np.ndarray]]:
    """The cell, and set → kept features [K, D]."""
    features = extract(real, extractor, resolution, seed)
    reference = Gaussian.of(features.moments)
    floor = math.nan
    if min(half.count for half in features.halves) > 1:
        floor = frechet_distance(*map(Gaussian.of, features.halves))
    cell = Cell(extractor.name, resolution, len(reference.mean), floor=floor)
    cell.deviation[real.name] = features.moments.mean_deviation
    kept = {real.name: features.kept}
    for method in methods:
        found = extract(method, extractor, resolution, seed)
        cell.fid[method.name] = frechet_distance(reference, Gaussian.of(found.moments))
        cell.kid[method.name] = kernel_distance(features.kept, found.kept)
        cell.deviation[method.name] = found.moments.mean_deviation
        kept[method.name] = found.kept
    return cell, kept


# ----------------------------------------------------------------------------------------------------------------------
# All cells


def normalise(table: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Set → its scores in the cells, each divided by the largest of all sets in that cell; 0 where all are 0.

    So each score lies in [0, 1] and every cell counts alike, whatever the size of its network's features. The paper
    says only that scores were normalised to [0, 1]; the released code divides each network's row of one method by its
    norm over the resolutions, which gives a method whose every distance is ten times as large the same score.
    """
    scores = np.array(list(table.values()), float)
    largest = scores.max(0)
    normalised = np.divide(scores, largest, out=np.zeros_like(scores), where=largest > 0)
    return dict(zip(table, normalised.tolist(), strict=True))


@dataclass(frozen=True)
class PairTest:
    """Two sets compared over the cells: mean difference first − second, Wilcoxon's p, and Holm's over all pairs.

    NaN where there are fewer than two cells.
    """

    first: str
    second: str
    num_cells: int
    difference: float
    p: float
    p_holm: float = math.nan


def compare(normalised: Mapping[str, Sequence[float]]) -> list[PairTest]:
    """Wilcoxon's signed-rank test of every pair of sets, paired by cell, with Holm's correction.

    The cells are looks of several networks at the same images, not independent samples: p says how consistently the
    networks prefer a method, not how it would do on other images.
    """
    tests = []
    for first, second in itertools.combinations(normalised, 2):
        scores, others = (np.array([normalised[name]]) for name in (first, second))
        if scores.shape[1] < 2:
            tests.append(PairTest(first, second, scores.shape[1], float((scores - others).mean()), math.nan))
        else:
            found = paired_wilcoxon(scores, others)
            tests.append(PairTest(first, second, found.num_pairs, found.difference, found.p))
    corrected = holm([test.p for test in tests])
    return [PairTest(**{**vars(test), "p_holm": p}) for test, p in zip(tests, corrected, strict=True)]
