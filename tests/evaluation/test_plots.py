"""What is drawn is what was given."""

import json
import math

import numpy as np
import pytest

from nnunet_synth.evaluation import plots
from nnunet_synth.evaluation.plots import Point, box_plots, label_ratio_curves, learning_curves, over_seeds
from nnunet_synth.evaluation.report import Report, Section, write_report

SCORES = {"nnUNetTrainer": {"a": 0.5, "b": 0.25, "c": 0.75, "d": math.nan},
          "CPS & more": {"a": 0.5, "b": 0.5, "c": 1.0}}
RUNS = {"CPSTrainer": [{1: 0.0, 2: 0.5, 3: 0.5}, {1: 0.5, 2: 1.0}], "nnUNetTrainer": [{1: 0.25, 2: math.nan, 3: 0.5}]}
POINTS = {"CPSTrainer": {10: Point(0.5, 0.4, 0.7), 20: Point(0.6, math.nan, math.nan)}, "SACPSTrainer": {
    10: Point(0.6, 0.5, 0.65), 20: Point(0.7, 0.6, 0.75)}}


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the last drawing, before it becomes a picture."""
    kept = {}
    draw = plots.draw
    monkeypatch.setattr(plots, "draw", lambda drawing, caption: (kept.update(axes=drawing.axes[0]),
                                                                 draw(drawing, caption))[1])
    return kept


def test_boxes_show_every_case(drawn):
    figure = box_plots(SCORES, "DSC", "per case")
    axes = drawn["axes"]
    points = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    assert [sorted(line) for line in points] == [[0.25, 0.5, 0.75], [0.5, 0.5, 1.0]]
    medians = [line for line in axes.lines if line.get_color() == plots.COLOURS[1]]
    assert [(line.get_xdata()[0], round(line.get_ydata().mean())) for line in medians] == [(0.5, 2), (0.5, 1)]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(SCORES) and axes.get_xlabel() == "DSC"
    assert figure.values["scores"]["nnUNetTrainer"] == {"a": 0.5, "b": 0.25, "c": 0.75}


def test_mean_over_the_runs_that_got_so_far(drawn):
    assert over_seeds(RUNS["CPSTrainer"]) == {1: Point(0.25, 0.0, 0.5), 2: Point(0.75, 0.5, 1.0),
                                              3: Point(0.5, 0.5, 0.5)}
    assert list(over_seeds(RUNS["nnUNetTrainer"])) == [1, 3] and over_seeds([]) == {}
    learning_curves(RUNS, "pseudo Dice")
    axes = drawn["axes"]
    assert [(line.get_label(), line.get_xydata().tolist()) for line in axes.lines] == [
        ("CPSTrainer", [[1, 0.25], [2, 0.75], [3, 0.5]]), ("nnUNetTrainer", [[1, 0.25], [3, 0.5]])]
    band, = axes.collections        # one run has no range
    assert band.get_paths()[0].get_extents().bounds == (1, 0, 2, 1)


def test_label_ratios(drawn):
    label_ratio_curves(POINTS, "labelled cases (%)", "DSC", published={"CPSTrainer": {10: 0.55}}, full_supervision=0.9)
    axes = drawn["axes"]
    ours = [container.lines[0] for container in axes.containers]
    assert [line.get_ydata().tolist() for line in ours] == [[0.5, 0.6], [0.6, 0.7]]
    assert all(np.abs(line.get_xdata() - [10, 20]).max() < 2 for line in ours)
    low, high = axes.containers[1].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.5, 0.65))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["CPSTrainer", "CPSTrainer (published)", "SACPSTrainer", "all labels"]
    theirs, = (line for line in axes.lines if line.get_label() == "CPSTrainer (published)")
    assert theirs.get_color() == ours[0].get_color() and theirs.get_xydata().tolist() == [[10, 0.55]]


def test_every_method_gets_a_line_of_its_own(drawn):
    learning_curves({f"method {number}": [{1: 0.0, 2: 1.0}] for number in range(20)}, "loss")
    styles = {(line.get_color(), line.get_linestyle()) for line in drawn["axes"].lines}
    assert len(drawn["axes"].lines) == len(styles) == 20


def test_in_a_report(tmp_path):
    figures = [box_plots(SCORES, "DSC"), learning_curves(RUNS, "pseudo Dice"), label_ratio_curves(POINTS, "%", "DSC"),
               box_plots({"a": {"case": math.nan}}, "DSC"), learning_curves({}, "loss"),
               label_ratio_curves({}, "%", "DSC")]
    assert box_plots(SCORES, "DSC").picture == figures[0].picture       # the same bytes
    write_report(Report("Plots", [Section("All", figures)]), tmp_path / "report.html")
    parts = json.loads((tmp_path / "report.json").read_text())["sections"][0]["parts"]
    assert parts[1]["values"]["runs"]["nnUNetTrainer"] == [{"1": 0.25, "2": None, "3": 0.5}]
    assert parts[2]["values"]["points"]["CPSTrainer"]["10"] == {"mean": 0.5, "low": 0.4, "high": 0.7}
    assert b"CPS &amp; more" in figures[0].picture.content
