"""What the runs of a study have left: scores by test set and label ratio, costs, learning curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunet_synth.evaluation.comparison import Comparison, compare_methods, tidy
from nnunet_synth.evaluation.segmentation import METRICS
from nnunet_synth.evaluation.training_log import read_training_logs, series
from nnunet_synth.study.board import Board
from nnunet_synth.study.learn import Evaluate, Pretrain, Train
from nnunet_synth.study.plan import ALL_LABELS, DatasetPlan, Published, Study
from nnunet_synth.study.run import Run


@dataclass
class Table:
    """All scores of one dataset, test set, label ratio and checkpoint.

    Attributes:
        ratio: of the methods that have no ratio of their own; those stand in the table of every ratio.
        rows: tidy rows, in the order of the study's methods; only of whole seeds.
        evaluations: (method, seed key) → its run.
        unfinished: ids of the evaluations that are not done.
    """

    dataset: DatasetPlan
    test: str
    ratio: str
    checkpoint: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[tuple[str, str], Evaluate] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    unit: str = "mm"

    @property
    def title(self) -> str:
        tests = {"own": "its test set", "val": "the validation cases of its folds"}
        number, _, part = self.test.partition(":")
        other = f"dataset {number}{' (labelled cases)' if part else ''}"
        return f"{self.dataset.name}, {in_words(self.ratio)}, tested on {tests.get(self.test, other)}"

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row["method"] for row in self.rows))

    @property
    def classes(self) -> list[str]:
        return list(dict.fromkeys(row["class"] for row in self.rows))

    def comparisons(self, baseline: str, measures: Sequence[str] = METRICS) -> list[Comparison]:
        """Every method against the baseline; raises UserError where it has no scores yet, or there is one case only."""
        return compare_methods(self.rows, baseline, measures)

    def reports(self, study: Study, row: Published) -> bool:
        """Whether a published row belongs beside this table."""
        method = study.methods.get(row.method)
        ratio = method.labelled if method and method.labelled else self.ratio
        return row.dataset in (None, self.dataset.name) and row.test in (None, self.test) and \
            row.labelled in (None, ratio)

    def published(self, study: Study, measure: str, class_name: str) -> dict[str, float]:
        """Method → what a paper reports here, as a share (HD95 in mm)."""
        return {row.method: in_our_unit(measure, row.scores[measure]) for row in study.published
                if self.reports(study, row) and measure in row.scores
                and (row.class_name or self.classes[0]) == class_name}


def in_words(ratio: str) -> str:
    """"10%" → "10% of the labels"."""
    if ratio == ALL_LABELS:
        return "all labels"
    return f"{ratio} of the labels" if ratio.endswith("%") else f"{ratio} labelled cases"


def in_our_unit(measure: str, value: float) -> float:
    return value if measure == "HD95" else value / 100


def tables_of(study: Study, runs: Sequence[Run]) -> list[Table]:
    """One table a dataset, test set, ratio and checkpoint; those without any score have no rows."""
    order = {method: number for number, method in enumerate(study.methods)}
    evaluations = sorted(_evaluations(runs), key=lambda run: order[run.what.method])
    results = {run.id: json.loads(run.results.read_text(encoding="utf-8")) for run in evaluations if _has_scores(run)}
    tables = []
    for dataset in study.datasets.values():
        for test in dataset.tests:
            for checkpoint in dict.fromkeys(run.what.checkpoint for run in evaluations):
                for ratio in dataset.labelled:
                    cell = (dataset.name, test, checkpoint)
                    here = [run for run in evaluations
                            if (run.what.dataset, run.what.test, run.what.checkpoint) == cell and
                            run.what.ratio == (study.methods[run.what.method].labelled or ratio)]
                    if here:
                        tables.append(_table(Table(dataset, test, ratio, checkpoint), here, results))
    return tables


def _has_scores(run: Evaluate) -> bool:
    return run.results.is_file() and run.is_done()


def _table(table: Table, evaluations: Sequence[Evaluate], results: Mapping[str, dict[str, Any]]) -> Table:
    num_folds = len(table.dataset.folds)
    by_seed: dict[tuple[str, str], list[Evaluate]] = {}
    for run in evaluations:
        by_seed.setdefault((run.what.method, _seed_key(run, num_folds)), []).append(run)
        if run.id not in results:
            table.unfinished.append(run.id)
    for (method, seed), parts in by_seed.items():
        if any(run.id not in results for run in parts):
            continue            # a seed counts when all its folds are done: other cases, other mean
        for run in parts:
            table.rows.extend(tidy(results[run.id], method, seed))
        table.evaluations[method, seed] = parts[0]
        table.unit = results[parts[0].id]["unit"]
    return table


def _seed_key(run: Evaluate, num_folds: int) -> str:
    """What counts as one trained run of a method: all folds together where each has validation cases of its own, else
    every training, because all folds predict the same test cases."""
    if run.what.test == "val" or num_folds == 1:
        return str(run.what.seed)
    return f"{run.what.seed}/fold {run.what.fold}"


# ----------------------------------------------------------------------------------------------------------------------
# Costs and curves


@dataclass(frozen=True)
class Cost:
    """What the trainings of a method took; sums over those that this study measured."""

    name: str
    num_runs: int
    num_measured: int
    hours: float | None
    gpu_hours: float | None
    peak_memory: float | None       # MiB, the highest of all its runs


def costs_of(study: Study, runs: Sequence[Run], board: Board) -> list[Cost]:
    """Of every method, then of every synthesizer."""
    groups: dict[str, list[Run]] = {}
    slugs = {method.slug: method.name for method in study.methods.values()}
    for run in runs:
        if isinstance(run, Train) and run.is_trained:
            groups.setdefault(slugs[run.id.split("/")[1]], []).append(run)
    for run in runs:
        if isinstance(run, Pretrain) and board.entries[run.id].state == "done":
            groups.setdefault(f"pretraining {run.plan.name}", []).append(run)
    return [_cost(name, [board.entries[run.id] for run in found]) for name, found in groups.items()]


def _cost(name: str, entries: Sequence[Any]) -> Cost:
    measured = [entry for entry in entries if entry.seconds]
    hours = sum(entry.seconds for entry in measured) / 3600 if measured else None
    on_gpu = [entry.seconds / 3600 for entry in measured if entry.device.startswith("cuda")]
    memory = [entry.peak_memory for entry in measured if entry.peak_memory]
    return Cost(name, len(entries), len(measured), hours, sum(on_gpu) if on_gpu else None,
                max(memory) if memory else None)


def learning_curves_of(study: Study, runs: Sequence[Run], dataset: DatasetPlan, ratio: str,
                       name: str = "Pseudo dice") -> dict[str, list[dict[int, float]]]:
    """Method → one curve a training of this dataset and ratio."""
    trainings = {run.id: run for run in runs if isinstance(run, Train)}
    curves: dict[str, list[dict[int, float]]] = {}
    seen = set()
    order = list(study.methods)
    for run in sorted(_evaluations(runs), key=lambda run: order.index(run.what.method)):
        what = run.what
        if what.dataset != dataset.name or what.train in seen or \
                what.ratio != (study.methods[what.method].labelled or ratio):
            continue
        seen.add(what.train)
        if curve := series(read_training_logs(trainings[what.train].folder), name):
            curves.setdefault(what.method, []).append(curve)
    return curves


def _evaluations(runs: Sequence[Run]) -> Iterator[Evaluate]:
    return (run for run in runs if isinstance(run, Evaluate))
