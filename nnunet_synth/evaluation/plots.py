"""Drawings of a comparison: what each case scored, how the training went, what more labels bring.

Lines are told apart by colour (Okabe and Ito 2008, for colour-blind readers) and, from the eighth on, by dashes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth.evaluation.report import Figure, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
DASHES = ("-", "--", ":", "-.")
WIDTH = 8.0             # inches
ROW = 0.38              # inches, of one box


@dataclass(frozen=True)
class Point:
    """A mean, and the interval around it that is drawn."""

    mean: float
    low: float
    high: float


def box_plots(scores: Mapping[str, Mapping[str, float]], label: str, caption: str = "") -> Figure:
    """A box a method, and every case as a point: median, quartiles, whiskers to the last case within 1.5 of the box.

    Args:
        scores: method → case → its score (its mean over seeds); NaN is left out.
        label: of the axis.
    """
    values = {method: {case: score for case, score in cases.items() if not np.isnan(score)}
              for method, cases in scores.items()}
    drawing, axes = _axes(label, "", 0.9 + ROW * len(values))
    positions = np.arange(len(values), 0, -1)          # the first method on top
    axes.boxplot([list(cases.values()) for cases in values.values()], positions=positions, orientation="horizontal",
                 widths=0.6, showfliers=False, medianprops={"color": COLOURS[1], "linewidth": 2},
                 tick_labels=list(values))
    for position, cases in zip(positions, values.values(), strict=True):
        spread = np.random.default_rng(0).uniform(-0.18, 0.18, len(cases))         # so that equal scores are seen
        axes.plot(list(cases.values()), position + spread, "o", color=COLOURS[0], alpha=0.45, markersize=3.5,
                  markeredgewidth=0)
    axes.grid(axis="y", visible=False)
    return Figure(draw(drawing, caption), {"label": label, "scores": values})


def learning_curves(runs: Mapping[str, Sequence[Mapping[int, float]]], label: str, caption: str = "") -> Figure:
    """A line a method, the mean over its runs, in a band from the lowest to the highest run.

    Args:
        runs: method → one {epoch: value} a seed, as `training_log.series` gives them.
        label: of the value.
    """
    drawing, axes = _axes("epoch", label)
    lines = []
    for style, (method, seeds) in zip(_styles(), runs.items(), strict=False):
        points = over_seeds(seeds)
        mean, low, high = ([getattr(point, name) for point in points.values()] for name in ("mean", "low", "high"))
        lines += axes.plot(list(points), mean, label=method, linewidth=1.6, **style)
        if len(seeds) > 1:
            axes.fill_between(list(points), low, high, color=style["color"], alpha=0.15, linewidth=0)
    _legend(axes, lines)
    return Figure(draw(drawing, caption), {"label": label, "runs": {
        method: [{str(epoch): value for epoch, value in seed.items()} for seed in seeds]
        for method, seeds in runs.items()}})


def over_seeds(seeds: Sequence[Mapping[int, float]]) -> dict[int, Point]:
    """Epoch → mean, lowest and highest of the runs that have a number there; NaN is none."""
    points = {}
    for epoch in sorted({epoch for seed in seeds for epoch in seed}):
        known = [seed[epoch] for seed in seeds if epoch in seed and not np.isnan(seed[epoch])]
        if known:
            points[epoch] = Point(float(np.mean(known)), min(known), max(known))
    return points


def label_ratio_curves(points: Mapping[str, Mapping[float, Point]], x_label: str, y_label: str, caption: str = "",
                       published: Mapping[str, Mapping[float, float]] | None = None,
                       full_supervision: float | None = None) -> Figure:
    """A line a method over the amount of labels, with the interval of each mean.

    Args:
        points: method → amount of labels (per cent, or a number of cases) → mean and interval.
        published: method → amount → the paper's mean: hollow squares in the method's colour, on a thin line.
        full_supervision: the mean with all labels; a line across.
    """
    published = published or {}
    drawing, axes = _axes(x_label, y_label)
    amounts = sorted({amount for curve in points.values() for amount in curve})
    apart = min(np.diff(amounts), default=1.0) * 0.25 / max(len(points), 1)
    lines = []
    for number, (style, (method, curve)) in enumerate(zip(_styles(), points.items(), strict=False)):
        x = np.array(sorted(curve))
        mean, low, high = (np.array([getattr(curve[amount], name) for amount in x]) for name in ("mean", "low", "high"))
        beside = x + (number - (len(points) - 1) / 2) * apart          # so that intervals do not hide each other
        # A NaN interval (too few cases) draws none; a percentile interval may lie beside its mean.
        lines.append(axes.errorbar(beside, mean, np.clip([mean - low, high - mean], 0, None), label=method,
                                   marker="o", markersize=4, capsize=3, linewidth=1.6, **style))
        if theirs := published.get(method):
            lines += axes.plot(sorted(theirs), [theirs[amount] for amount in sorted(theirs)], marker="s",
                               fillstyle="none", linewidth=0.6, label=f"{method} (published)", **style)
    if full_supervision is not None:
        lines.append(axes.axhline(full_supervision, color="#888888", linewidth=1, linestyle="--", label="all labels"))
    axes.set_xticks(amounts)
    _legend(axes, lines)
    values: dict[str, Any] = {method: {str(amount): vars(point) for amount, point in curve.items()}
                              for method, curve in points.items()}
    return Figure(draw(drawing, caption), {"points": values, "published": published, "all labels": full_supervision})


def _axes(x_label: str, y_label: str, height: float = 4.0) -> tuple[Drawing, Axes]:
    from matplotlib.figure import Figure as Drawing
    drawing = Drawing(figsize=(WIDTH, height), layout="constrained")
    axes = drawing.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def _legend(axes: Axes, lines: Sequence[Any]) -> None:
    """Beside the drawing, where it hides nothing, in the order of the methods."""
    if lines:
        axes.legend(handles=lines, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)


def _styles() -> Iterator[dict[str, str]]:
    return itertools.cycle({"color": colour, "linestyle": dashes} for dashes in DASHES for colour in COLOURS)
