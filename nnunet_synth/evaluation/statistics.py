"""How sure is a mean over cases and seeds? Spread, bootstrap interval, paired test, and Holm's correction.

Scores [S, C] are those of S trained runs (seeds) on the same C cases; NaN where a case has no score (truth and
prediction are both empty). Cases and seeds are crossed, not nested: each run sees every case, a hard case is hard for
all of them. Everything here starts from the mean of each case over the seeds, so that a case counts once however many
seeds there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_synth.errors import UserError

NUM_RESAMPLES = 10_000
BLOCK = 500                 # resamples at a time: bounds the memory
MIN_PAIRS = 6               # fewer cannot reach a two-sided p of 0.05, whatever the scores: 2 / 2⁵ = 0.0625
ROUNDING = 9                # decimals; scores that differ less are equal, up to the rounding of a mean over seeds


def case_means(scores: np.ndarray) -> np.ndarray:
    """[C] mean over the seeds that have a score; NaN where none has."""
    present = ~np.isnan(scores)
    counts = present.sum(0)
    return np.divide(np.where(present, scores, 0).sum(0), counts, out=np.full(len(counts), np.nan), where=counts > 0)


# Spread -------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Spread:
    """A mean over cases (of means over seeds), and standard deviations; NaN where there are too few numbers for one.

    Attributes:
        mean: over the cases of their means over seeds.
        sd: of one score, a case and a run drawn at random: both variations together.
        sd_cases: over the cases, of their means over seeds: how different the patients are.
        sd_seeds: over the seeds, of each run's mean over cases: how repeatable the training is.
    """

    mean: float
    sd: float
    sd_cases: float
    sd_seeds: float

    @classmethod
    def of(cls, scores: np.ndarray) -> Spread:
        """Of scores [S, C].

        sd² = V + (1 − 1/S) W, where V is the variance over cases of the means over seeds and W the mean over cases of
        the variance over seeds (both n − 1): the total variance of the one-way random-effects analysis of variance. V
        alone already holds W/S. Where cases differ in their number of scores, S is the harmonic mean of the numbers.
        """
        means = case_means(scores)
        counts = (~np.isnan(scores)).sum(0)
        repeated = counts > 1
        within = float(np.mean([_variance(column) for column in scores[:, repeated].T])) if repeated.any() else 0.0
        between = _variance(means)
        seeds = np.mean(1 / counts[counts > 0]) if counts.any() else math.nan        # 1 / harmonic mean
        return cls(_mean(means), math.sqrt(between + (1 - seeds) * within), math.sqrt(between),
                   math.sqrt(_variance(case_means(scores.T))))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _variance(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.var(ddof=1)) if len(known) > 1 else math.nan


# Bootstrap ----------------------------------------------------------------------------------------------------------

def bootstrap_interval(scores: np.ndarray, generator: np.random.Generator, baseline: np.ndarray | None = None,
                       level: float = 0.95, num_resamples: int = NUM_RESAMPLES) -> tuple[float, float]:
    """Percentile interval of the mean of scores [S, C], or of its difference to a baseline's [S', C].

    Cases and seeds are drawn with replacement, independently of each other (A. B. Owen, The pigeonhole bootstrap,
    Annals of Applied Statistics 1:386, 2007): an interval from cases alone would hold for these runs, not for the
    method. The difference is paired by case; the seeds of two methods have nothing in common and are drawn apart. The
    percentiles are taken as they are, because BCa's acceleration is defined for one resampled sample (jackknife), not
    for two crossed ones, and because they never leave the range of the score.

    Returns:
        (low, high); NaN for fewer than two cases with a score.
    """
    methods = [scores] if baseline is None else [scores, baseline]
    paired = ~np.isnan(np.sum([case_means(method) for method in methods], axis=0))
    if paired.sum() < 2:
        return math.nan, math.nan
    methods = [method[:, paired] for method in methods]
    blocks = [min(BLOCK, num_resamples - start) for start in range(0, num_resamples, BLOCK)]
    means = np.concatenate([_resampled_means(methods, generator, size) for size in blocks])
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(methods: Sequence[np.ndarray], generator: np.random.Generator, size: int) -> np.ndarray:
    """[size] means over resampled cases of the first method's means over resampled seeds, less the second's."""
    num_cases = methods[0].shape[1]
    cases = generator.multinomial(num_cases, np.full(num_cases, 1 / num_cases), size)       # how often each was drawn
    values = _resampled_case_means(methods[0], generator, size)
    if len(methods) == 2:
        values = values - _resampled_case_means(methods[1], generator, size)
    cases = np.where(np.isnan(values), 0, cases)        # a case that only an undrawn seed has scored
    with np.errstate(invalid="ignore"):                 # no such case is left: NaN, which nanquantile passes over
        return np.nansum(cases * values, 1) / cases.sum(1)


def _resampled_case_means(scores: np.ndarray, generator: np.random.Generator, size: int) -> np.ndarray:
    """[size, C] means over seeds drawn with replacement."""
    num_seeds = len(scores)
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size)
    present = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return (seeds @ np.where(present, scores, 0)) / (seeds @ present)


# Tests --------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class PairedTest:
    """The pairs with both scores, the mean of their differences, and the two-sided p of Wilcoxon's signed ranks.

    p is NaN below MIN_PAIRS pairs.
    """

    num_pairs: int
    difference: float
    p: float


def paired_wilcoxon(scores: np.ndarray, baseline: np.ndarray) -> PairedTest:
    """Wilcoxon's signed-rank test of scores [S, C] against a baseline's [S', C], case by case, seeds averaged first.

    The unit is the case: seeds × cases as pairs would count each patient several times. Equal pairs are dropped, as
    Wilcoxon did; if all are equal, p is 1. SciPy takes the exact distribution for up to 50 pairs without ties.

    Raises:
        UserError: fewer than two cases have a score in both.
    """
    from scipy.stats import wilcoxon
    difference = case_means(scores) - case_means(baseline)
    difference = difference[~np.isnan(difference)]
    if len(difference) < 2:
        raise UserError(f"a paired test needs two or more cases that have a score in both; here are {len(difference)}: "
                        "test on more cases")
    if len(difference) < MIN_PAIRS:
        return PairedTest(len(difference), float(difference.mean()), math.nan)
    rounded = difference.round(ROUNDING)
    p = float(wilcoxon(rounded[rounded != 0]).pvalue) if rounded.any() else 1.0
    return PairedTest(len(difference), float(difference.mean()), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order; NaN was not tested, stays NaN and does not count.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6:65, 1979.
    """
    p = np.asarray(p_values, float)
    ascending = np.argsort(p)[:np.count_nonzero(~np.isnan(p))]         # NaN sorts to the end
    adjusted = np.full(len(p), np.nan)
    adjusted[ascending] = np.minimum(np.maximum.accumulate(p[ascending] * np.arange(len(ascending), 0, -1)), 1)
    return adjusted.tolist()
