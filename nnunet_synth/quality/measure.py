"""Everything that is measured when synthetic images are compared with real ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.image_quality import lesion_histogram_kl
from nnunet_synth.progress import progress
from nnunet_synth.quality.average_image import average_image, lossless_jpeg_size
from nnunet_synth.quality.classifier import ClassifierOptions, Example, TrainedClassifier, train_classifier
from nnunet_synth.quality.embedding_map import embed
from nnunet_synth.quality.extractor import Extractor
from nnunet_synth.quality.histograms import (
    histogram_of,
    intensity_histogram,
    lesion_edges,
    lesion_values,
    window_edges,
)
from nnunet_synth.quality.image_measures import NUM_PROBED, ImageMeasures, measure_images
from nnunet_synth.quality.image_set import ImageSet, check_comparable
from nnunet_synth.quality.metadata import AGE_GROUPS, classes_of
from nnunet_synth.quality.mm_fid import RESOLUTIONS, Cell, PairTest, compare, normalise, score_cell
from nnunet_synth.quality.window import Window

REAL_OR_SYNTHETIC = "real-or-synthetic"
METADATA = ("sex", "age")
EXTRACTORS = ("imagenet", "segmentation", REAL_OR_SYNTHETIC, *METADATA)
SMALLEST_RESOLUTION = 75        # Inception takes no less


@dataclass(frozen=True)
class QualityOptions:
    """
    Attributes:
        extractors: which of EXTRACTORS are used; None = all that can be had.
        resolutions: to which images are resized, pixels a side.
        classifier: how networks are trained on the spot.
        num_probed: images of a set whose noise is measured.
        seed: of all random choices.
        device: of networks.
    """

    extractors: Sequence[str] | None = None
    resolutions: Sequence[int] = RESOLUTIONS
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    num_probed: int = NUM_PROBED
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        unknown = [name for name in self.extractors or () if name not in EXTRACTORS]
        if unknown:
            raise UserError(f"--extractors {unknown[0]} is unknown; known: {', '.join(EXTRACTORS)}")
        if len(set(self.resolutions)) < len(self.resolutions) or min(self.resolutions) < SMALLEST_RESOLUTION:
            raise UserError(f"--resolutions {' '.join(map(str, self.resolutions))}: give different numbers of at least "
                            f"{SMALLEST_RESOLUTION}")
        if self.num_probed < 1:
            raise UserError(f"--num-probed {self.num_probed}: must be at least 1")

    def wants(self, extractor: str) -> bool:
        return self.extractors is None or extractor in self.extractors


@dataclass(frozen=True)
class Quality:
    """The result.

    Attributes:
        real, methods: the sets.
        window: in which intensities were compared.
        cells: of MM-FID and MM-STD, extractor by extractor.
        headline: the ImageNet network at its own resolution, where there is one: the ordinary FID and KID.
        extractors: name → description.
        missing: extractor → why it was not used.
        fid, deviation: method (for deviation the real set too) → normalised scores, in the order of the cells.
        fid_tests, deviation_tests: every pair of them.
        measures: set → what its single images tell.
        kl: method → KL(real ‖ synthetic) of lesion intensities, nats; NaN without lesions in either.
        averages: set → its average image, uint8; jpeg_bytes: set → its size.
        intensities, lesions: (edges, set → shares).
        maps: "PCA", "t-SNE" → set → points; map_of: the extractor and resolution they show.
        classifiers: those trained on the spot.
        warnings: what the reader has to know.
    """

    real: ImageSet
    methods: list[ImageSet]
    window: Window
    cells: list[Cell]
    headline: Cell | None
    extractors: dict[str, str]
    missing: dict[str, str]
    fid: dict[str, list[float]]
    deviation: dict[str, list[float]]
    fid_tests: list[PairTest]
    deviation_tests: list[PairTest]
    measures: dict[str, ImageMeasures]
    kl: dict[str, float]
    averages: dict[str, np.ndarray]
    jpeg_bytes: dict[str, int]
    intensities: tuple[np.ndarray, dict[str, np.ndarray]]
    lesions: tuple[np.ndarray, dict[str, np.ndarray]]
    maps: dict[str, dict[str, np.ndarray]]
    map_of: str
    classifiers: list[TrainedClassifier]
    warnings: list[str]

    @property
    def has_enough_for_fid(self) -> bool:
        """Every set has more images than the ordinary FID has features.

        The covariance of N images has rank N − 1: with fewer, most of the distance is the number of images (FID's bias
        falls as 1 / N, Chong and Forsyth, CVPR 2020).
        """
        return self.headline is not None and min(map(len, self.sets)) > self.headline.num_features

    @property
    def sets(self) -> list[ImageSet]:
        return [self.real, *self.methods]


def measure_quality(real: ImageSet, methods: Sequence[ImageSet], window: Window, loaded: Sequence[Extractor],
                    missing: Mapping[str, str], options: QualityOptions,
                    metadata: Mapping[str, Mapping[str, str]] | None = None) -> Quality:
    """
    Args:
        loaded: extractors with weights of their own; those that are trained on the spot are added.
        missing: extractor → why it is not among them.
        metadata: of the real cases, see `read_metadata`.

    Raises:
        UserError: sets that cannot be compared, or no extractor at all.
    """
    sets = [real, *methods]
    check_comparable(sets)
    missing = dict(missing)
    trained = _train(real, methods, window, options, metadata or {}, missing)
    extractors = [*loaded, *(classifier.extractor for classifier in trained)]
    if not extractors:
        raise UserError("no network to extract features with: " + "; ".join(f"{name}: {reason}" for name, reason
                                                                            in missing.items()))
    cells, headline, maps, map_of = _score(real, methods, extractors, options)
    fid = normalise({method.name: [cell.fid[method.name] for cell in cells] for method in methods})
    deviation = normalise({one.name: [cell.deviation[one.name] for cell in cells] for one in sets})
    averages = {one.name: average_image(one, window) for one in sets}
    of_lesions = {one.name: np.clip(lesion_values(one, options.seed), window.low, window.high) for one in sets}
    edges = window_edges(window)
    with_lesions = {name: values for name, values in of_lesions.items() if len(values)}
    between = lesion_edges(list(with_lesions.values())) if with_lesions else edges
    return Quality(
        real=real, methods=list(methods), window=window, cells=cells, headline=headline,
        extractors={extractor.name: extractor.description for extractor in extractors}, missing=missing, fid=fid,
        deviation=deviation, fid_tests=compare(fid), deviation_tests=compare(deviation),
        measures={one.name: measure_images(one, window, options.num_probed) for one in sets},
        kl={method.name: _kl(of_lesions[real.name], of_lesions[method.name]) for method in methods},
        averages=averages, jpeg_bytes={name: lossless_jpeg_size(picture) for name, picture in averages.items()},
        intensities=(edges, {one.name: intensity_histogram(one, edges) for one in sets}),
        lesions=(between, {name: histogram_of(values, between) for name, values in with_lesions.items()}),
        maps=maps, map_of=map_of, classifiers=trained,
        warnings=_warnings(sets, [*cells, *([headline] if headline else [])]))


def _kl(real: np.ndarray, synthetic: np.ndarray) -> float:
    return lesion_histogram_kl(real, synthetic) if len(real) and len(synthetic) else math.nan


# ----------------------------------------------------------------------------------------------------------------------
# Networks that are trained on the spot


def _train(real: ImageSet, methods: Sequence[ImageSet], window: Window, options: QualityOptions,
           metadata: Mapping[str, Mapping[str, str]], missing: dict[str, str]) -> list[TrainedClassifier]:
    """P₄, then P₂ and P₃ where metadata gives two classes or more; what cannot be trained is noted in `missing`."""
    tasks = []
    if options.wants(REAL_OR_SYNTHETIC):
        examples = [Example(one, index, target, case) for target, one in enumerate([real, *methods])
                    for index, case in enumerate(one.cases)]
        tasks.append((REAL_OR_SYNTHETIC, "real or synthetic", examples, [one.name for one in [real, *methods]]))
    for column in METADATA:
        if not options.wants(column):
            continue
        known = classes_of(metadata, real.cases, column)
        classes = [name for name in (AGE_GROUPS if column == "age" else sorted({*known} - {None})) if name in known]
        if len(classes) < 2:
            missing[column] = f"no metadata tells two classes of {column} of the real cases, with two cases each"
            if options.extractors is not None:
                raise UserError(f"--extractors {column}: {missing[column]}; give --metadata FILE, or leave it out")
            continue
        examples = [Example(real, index, classes.index(name), real.cases[index]) for index, name in enumerate(known)
                    if name is not None]
        tasks.append((column, f"{column} of the real cases", examples, classes))
    return [train_classifier(name, task, examples, classes, window, options.classifier, options.device)
            for name, task, examples, classes in tasks]


# ----------------------------------------------------------------------------------------------------------------------
# Cells


def _score(real: ImageSet, methods: Sequence[ImageSet], extractors: Sequence[Extractor],
           options: QualityOptions) -> tuple[list[Cell], Cell | None, dict[str, dict[str, np.ndarray]], str]:
    """The cells, the ordinary FID, and the map of the last network (UM2I: that of real against synthetic) at the
    highest resolution."""
    work = [(extractor, resolution) for extractor in extractors for resolution in options.resolutions]
    shown = next((extractor for extractor in extractors if extractor.name == REAL_OR_SYNTHETIC), extractors[0])
    cells, maps = [], {}
    for extractor, resolution in progress(work, "features", len(work)):
        cell, kept = score_cell(real, methods, extractor, resolution, options.seed)
        cells.append(cell)
        if extractor is shown and resolution == max(options.resolutions):
            maps = embed(kept, options.seed)
    native = next((extractor for extractor in extractors if extractor.native is not None), None)
    headline = score_cell(real, methods, native, native.native, options.seed)[0] if native else None
    return cells, headline, maps, f"{shown.name} at {max(options.resolutions)}²"


def _warnings(sets: Sequence[ImageSet], cells: Sequence[Cell]) -> list[str]:
    found = []
    most = max(cell.num_features for cell in cells)
    small = [one for one in sets if len(one) <= most]
    if small:
        numbers = " or ".join(map(str, sorted({len(one) for one in small})))
        found.append(f"fewer images than features ({numbers} in a set, up to {most} features): covariances are "
                     "singular and every FID is too large; compare sets of equal size only, and see the distance of "
                     "the real halves")
    if len({len(one) for one in sets[1:]}) > 1:
        found.append("the methods have different numbers of images: FID falls with the number, KID does not")
    for warning in found:
        print(f"warning: {warning}", file=sys.stderr)
    return found
