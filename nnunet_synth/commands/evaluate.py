"""Compare predicted segmentations with the true ones: DSC, NSD, HD95, precision, recall and lesion-wise F1.

PRED and GT are folders with the same file names. Classes and regions come from the dataset.json beside GT (or in it,
or in PRED), else each value that occurs in GT is a class. NSD and HD95 are DeepMind's (surface elements weighted by
their area), in mm; pictures such as PNG have no spacing, there one pixel counts as one mm. 2D files and volumes of one
slice are measured in their plane.

Lesions are connected components. A true lesion is found if --lesion-overlap of it is covered by the prediction, a
predicted one is confirmed if that share of it lies in the truth (Commowick et al. 2018); lesion_F1 joins both shares.

Detection asks of each slice whether a class is found in it (LcGAN): precision and recall over the slices of all cases,
where a slice counts as falsely found from --min-false-positive pixels on (200 of 512², as in the paper), and as found
from a DSC of --min-slice-dice.

Where prediction and truth are both empty, a case has no score and is left out of the mean (num_both_empty says how
many). Where only one is empty, HD95 is the diagonal of the image and every other measure is 0.

Writes evaluation.csv (one line a case and class) and evaluation.json (the same and the summary).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from nnunet_synth.argument_types import real, whole
from nnunet_synth.bounds import FRACTION, Bounds
from nnunet_synth.errors import UserError

EXAMPLE = "nnunet_synth evaluate predictions/ $nnUNet_raw/Dataset501_Lungs/labelsTs --tolerance 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", metavar="PRED", type=Path, help="folder of predicted label maps")
    parser.add_argument("truth", metavar="GT", type=Path, help="folder of true label maps")
    parser.add_argument("--labels", nargs="+", metavar="LABEL",
                        help="evaluate these only: names from dataset.json, or values (default: all)")
    parser.add_argument("--tolerance", type=real(Bounds(low=0, high=10**4)), default=1.0,
                        help="of the NSD, in mm (default: 1)")
    parser.add_argument("--lesion-overlap", type=real(FRACTION), default=0.1, metavar="SHARE",
                        help="of a lesion, to count it as found or confirmed (default: 0.1)")
    parser.add_argument("--min-lesion-volume", type=real(Bounds(low=0, high=10**9)), default=0.0, metavar="MM3",
                        help="components below this are no lesions (mm³; one slice: mm², pictures: pixels; default: 0)")
    parser.add_argument("--min-false-positive", type=whole(Bounds(low=0, high=10**9)), metavar="PIXELS",
                        help="false detections in a slice count from this area on (default: 200 in a slice of 512², "
                             "the same share of other sizes)")
    parser.add_argument("--min-slice-dice", type=real(FRACTION), default=0.25, metavar="DSC",
                        help="detections in a slice count as true from this DSC on (default: 0.25)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the results go (default: PRED)")
    parser.add_argument("--dataset-json", type=Path, metavar="FILE", help="names the classes, regions and ignore label")


def run(args: argparse.Namespace) -> None:
    evaluate(args.predictions, args.truth, args.labels, args.tolerance, args.output, args.dataset_json,
             args.lesion_overlap, args.min_lesion_volume, args.min_false_positive, args.min_slice_dice)


def evaluate(predictions: str | Path, truth: str | Path, labels: Sequence[str | int] | None = None,
             tolerance: float = 1.0, output: str | Path | None = None, dataset_json: str | Path | None = None,
             lesion_overlap: float = 0.1, min_lesion_volume: float = 0.0,
             min_false_positive: int | None = None, min_slice_dice: float = 0.25) -> dict:
    """Write and print what this module's docstring says.

    Args:
        predictions, truth: folders with the same file names.
        labels: names (with a dataset.json) or values; None = all foreground classes.
        tolerance: of the NSD, mm.
        output: folder for the results; None = `predictions`.
        dataset_json: nnU-Net's; None = the one beside or in `truth`, or in `predictions`, if any.
        lesion_overlap: share of a lesion that must be covered.
        min_lesion_volume: mm³ (one slice: mm², pictures: pixels); smaller components are no lesions.
        min_false_positive: pixels of a slice; a class found in a slice without it counts from this area on;
            None = 200 in a slice of 512², the same share of other sizes.
        min_slice_dice: a class counts as found in a slice that has it from this DSC of the slice on.

    Returns:
        The results as in `evaluation.json`, NaN where that has null.

    Raises:
        UserError: names, geometry or label values do not match, an unreadable file, an unknown label, a value out of
            its range.
    """
    from nnunet_synth.evaluation.segmentation import Criteria, classes_of, evaluate_folders, write_results
    criteria = Criteria(tolerance, lesion_overlap, min_lesion_volume, min_false_positive, min_slice_dice)
    predictions, truth = Path(predictions), Path(truth)
    candidates = [truth.absolute().parent, truth, predictions]
    dataset_json = Path(dataset_json) if dataset_json else next(
        (folder / "dataset.json" for folder in candidates if (folder / "dataset.json").is_file()), None)
    classes, ignore, declared = classes_of(dataset_json) if dataset_json else (None, None, None)
    if labels:
        classes = _select(classes, labels, dataset_json)
    results = evaluate_folders(predictions, truth, classes, ignore, declared, criteria)
    folder = Path(output or predictions)
    write_results(results, folder)
    print("\n".join([table(results), *remarks(results), f"Written: {folder / 'evaluation.csv'} and evaluation.json"]))
    return results


def remarks(results: dict) -> list[str]:
    """What a reader of the table has to know, a line each."""
    found, slices = [], results["single_slices"]
    cases = {row["case"] for row in results["cases"]}
    if 0 < len(slices) < len(cases):
        listed = ", ".join(slices[:3]) + (", …" if len(slices) > 3 else "")
        what = "is a single slice, measured in its" if len(slices) == 1 else "are single slices, measured in their"
        found.append(f"note: {len(slices)} of {len(cases)} cases {what} plane ({listed}): there, volumes are mm²")
    if results["tolerance"] < results["coarsest_spacing"]:
        found.append(f"note: the tolerance of {results['tolerance']:g} {results['unit']} is below the largest spacing "
                     f"({results['coarsest_spacing']:.3g} {results['unit']}): along it, an error of one voxel counts "
                     "in full")
    return found


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
    """The summary as text, a column a class: mean ± standard deviation over the cases that have a score."""
    from nnunet_synth.evaluation.segmentation import DIGITS, headings
    summaries = results["summary"].values()
    lines = [["", *results["summary"]], ["cases", *(f"{summary['num_cases']}" for summary in summaries)],
             ["both empty", *(f"{summary['num_both_empty']}" for summary in summaries)]]
    lines += [[heading, *(_mean_sd(summary[metric], DIGITS[metric]) for summary in summaries)]
              for metric, heading in headings(results["tolerance"], results["unit"]).items()]
    lines += [[f"{measure} of slices", *(_mean_sd({"mean": summary["slices"][measure], "sd": math.nan}, 3)
                                         for summary in summaries)] for measure in ("precision", "recall")]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join("  ".join([line[0].ljust(first), *map(str.rjust, line[1:], widths)]) for line in lines)


def _mean_sd(score: dict[str, float], digits: int) -> str:
    if math.isnan(score["mean"]):
        return "-"
    spread = "" if math.isnan(score["sd"]) else f" ± {score['sd']:.{digits}f}"
    return f"{score['mean']:.{digits}f}{spread}"
