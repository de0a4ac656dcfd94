"""Comparisons as tables of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from nnunet_synth.evaluation.comparison import Comparison
from nnunet_synth.evaluation.report import Cell, Table
from nnunet_synth.evaluation.segmentation import DIGITS, LOWER_IS_BETTER
from nnunet_synth.evaluation.statistics import MIN_PAIRS


def overview_table(comparisons: Iterable[Comparison], class_name: str, headings: Mapping[str, str]) -> Table:
    """A row a method, a column a measure: mean ± sd, the best mean in bold.

    Args:
        headings: measure → its column's title, as `segmentation.headings` gives them; others are left out.
    """
    found = [entry for entry in comparisons if entry.class_name == class_name]
    by_measure = {measure: {entry.method: entry for entry in found if entry.measure == measure} for measure in headings}
    best = {measure: _best(entries.values()) for measure, entries in by_measure.items()}
    rows = [[method, *(_mean_sd(entries[method], best[measure]) for measure, entries in by_measure.items())]
            for method in dict.fromkeys(entry.method for entry in found)]
    columns = ["method", *(f"{heading} {_arrow(measure)}" for measure, heading in headings.items())]
    return Table(columns, rows, "Mean over the cases of their means over seeds, ± the standard deviation of one score "
                 "(cases and seeds together). Arrows point to the better end; the best mean is bold, unless two "
                 "share it.")


def measure_table(comparisons: Iterable[Comparison], class_name: str, measure: str, heading: str,
                  published: Mapping[str, float] | None = None) -> Table:
    """A row a method, everything about one measure; the baseline has neither difference nor p.

    Args:
        heading: what the measure is called here.
        published: method → the mean in its paper, in the same unit; a column beside ours.
    """
    found = [entry for entry in comparisons if (entry.class_name, entry.measure) == (class_name, measure)]
    best, digits = _best(found), DIGITS[measure]
    rows = [[entry.method, entry.num_seeds, _scored(entry), _mean_sd(entry, best),
             Cell(_number(entry.sd_seeds, digits), entry.sd_seeds), _interval(entry.low, entry.high, digits),
             _difference(entry, digits), _p(entry.p), _p(entry.p_holm)] for entry in found]
    columns = ["method", "seeds", "cases", f"{heading} {_arrow(measure)}", "sd of seeds", "95 % interval",
               "difference", "p", "p (Holm)"]
    if published is not None:
        columns.append("published")
        rows = [[*row, Cell(_number(published.get(row[0]), digits), published.get(row[0]))] for row in rows]
    baseline = ", ".join(entry.method for entry in found if entry.num_pairs is None)
    num_tested = sum(entry.p is not None and not math.isnan(entry.p) for entry in found)
    return Table(columns, rows, (
        "Mean over the cases of their means over seeds, ± the standard deviation of one score (cases and seeds "
        "together); beside it that of a run's mean, over the seeds. Intervals: bootstrap over cases and seeds. "
        f"Difference to {baseline}, over the cases that both have a score for; p of Wilcoxon's signed-rank test on "
        f"these cases, and after Holm's correction for {num_tested} comparison(s). A case without a score has "
        "neither truth nor prediction. Below "
        f"{MIN_PAIRS} pairs no p is given: it could not fall below 0.05."))


def _best(entries: Iterable[Comparison]) -> Comparison | None:
    """The one with the best mean; None where another one shows the same, as then nobody has won."""
    known = [entry for entry in entries if not math.isnan(entry.mean)]
    if not known:
        return None
    best = (min if known[0].measure in LOWER_IS_BETTER else max)(known, key=lambda entry: entry.mean)
    digits = DIGITS[best.measure]
    ties = [entry for entry in known if _number(entry.mean, digits) == _number(best.mean, digits)]
    return best if len(ties) == 1 else None


def _mean_sd(entry: Comparison, best: Comparison | None) -> Cell:
    digits = DIGITS[entry.measure]
    spread = "" if math.isnan(entry.sd) else f" ± {entry.sd:.{digits}f}"
    return Cell(_number(entry.mean, digits) + spread, {"mean": entry.mean, "sd": entry.sd}, entry is best)


def _scored(entry: Comparison) -> Cell:
    """Cases, and how many of them have no score in any seed."""
    empty = entry.num_cases - entry.num_scored
    return Cell(f"{entry.num_scored}" + (f" (+ {empty} empty)" if empty else ""),
                {"scored": entry.num_scored, "empty": empty, "pairs": entry.num_pairs})


def _difference(entry: Comparison, digits: int) -> Cell:
    if entry.difference is None:
        return Cell("–", None)
    interval = _interval(entry.difference_low, entry.difference_high, digits, sign="+")
    return Cell(f"{entry.difference:+.{digits}f} {interval.text}",
                {"difference": entry.difference, "low": entry.difference_low, "high": entry.difference_high})


def _interval(low: float, high: float, digits: int, sign: str = "") -> Cell:
    text = "–" if math.isnan(low) else f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
    return Cell(text, [low, high])


def _p(p: float | None) -> Cell:
    return Cell("< 0.001" if p is not None and p < 0.001 else _number(p, 3), p)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _arrow(measure: str) -> str:
    return "↓" if measure in LOWER_IS_BETTER else "↑"
