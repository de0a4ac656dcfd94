"""Turn a download into a normal nnU-Net raw dataset with labelled, unlabelled and test cases.

  covid-semiseg   8-bit pictures of COVID-19 CT slices (Inf-Net, https://github.com/DengPingFan/Inf-Net, for
                  non-commercial use): 50 labelled, 1,600 unlabelled, and the test set if SOURCE has `TestingSet`.
                  SOURCE is the folder `Dataset` of the release or its parent. Task `infection` (the default) or
                  `multiclass` (ground glass, consolidation). Spacing is 1: distances are in pixels.

Nothing is downloaded. Every image is checked; conversion_report.json says of each case whether it was written, repaired
(how) or rejected (why), with the SHA-256 of its source files. The dataset appears complete or not at all.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from nnunet_synth.dataset_conversion.writer import ConversionReport

HELP = "turn a public dataset into a raw nnU-Net dataset with unlabelled cases"
EXAMPLE = "nnunet_synth convert covid-semiseg ~/downloads/COVID-SemiSeg/Dataset -d 520 --task infection"


class Converter(NamedTuple):
    """A module of `dataset_conversion` with `describe(task)` and `find_cases(source, task)`."""

    module: str
    tasks: tuple[str, ...]          # the first is the default


CONVERTERS = {
    "covid-semiseg": Converter("covid_semiseg", ("infection", "multiclass")),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source_type", metavar="TYPE", choices=sorted(CONVERTERS),
                        help=f"which public dataset it is: {', '.join(sorted(CONVERTERS))}")
    parser.add_argument("source", metavar="SOURCE", help="folder of the extracted download")
    parser.add_argument("-d", "--dataset-id", type=int, required=True, metavar="ID",
                        help="id of the new nnU-Net dataset, 1 to 999")
    parser.add_argument("--name", help="name of the new dataset, letters and digits (default: that of the source)")
    parser.add_argument("--task", help="what is to be segmented (default: the first of the dataset's tasks)")
    parser.add_argument("--check", action="store_true", help="read and check everything, write nothing")
    parser.add_argument("--allow-rejected", action="store_true",
                        help="leave out labelled and test cases that cannot be used instead of stopping")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="worker processes (default: 1)")


def run(args: argparse.Namespace) -> None:
    convert(args.source_type, args.source, args.dataset_id, name=args.name, task=args.task, check=args.check,
            allow_rejected=args.allow_rejected, jobs=args.jobs)


def convert(source_type: str, source: str | Path, dataset_id: int, name: str | None = None, task: str | None = None,
            check: bool = False, allow_rejected: bool = False, jobs: int = 1) -> ConversionReport:
    """Convert one public dataset and print what became of its cases.

    Args:
        source_type: a key of `CONVERTERS`.
        source: folder of the extracted download; nothing is written there.
        dataset_id: 1 to 999, not in use.
        name: second part of DatasetXXX_Name.
        task: which labels; the first of the dataset's tasks if not given.
        check: only read, check and report.
        allow_rejected: leave out labelled and test cases that cannot be used.
        jobs: worker processes.

    Raises:
        UserError: unknown type or task, id in use, a source that is not this dataset, a case that cannot be used.
    """
    if source_type not in CONVERTERS:
        raise UserError(f"unknown dataset {source_type!r}: choose one of {', '.join(sorted(CONVERTERS))}")
    converter = CONVERTERS[source_type]
    task = task or converter.tasks[0]
    if task not in converter.tasks:
        raise UserError(f"{source_type} has no task {task!r}: choose one of {', '.join(converter.tasks)}")
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: at least one worker is needed")

    dataset = importlib.import_module(f"nnunet_synth.dataset_conversion.{converter.module}")
    description = dataset.describe(task)
    target = _target(dataset_id, name or description.name)

    from nnunet_synth.dataset_conversion.writer import write_dataset
    report = write_dataset(dataset.find_cases(source, task), description, target, num_jobs=jobs, check_only=check,
                           allow_rejected=allow_rejected)
    print(report.table())
    for note in description.notes:
        print(f"note: {note}")
    print(f"licence: {description.licence}\ncite: {description.citation}")
    if check:
        print("checked only, nothing was written")
    else:
        print(f"written to {target}; next: nnUNetv2_plan_and_preprocess -d {dataset_id} "
              f"-c {'2d' if description.num_dimensions == 2 else '2d 3d_fullres'} --verify_dataset_integrity, then "
              f"nnunet_synth layouts {dataset_id} --method threshold")
    return report


def _target(dataset_id: int, name: str) -> Path:
    """Where the dataset goes. Raises UserError when the id is in use in any of nnU-Net's folders."""
    from nnunet_synth.data.experiment import environment_folder
    if not 1 <= dataset_id <= 999:
        raise UserError(f"dataset id {dataset_id}: nnU-Net's ids are 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9]+", name):
        raise UserError(f"name {name!r}: use letters and digits only")
    raw = environment_folder("nnUNet_raw")
    # nnU-Net looks an id up in all three folders and stops when it finds two names.
    for folder in (raw, *_optional_folders("nnUNet_preprocessed", "nnUNet_results")):
        for existing in sorted(folder.glob(f"Dataset{dataset_id:03d}_*")):
            raise UserError(f"{existing} exists; choose another -d or remove it")
    return raw / f"Dataset{dataset_id:03d}_{name}"


def _optional_folders(*variables: str) -> list[Path]:
    return [Path(os.environ[variable]) for variable in variables if variable in os.environ]
