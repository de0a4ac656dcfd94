"""From what was drawn to a ranking of models by LcGAN's three criteria (3.2).

The paper chooses models with "comparatively high FCN scores and low average blurriness" and "the most number of
generated images misclassified as real", without a formula. Here each criterion gives every model a rank, and the mean
of the three ranks decides; among equals the FCN score does, "the most important". Blurriness is the distance of the
mean variance of the Laplacian to that of the real images, |log2 (synthetic / real)|: the plain variance would prefer
noise.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from nnunet_synth.quality.classifier import ClassifierOptions, Example, fit
from nnunet_synth.quality.window import Window
from nnunet_synth.selection.acceptance import CLASSES, REAL, SYNTHETIC, AcceptanceClassifier
from nnunet_synth.selection.judging import Judged

HELD_OUT = 1 / 3            # share of the training cases whose images only tell how well the classifier does
UNIT = Window(-1.0, 1.0)    # of the images that were drawn: nothing is cut off any more


# ----------------------------------------------------------------------------------------------------------------------
# The classifier


@dataclass(frozen=True)
class TrainedAcceptance:
    """
    Attributes:
        accuracy: mean over real and synthetic of the share of held-out images that are told right at ½.
        losses: cross entropy of every step.
    """

    classifier: AcceptanceClassifier
    accuracy: float
    losses: list[float]


def train_acceptance(real: Judged, synthetic: Sequence[Judged], intensity_range: list[list[float]],
                     options: ClassifierOptions, device: str) -> TrainedAcceptance:
    """Train one network to tell real images from those of all models together, equally many of each model, and let it
    judge the images that it has not seen.

    Whole training cases are held out, the same ones of every set: a synthetic image is judged by a network that knows
    neither the case nor anything drawn for its labels. It is the situation of an unlabelled case in training. The
    validation cases of the fold have no part in any of this.
    """
    rng = np.random.default_rng([options.seed, 73])
    groups = _groups(real)
    held_out = _held_out(groups, rng)
    sets = [real, *synthetic]
    examples = [Example(one.images, place, REAL if one is real else SYNTHETIC, groups[condition])
                for one in sets for place, condition in enumerate(one.conditions)
                if groups[condition] not in held_out]
    network, losses = fit("real against synthetic", examples, len(CLASSES), UNIT, options, device, rng, mirrored)
    classifier = AcceptanceClassifier(network, intensity_range).to(device)
    for one in sets:
        one.look_through(classifier, [place for place, condition in enumerate(one.conditions)
                                      if groups[condition] in held_out], device)
    is_right = [(real.probability_real >= 0.5).mean()], [(one.probability_real < 0.5).mean() for one in synthetic]
    accuracy = float(np.mean([np.mean(shares) for shares in is_right]))
    return TrainedAcceptance(classifier, accuracy, losses)


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image as it is or mirrored along either axis: what the network must tell apart may be the finest texture,
    which turning or magnifying would blur."""
    for axis in (-2, -1):
        chosen = torch.rand(len(images), device=images.device, generator=generator) < 0.5
        images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
    return images


def _groups(real: Judged) -> list[str]:
    """Of every condition, what must not be divided: its case; with a single case, itself."""
    cases = list(real.images.cases)
    if len(set(cases)) > 1:
        return cases
    print(f"warning: all labelled training slices are of case {cases[0]}, so the classifier is judged on images of the "
          "case that it learnt: acceptance is too low to be true", file=sys.stderr)
    return [f"{case} {number}" for number, case in enumerate(cases)]


def _held_out(groups: Sequence[str], rng: np.random.Generator) -> set[str]:
    """At least one group, and never all."""
    names = sorted(set(groups))
    number = min(max(1, round(HELD_OUT * len(names))), len(names) - 1)
    return set(rng.permutation(names)[:number].tolist())


# ----------------------------------------------------------------------------------------------------------------------
# The ranking


@dataclass(frozen=True)
class Score:
    """One model, or the real images.

    Attributes:
        images, drawable: how many were drawn, and of how many conditions (share).
        fcn_dice: mean Dice of the segmenter over the images, background ignored; NaN without a segmenter.
        laplacian_variance: mean over the images in [0, 1]; laplacian_ratio: to that of the real images.
        high_frequency_share: mean over the images; for comparison, it does not enter the ranking.
        acceptance: share of the held-out images with P(real) ≥ threshold; probability_real: their mean.
        ranks: of each criterion, 1 = best, equals share the mean of their places; {} for the real images.
        mean_rank: over the criteria; rank: the place by it, from 1 on; None for the real images.
    """

    name: str
    images: int
    drawable: float
    fcn_dice: float
    laplacian_variance: float
    laplacian_ratio: float
    high_frequency_share: float
    judged_images: int
    acceptance: float
    probability_real: float
    ranks: Mapping[str, float]
    mean_rank: float | None = None
    rank: int | None = None


def rank(real: Judged, synthetic: Sequence[Judged], number: int, threshold: float) -> tuple[Score, list[Score]]:
    """The scores of the real images, and those of the models, the best one first."""
    reference = float(np.mean(real.laplacian))
    unranked = [_score(one, number, threshold, reference, {}) for one in synthetic]
    criteria = {"fcn_dice": [-score.fcn_dice for score in unranked],
                "sharpness": [distance(score.laplacian_ratio) for score in unranked],
                "acceptance": [-score.acceptance for score in unranked]}
    known = {name: values for name, values in criteria.items() if not np.isnan(values).all()}
    ranks = {name: rankdata(np.nan_to_num(values, nan=np.inf)).tolist() for name, values in known.items()}
    scores = [_score(one, number, threshold, reference, {name: of_all[place] for name, of_all in ranks.items()})
              for place, one in enumerate(synthetic)]
    ordered = sorted(scores, key=lambda score: (score.mean_rank, -np.nan_to_num(score.fcn_dice)))
    placed = [replace(score, rank=place) for place, score in enumerate(ordered, start=1)]
    return _score(real, number, threshold, reference, {}), placed


def distance(ratio: float) -> float:
    """|log2 ratio|: half as sharp is as far away as twice as sharp."""
    return abs(math.log2(ratio)) if ratio > 0 else math.inf


def acceptance(probability_real: np.ndarray, threshold: float) -> float:
    """The share with P(real) ≥ threshold."""
    return float((probability_real >= threshold).mean())


def _score(one: Judged, number: int, threshold: float, reference: float, ranks: Mapping[str, float]) -> Score:
    sharpness = float(np.mean(one.laplacian))
    found = np.array(one.dice)
    is_judged = len(one.probability_real) > 0
    return Score(
        name=one.name, images=len(one.conditions), drawable=len(one.conditions) / number,
        fcn_dice=float("nan") if np.isnan(found).all() else float(np.nanmean(found)),
        laplacian_variance=sharpness, laplacian_ratio=sharpness / reference if reference > 0 else float("nan"),
        high_frequency_share=float(np.mean(one.high_frequencies)), judged_images=len(one.probability_real),
        acceptance=acceptance(one.probability_real, threshold) if is_judged else float("nan"),
        probability_real=float(one.probability_real.mean()) if is_judged else float("nan"), ranks=dict(ranks),
        mean_rank=float(np.mean(list(ranks.values()))) if ranks else None)
