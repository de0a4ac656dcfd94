"""The result of a study: study.json (everything), study.md (the tables) and report.html."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnunet_synth import __version__
from nnunet_synth.atomic import write_json, write_text
from nnunet_synth.data.raw_images import list_cases
from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.case_gallery import CaseFiles, case_galleries
from nnunet_synth.evaluation.comparison import Comparison, mean_over_seeds
from nnunet_synth.evaluation.plots import Point, box_plots, label_ratio_curves, learning_curves
from nnunet_synth.evaluation.report import Part, Report, Section, Text, finite, write_report
from nnunet_synth.evaluation.report import Table as Printed
from nnunet_synth.evaluation.segmentation import METRICS, classes_of, headings, reader_of
from nnunet_synth.evaluation.tables import measure_table, overview_table
from nnunet_synth.json_file import read_object
from nnunet_synth.study.board import Board
from nnunet_synth.study.collect import Cost, Table, costs_of, in_our_unit, in_words, learning_curves_of, tables_of
from nnunet_synth.study.learn import BEST, FINAL, Evaluate, Predict
from nnunet_synth.study.place import Place
from nnunet_synth.study.plan import Published, Study
from nnunet_synth.study.run import Run

SHOWN = ("DSC", "NSD")          # the measures with a table, box plots and label-ratio curves of their own


def write_result(study: Study, board: Board, place: Place) -> Path:
    """Write the three files into the study's folder, from what is done so far; returns the path of report.html."""
    runs = board.runs
    tables = tables_of(study, runs)
    costs = costs_of(study, runs, board)
    compared = [(table, *_compare(study, table)) for table in tables]
    sections = [Section("What was compared", [Text(study.description or study.title), _methods(study)])]
    for table, comparisons, problem in compared:
        if table.checkpoint == FINAL:
            sections.append(Section(table.title, [*_scores(study, table, comparisons, problem),
                                                  *_pictures(study, table, runs)]))
    sections += list(_curves(study, runs, compared))
    sections += list(_best_checkpoints(study, compared))
    if study.published:
        sections.append(Section("Published", [_published(study, compared)]))
    sections.append(Section("Cost", [_costs(costs)]))
    sections.append(Section("Runs", [Text(board.count()), *_unfinished(board)]))
    facts = _facts(study, place)
    report = place.folder / "report.html"
    write_report(Report(study.title, sections, facts), report)
    write_text(_markdown(study.title, sections, facts), place.folder / "study.md")
    write_json(finite({
        "study": study.content, "facts": facts,
        "tables": [{"dataset": table.dataset.name, "test": table.test, "labelled": table.ratio,
                    "checkpoint": table.checkpoint, "rows": table.rows, "problem": problem,
                    "comparisons": [asdict(comparison) for comparison in comparisons],
                    "unfinished": table.unfinished} for table, comparisons, problem in compared],
        "costs": [asdict(cost) for cost in costs],
        "runs": {run.id: asdict(board.entries[run.id]) for run in runs}}), place.folder / "study.json")
    return report


def _compare(study: Study, table: Table) -> tuple[list[Comparison], str]:
    """Comparisons with the baseline, or why there are none yet."""
    if not table.rows:
        return [], "No scores yet."
    try:
        return table.comparisons(study.baseline), ""
    except UserError as error:
        return [], f"Nothing to compare yet: {error}."


# ----------------------------------------------------------------------------------------------------------------------
# Sections


def _methods(study: Study) -> Printed:
    rows = []
    for method in study.methods.values():
        settings = ", ".join(f"{key}={value}" for key, value in method.settings.items())
        rows.append([method.name, method.trainer, method.synthesizer or "–", method.teacher or "–",
                     method.labelled or "–", method.data_in_words, settings or "–", method.missing or ""])
    budget = ", ".join(f"{key}={value}" for key, value in study.budget.items()) or "nnU-Net's"
    return Printed(["method", "trainer", "synthesizer", "teacher", "labelled", "data", "settings", "left out because"],
                   rows, f"Budget of each training: {budget}. Seeds: {', '.join(map(str, study.seeds))}. Trainers of "
                   "nnU-Net itself keep their own budget and are not seeded.")


def _scores(study: Study, table: Table, comparisons: Sequence[Comparison], problem: str) -> Iterator[Part]:
    if problem:
        yield Text(problem)
    names = headings(study.measures.criteria.tolerance, table.unit)
    for class_name in table.classes if comparisons else []:
        if len(table.classes) > 1:
            yield Text(f"Class {class_name}:")
        yield overview_table(comparisons, class_name, names)
        for measure in SHOWN:
            yield measure_table(comparisons, class_name, measure, names[measure],
                                table.published(study, measure, class_name) or None)
            yield box_plots(mean_over_seeds(table.rows, measure, class_name), names[measure],
                            f"{names[measure]} of each case, mean over seeds.")
    if table.unfinished:
        listed = ", ".join(table.unfinished[:6]) + (", …" if len(table.unfinished) > 6 else "")
        yield Text(f"Not in this table, because they are not done: {listed}. A seed counts when all its folds are "
                   "done.")


def _pictures(study: Study, table: Table, runs: Sequence[Run]) -> Iterator[Part]:
    """The first seed that every method has, or nothing."""
    seeds = list(dict.fromkeys(seed for _, seed in table.evaluations))
    seed = next((seed for seed in seeds if all((method, seed) in table.evaluations for method in table.methods)), None)
    if seed is None:
        return
    evaluations = {method: table.evaluations[method, seed] for method in table.methods}
    first = next(iter(evaluations.values()))
    class_name, scores = table.classes[0], {}
    for method in table.methods:
        own = {row["case"]: row["DSC"] for row in table.rows
               if (row["method"], row["seed"], row["class"]) == (method, seed, class_name)}
        scores[method] = {case: math.nan if score is None else score for case, score in own.items()}
    if table.test == "val":         # of several folds only the first one's cases lie in the first run's folder
        ending = _ending(first)
        scores = {method: {case: score for case, score in own.items() if (first.truth / f"{case}{ending}").is_file()}
                  for method, own in scores.items()}
    folder = _images(first, runs)
    ending = _ending(first)
    images = list_cases(folder, ending)
    rivals = [method for method in scores if not study.methods[method].labelled] or list(scores)
    best = max(rivals, key=lambda method: statistics.mean(
        [score for score in scores[method].values() if not math.isnan(score)] or [0.0]))
    classes = classes_of(first.dataset_json)[0]
    case = next(iter(scores[best]))
    try:
        yield from case_galleries(
            scores, best, lambda case: CaseFiles(images[case], first.truth / f"{case}{ending}", {
                method: run.predictions / f"{case}{ending}" for method, run in evaluations.items()}),
            reader_of(ending, first.truth / f"{case}{ending}"), values=classes[class_name],
            window=study.measures.window)
        yield Text(f"Pictures: seed {seed}, class {class_name}.")
    except (UserError, KeyError) as error:
        yield Text(f"No pictures: {error}")


def _ending(run: Evaluate) -> str:
    return read_object(run.dataset_json, "restore it", "correct it", "file_ending")["file_ending"]


def _images(run: Evaluate, runs: Sequence[Run]) -> Path:
    """Where the images of a test set lie."""
    predict = next((other for other in runs if isinstance(other, Predict) and other.id in run.needs), None)
    return predict.images if predict else run.dataset_json.parent / "imagesTr"


def _curves(study: Study, runs: Sequence[Run], compared: Sequence[tuple[Table, list[Comparison], str]],
            ) -> Iterator[Section]:
    parts: list[Part] = []
    for dataset in study.datasets.values():
        for test in dataset.tests:
            here = [(table, comparisons) for table, comparisons, _ in compared if comparisons and
                    (table.dataset.name, table.test, table.checkpoint) == (dataset.name, test, FINAL)]
            if len(here) > 1:
                parts += [_ratio_curves(study, here, measure) for measure in SHOWN]
        for ratio in dataset.labelled:
            if curves := learning_curves_of(study, runs, dataset, ratio):
                parts.append(learning_curves(curves, "pseudo Dice", f"{dataset.name}, {in_words(ratio)}: Dice of "
                                             "validation patches after each epoch, as nnU-Net logs it; with fold all, "
                                             "of training cases. Band: lowest to highest run."))
    if parts:
        yield Section("Curves", parts)


def _ratio_curves(study: Study, here: Sequence[tuple[Table, list[Comparison]]], measure: str) -> Part:
    points: dict[str, dict[float, Point]] = {}
    published: dict[str, dict[float, float]] = {}
    everything = None
    class_name = here[0][0].classes[0]
    for table, comparisons in here:
        amount = float(table.ratio.rstrip("%"))
        for entry in comparisons:
            if (entry.class_name, entry.measure) != (class_name, measure):
                continue
            if study.methods[entry.method].labelled:
                everything = entry.mean
            else:
                points.setdefault(entry.method, {})[amount] = Point(entry.mean, entry.low, entry.high)
        for method, value in table.published(study, measure, class_name).items():
            if method in points:
                published.setdefault(method, {})[amount] = value
    table = here[0][0]
    unit = "%" if table.ratio.endswith("%") else "cases"
    name = headings(study.measures.criteria.tolerance, table.unit)[measure]
    return label_ratio_curves(points, f"labelled ({unit})", name, f"{table.dataset.name}, {name} by the amount of "
                              "labels; bars: bootstrap 95 % intervals.", published, everything)


def _best_checkpoints(study: Study, compared: Sequence[tuple[Table, list[Comparison], str]]) -> Iterator[Section]:
    parts: list[Part] = []
    for table, comparisons, _ in compared:
        if table.checkpoint == BEST and comparisons:
            names = headings(study.measures.criteria.tolerance, table.unit)
            parts += [Text(f"{table.title}:"), *(overview_table(comparisons, name, names) for name in table.classes)]
    if parts:
        yield Section("Beside it: nnU-Net's best checkpoints", [
            Text("The checkpoint with the best moving average of the pseudo Dice of validation patches. The tables "
                 "above are of the final checkpoints, which nothing was chosen for."), *parts])


def _published(study: Study, compared: Sequence[tuple[Table, list[Comparison], str]]) -> Printed:
    rows = [[row.method, row.dataset or "–", row.labelled or "–", row.test or "–", measure,
             in_our_unit(measure, value), _ours(study, row, measure, compared), row.source]
            for row in study.published for measure, value in row.scores.items()]
    return Printed(["method", "dataset", "labelled", "test", "measure", "published", "ours", "source"], rows,
                   "What the papers report, with other networks, budgets and often other cases; ours where the study "
                   "has it.")


def _ours(study: Study, row: Published, measure: str,
          compared: Sequence[tuple[Table, list[Comparison], str]]) -> float | None:
    for table, comparisons, _ in compared:
        if table.checkpoint == FINAL and table.reports(study, row):
            for entry in comparisons:
                class_name = row.class_name or table.classes[0]
                if (entry.method, entry.measure, entry.class_name) == (row.method, measure, class_name):
                    return entry.mean
    return None


def _costs(costs: Sequence[Cost]) -> Printed:
    rows = [[cost.name, cost.num_runs, cost.num_measured, cost.hours, cost.gpu_hours,
             None if cost.peak_memory is None else round(cost.peak_memory)]
            for cost in costs]
    return Printed(["method", "trainings", "measured", "hours", "GPU-hours", "peak memory (MiB)"], rows,
                   "Wall clock of the trainings that this study ran itself, with their validation, over all seeds, "
                   "folds and attempts; the highest resident memory of a training's processes (host, not GPU).",
                   digits=2)


def _unfinished(board: Board) -> Iterator[Part]:
    lines = [board.line(run) for run in board.runs if board.entries[run.id].state != "done"]
    if lines:
        yield Text("\n".join(lines), is_code=True)


def _facts(study: Study, place: Place) -> dict[str, Any]:
    from importlib.metadata import version
    return {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "study": study.name,
            "device": _device(place.device), "machine": f"{platform.machine()}, {platform.system()}",
            "Python": platform.python_version(), "nnunet_synth": __version__, "nnunetv2": version("nnunetv2"),
            "torch": version("torch"), "primary checkpoint": f"checkpoint_{FINAL}.pth",
            "mirroring": study.measures.mirroring, "metrics": ", ".join(METRICS)}


def _device(device: str) -> str:
    import torch
    return torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device


def _markdown(title: str, sections: Sequence[Section], facts: dict[str, Any]) -> str:
    """Text and tables, no pictures."""
    blocks = [f"# {title}"]
    for section in sections:
        parts = [part.markdown([]) for part in section.parts if isinstance(part, Text | Printed)]
        if parts:
            blocks += [f"## {section.title}", *parts]
    return "\n\n".join([*blocks, "---", "\n".join(f"- {name}: {value}" for name, value in facts.items())]) + "\n"


