"""Drawings of a comparison of image sets, in the colours of the study's report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_synth.evaluation.plots import COLOURS, DASHES
from nnunet_synth.evaluation.report import Figure, draw

MARKERS = "osD^vP*X"


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str, caption: str = "",
          steps: bool = False, ticks: Sequence[float] | None = None) -> Figure:
    """A line a set. With `steps`, y has one number less than x: a histogram over its edges. With `ticks`, x is
    logarithmic and marked there."""
    drawing, axes = _axes(x_label, y_label)
    for (name, (x, y)), colour, dashes in zip(series.items(), itertools.cycle(COLOURS), _dashes(), strict=False):
        if steps:
            axes.stairs(y, x, label=name, color=colour, linestyle=dashes, linewidth=1.4)
        else:
            axes.plot(x, y, label=name, color=colour, linestyle=dashes, linewidth=1.6,
                      marker="o" if ticks is not None else None, markersize=4)
    if ticks is not None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_ylim(bottom=0)
    _legend(axes)
    return Figure(draw(drawing, caption), {name: {x_label: np.asarray(x).tolist(), y_label: np.asarray(y).tolist()}
                                           for name, (x, y) in series.items()})


def points(sets: Mapping[str, np.ndarray], caption: str = "") -> Figure:
    """Sets of points [n, 2] in a plane; the axes mean nothing."""
    drawing, axes = _axes("", "", height=5.0)
    for (name, found), colour, marker in zip(sets.items(), itertools.cycle(COLOURS), itertools.cycle(MARKERS),
                                             strict=False):
        axes.plot(*found.T, marker, label=name, color=colour, markersize=4.5, alpha=0.55, markeredgewidth=0)
    axes.set_xticks([])
    axes.set_yticks([])
    _legend(axes)
    return Figure(draw(drawing, caption), {name: found.tolist() for name, found in sets.items()})


def _axes(x_label: str, y_label: str, height: float = 3.6) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Drawing
    drawing = Drawing(figsize=(8.0, height), layout="constrained")
    axes = drawing.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def _legend(axes: Any) -> None:
    """Beside the drawing, where it hides nothing."""
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)


def _dashes() -> itertools.cycle:
    return itertools.cycle(dashes for dashes in DASHES for _ in COLOURS)
