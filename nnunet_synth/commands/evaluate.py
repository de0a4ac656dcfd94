"""Compare predicted segmentations with the true ones: DSC, NSD and HD95 of each case and class.

PRED and GT are folders with the same file names. Classes and regions come from the dataset.json beside GT (or in it,
or in PRED), else each value that occurs in GT is a class. NSD and HD95 are DeepMind's (surface elements weighted by
their area), in mm; 2D images such as PNG have no spacing, there one pixel counts as one mm.

Where prediction and truth are both empty, a case has no score and is left out of the mean (num_both_empty says how
many). Where only one is empty, DSC and NSD are 0 and HD95 is the diagonal of the image.

Writes evaluation.csv (one line a case and class) and evaluation.json (the same and the summary).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from nnunet_synth.errors import UserError

HELP = "compare predictions with the truth: DSC, NSD, HD95"
EXAMPLE = "nnunet_synth evaluate predictions/ $nnUNet_raw/Dataset501_Lungs/labelsTs --tolerance 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", metavar="PRED", type=Path, help="folder of predicted label maps")
    parser.add_argument("truth", metavar="GT", type=Path, help="folder of true label maps")
    parser.add_argument("--labels", nargs="+", metavar="LABEL",
                        help="evaluate these only: names from dataset.json, or values (default: all)")
    parser.add_argument("--tolerance", type=float, default=1.0, help="of the NSD, in mm (default: 1)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the results go (default: PRED)")
    parser.add_argument("--dataset-json", type=Path, metavar="FILE", help="names the classes, regions and ignore label")


def run(args: argparse.Namespace) -> None:
    evaluate(args.predictions, args.truth, args.labels, args.tolerance, args.output, args.dataset_json)


def evaluate(predictions: str | Path, truth: str | Path, labels: Sequence[str | int] | None = None,
             tolerance: float = 1.0, output: str | Path | None = None, dataset_json: str | Path | None = None) -> dict:
    """Write and print what this module's docstring says.

    Args:
        predictions, truth: folders with the same file names.
        labels: names (with a dataset.json) or values; None = all foreground classes.
        tolerance: of the NSD, mm.
        output: folder for the results; None = `predictions`.
        dataset_json: nnU-Net's; None = the one beside or in `truth`, or in `predictions`, if any.

    Returns:
        The results as in `evaluation.json`, NaN where that has null.

    Raises:
        UserError: names, geometry or label values do not match, an unreadable file, an unknown label.
    """
    from nnunet_synth.evaluation.segmentation import classes_of, evaluate_folders, write_results
    predictions, truth = Path(predictions), Path(truth)
    candidates = [truth.absolute().parent, truth, predictions]
    dataset_json = Path(dataset_json) if dataset_json else next(
        (folder / "dataset.json" for folder in candidates if (folder / "dataset.json").is_file()), None)
    classes, ignore, declared = classes_of(dataset_json) if dataset_json else (None, None, None)
    if labels:
        classes = _select(classes, labels, dataset_json)
    results = evaluate_folders(predictions, truth, classes, ignore, declared, tolerance)
    write_results(results, Path(output or predictions))
    print(table(results))
    return results


def _select(classes: dict[str, list[int]] | None, labels: Sequence[str | int], source: Path | None) -> dict:
    """The classes that `labels` names, by name or by value."""
    named = classes or {}
    values = {str(value[0]): name for name, value in named.items() if len(value) == 1}
    selected = {}
    for label in map(str, labels):
        name = label if label in named else values.get(label)
        if name is not None:
            selected[name] = named[name]
        elif classes is None and label.isdecimal():
            selected[label] = [int(label)]
        else:
            known = f"{source} declares {', '.join(named)}" if source else "without a dataset.json give values, 1 2 …"
            raise UserError(f"unknown label {label!r}: {known}")
    return selected


def table(results: dict) -> str:
    """The summary as text: mean ± standard deviation over the cases that have a score."""
    unit = results["unit"]
    headings = ["DSC", f"NSD at {results['tolerance']:g} {unit}", f"HD95 ({unit})"]
    lines = ["  ".join([f"{'class':<20}", "cases", "both empty", *(f"{heading:>17}" for heading in headings)])]
    for name, summary in results["summary"].items():
        cells = [_mean_sd(summary[metric], digits) for metric, digits in (("DSC", 3), ("NSD", 3), ("HD95", 2))]
        lines.append("  ".join([f"{name:<20}", f"{summary['num_cases']:>5}", f"{summary['num_both_empty']:>10}",
                                *(f"{cell:>17}" for cell in cells)]))
    return "\n".join(lines)


def _mean_sd(score: dict[str, float], digits: int) -> str:
    if math.isnan(score["mean"]):
        return "-"
    spread = "" if math.isnan(score["sd"]) else f" ± {score['sd']:.{digits}f}"
    return f"{score['mean']:.{digits}f}{spread}"
