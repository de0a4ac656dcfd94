"""Several methods, each trained with several seeds, on the same cases: which is better, by how much, how surely?

    rows = [row for method, seed in runs for row in tidy(evaluate(…), method, seed)]
    comparisons = compare_methods(rows, baseline="nnUNetTrainer")

A tidy row is what JSON can hold: {"method", "seed", "case", "class", and one number a measure}. "seed" names a trained
run; where a study has folds that all predict the same test set, each (seed, fold) is one, "0/fold 1".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.segmentation import METRICS
from nnunet_synth.evaluation.statistics import (
    NUM_RESAMPLES,
    Spread,
    bootstrap_interval,
    case_means,
    holm,
    paired_wilcoxon,
)

Run = dict[str, dict[str, Any]]         # case → its row


@dataclass(frozen=True)
class Comparison:
    """One method, one measure, one class; what the table of a report says.

    Attributes:
        num_cases, num_seeds: of the method; every seed has every case.
        num_scored: cases with a score in at least one seed; `mean` is over these.
        num_missing: scores that are missing (truth and prediction both empty), over all cases and seeds.
        mean, sd, sd_cases, sd_seeds: see `statistics.Spread`.
        low, high: the 95 % bootstrap interval of the mean.
        num_pairs: cases with a score here and in the baseline; the following are over these. None = the baseline.
        difference, difference_low, difference_high: method − baseline, and its bootstrap interval.
        p: of the paired test, two-sided; NaN where fewer than six pairs are left.
        p_holm: adjusted for all methods that were tested against the baseline on this measure and class.
    """

    method: str
    class_name: str
    measure: str
    num_cases: int
    num_seeds: int
    num_scored: int
    num_missing: int
    mean: float
    sd: float
    sd_cases: float
    sd_seeds: float
    low: float
    high: float
    num_pairs: int | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    p_holm: float | None = None


def tidy(results: dict, method: str, seed: int | str) -> list[dict[str, Any]]:
    """Rows of one run, from what `evaluate` returns or has written to evaluation.json."""
    return [{"method": method, "seed": seed, **row} for row in results["cases"]]


def compare_methods(rows: Iterable[dict[str, Any]], baseline: str, measures: Sequence[str] = METRICS,
                    num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> list[Comparison]:
    """Every method's summary, and its comparison with the baseline: by class, then measure, then method.

    A case that has no score in one of two methods is no pair. Holm's correction is over the methods, within one
    measure and class: each measure asks its own question, and which one decides is to be said beforehand.

    Args:
        rows: tidy rows; None and NaN are missing scores. The methods keep the order in which they come.
        baseline: the method that the others are compared with.
        seed: of the bootstrap. The same rows and seed give the same numbers.

    Raises:
        UserError: an unknown baseline, a run that lacks cases of the others or has one twice, fewer than two cases.
    """
    comparisons = []
    for class_name, methods in _group(rows).items():
        if baseline not in methods:
            raise UserError(f"the baseline {baseline!r} has no results here: choose one of {', '.join(methods)}")
        for measure in measures:
            scores = {method: _scores(runs, measure) for method, runs in methods.items()}
            found = [{"method": method, "class_name": class_name, "measure": measure,
                      **_summary(scores[method], num_resamples, seed)} for method in methods]
            others = [entry for entry in found if entry["method"] != baseline]
            for entry in others:
                entry |= _difference(scores[entry["method"]], scores[baseline], num_resamples, seed)
            for entry, adjusted in zip(others, holm([entry["p"] for entry in others]), strict=True):
                entry["p_holm"] = adjusted
            comparisons += [Comparison(**entry) for entry in found]
    return comparisons


def mean_over_seeds(rows: Iterable[dict[str, Any]], measure: str, class_name: str) -> dict[str, dict[str, float]]:
    """Method → case → mean over its seeds, of one class; NaN where no seed has a score."""
    return {method: dict(zip(sorted(runs[0]), case_means(_scores(runs, measure)).tolist(), strict=True))
            for method, runs in _group(rows)[class_name].items()}


def _summary(scores: np.ndarray, num_resamples: int, seed: int) -> dict[str, Any]:
    low, high = bootstrap_interval(scores, np.random.default_rng(seed), num_resamples=num_resamples)
    num_seeds, num_cases = scores.shape
    return {"num_cases": num_cases, "num_seeds": num_seeds, "num_scored": int((~np.isnan(scores)).any(0).sum()),
            "num_missing": int(np.isnan(scores).sum()), **asdict(Spread.of(scores)), "low": low, "high": high}


def _difference(scores: np.ndarray, baseline: np.ndarray, num_resamples: int, seed: int) -> dict[str, Any]:
    num_pairs = int((~np.isnan(case_means(scores) - case_means(baseline))).sum())
    if num_pairs < 2 <= scores.shape[1]:        # a class that hardly occurs must not cost the whole report
        return {"num_pairs": num_pairs, "p": math.nan}
    test = paired_wilcoxon(scores, baseline)
    low, high = bootstrap_interval(scores, np.random.default_rng(seed), baseline, num_resamples=num_resamples)
    return {**asdict(test), "difference_low": low, "difference_high": high}


# Tidy rows → tables -------------------------------------------------------------------------------------------------

def _group(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[Run]]]:
    """Class → method → its runs, one a seed; all runs of a class have the same cases.

    Raises:
        UserError: they have not, or a run has a case twice.
    """
    runs: dict[tuple[str, str, str], Run] = {}
    for row in rows:
        run = runs.setdefault((row["class"], row["method"], str(row["seed"])), {})
        if row["case"] in run:
            raise UserError(f"{row['method']}, seed {row['seed']} has case {row['case']} twice: give each run a seed "
                            "or a method name of its own")
        run[row["case"]] = row
    cases: dict[str, set[str]] = {}
    for (class_name, _, _), run in runs.items():
        cases.setdefault(class_name, set()).update(run)
    for (class_name, method, seed), run in runs.items():
        if missing := sorted(cases[class_name] - run.keys()):
            listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise UserError(f"{method}, seed {seed} lacks {len(missing)} of {len(cases[class_name])} cases ({listed}): "
                            "compare methods on the same cases")
    classes: dict[str, dict[str, list[Run]]] = {}
    for class_name, method, _ in runs:
        classes.setdefault(class_name, {}).setdefault(method, [])
    for class_name, method, seed in sorted(runs):       # in whatever order the runs finished: the same bootstrap
        classes[class_name][method].append(runs[class_name, method, seed])
    return classes


def _scores(runs: Sequence[Run], measure: str) -> np.ndarray:
    """[S, C], the cases in the order of their names."""
    return np.array([[_number(run[case], measure) for case in sorted(run)] for run in runs])


def _number(row: dict[str, Any], measure: str) -> float:
    if measure not in row:
        known = ", ".join(key for key in row if key not in ("method", "seed", "case", "class"))
        raise UserError(f"{row['method']}, seed {row['seed']} has no measure {measure!r}: there are {known}")
    return math.nan if row[measure] is None else float(row[measure])
