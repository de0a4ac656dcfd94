"""Turn a download into a normal nnU-Net raw dataset with labelled, unlabelled and test cases.

SOURCE is the folder of the downloaded archives, of the extracted ones, or one archive (.zip, .tar). Archives are read
without being unpacked, and nothing is downloaded: `nnunet_synth convert TYPE --help` says where the data is to be had,
under which licence, how large it is and which files are expected.

Every image is checked; conversion_report.json says of each case whether it was written, repaired (how) or rejected
(why), with the SHA-256 of its source files. The dataset appears complete or not at all; a conversion that was stopped
goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_synth.argument_types import whole
from nnunet_synth.bounds import DATASET_ID, JOBS
from nnunet_synth.dataset_conversion.converter import CONVERTERS, load_converter
from nnunet_synth.errors import UserError
from nnunet_synth.process_counts import check_jobs

if TYPE_CHECKING:
    from nnunet_synth.dataset_conversion.writer import ConversionReport

EXAMPLE = "nnunet_synth convert mosmed ~/downloads/COVID19_1110 -d 521 --jobs 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    types = parser.add_subparsers(dest="source_type", metavar="TYPE", required=True,
                                  parser_class=argparse.ArgumentParser,
                                  help="which download it is; TYPE --help shows its options and the expected files")
    for name in CONVERTERS:
        converter = load_converter(name)
        type_parser = types.add_parser(name, help=converter.HELP.replace("%", "%%"), description=converter.__doc__,
                                       epilog=f"example:\n  {converter.EXAMPLE}",
                                       formatter_class=argparse.RawDescriptionHelpFormatter)
        type_parser.add_argument("source", metavar="SOURCE",
                                 help="folder of the download, as archives or extracted, or one archive")
        target = type_parser.add_mutually_exclusive_group()
        target.add_argument("-d", "--dataset-id", type=whole(DATASET_ID), metavar="ID",
                            help="id of the new nnU-Net dataset, 1 to 999")
        target.add_argument("--add-to-pool", type=whole(DATASET_ID), metavar="ID",
                            help="instead of a new dataset: add every scan, without its label, to imagesUl of this one")
        type_parser.add_argument("--name", help="name of the new dataset, letters and digits (default: the source's)")
        type_parser.add_argument("--check", action="store_true", help="read and check everything, write nothing")
        type_parser.add_argument("--allow-rejected", action="store_true",
                                 help="leave out labelled and test cases that cannot be used instead of stopping")
        type_parser.add_argument("--jobs", type=whole(JOBS), default=1, metavar="N",
                                 help="worker processes (default: 1)")
        converter.add_arguments(type_parser.add_argument_group(f"options of {name}"))


def run(args: argparse.Namespace) -> None:
    options = {field.name: getattr(args, field.name) for field in fields(load_converter(args.source_type).Options)}
    convert(args.source_type, args.source, args.dataset_id, name=args.name, check=args.check,
            allow_rejected=args.allow_rejected, jobs=args.jobs, add_to_pool=args.add_to_pool, **options)


def convert(source_type: str, source: str | Path, dataset_id: int | None = None, name: str | None = None,
            check: bool = False, allow_rejected: bool = False, jobs: int = 1, add_to_pool: int | None = None,
            **options: Any) -> ConversionReport:
    """Convert one download and print what became of its cases.

    Args:
        source_type: a key of `CONVERTERS`.
        source: folder of the download or one archive; nothing is written there.
        dataset_id: 1 to 999, not in use.
        name: second part of DatasetXXX_Name.
        check: only read, check and report; needs no id.
        allow_rejected: leave out labelled and test cases that cannot be used.
        jobs: worker processes.
        add_to_pool: instead of `dataset_id`, the dataset to whose imagesUl every scan is added.
        options: fields of the converter's `Options`.

    Raises:
        UserError: unknown type or option, id in use, a source that is not this dataset, a case that cannot be used.
    """
    if source_type not in CONVERTERS:
        raise UserError(f"unknown dataset {source_type!r}: choose one of {', '.join(CONVERTERS)}")
    converter = load_converter(source_type)
    own_options = _checked_options(source_type, converter.Options, options)
    check_jobs(jobs)
    if dataset_id is not None and add_to_pool is not None:
        raise UserError("-d makes a new dataset, --add-to-pool adds to an existing one: give one of them")
    if name is not None and add_to_pool is not None:
        raise UserError("--name is that of a new dataset, --add-to-pool adds to an existing one: give one of them")
    if dataset_id is None and add_to_pool is None and not check:
        raise UserError("-d ID of the new dataset is missing (or --add-to-pool ID of an existing one)")

    from nnunet_synth.dataset_conversion import pool, writer
    description = converter.describe(own_options)
    cases = converter.find_cases(Path(source), own_options)
    stored = {"type": source_type, **_published(own_options)}
    if add_to_pool is not None:
        report = pool.add_to_pool(cases, description, _existing(add_to_pool), source_type, num_jobs=jobs,
                                  check_only=check, options=stored)
        done = f"added to imagesUl of {report.folder}; next: nnunet_synth preprocess {add_to_pool} CONFIG"
    else:
        target, preprocessed = _new(dataset_id, name or description.name, check)
        report = writer.write_dataset(cases, description, target, num_jobs=jobs, check_only=check,
                                      allow_rejected=allow_rejected, options=stored, preprocessed=preprocessed,
                                      make_splits=lambda written: converter.make_splits(written, own_options))
        done = f"written to {target}; next: {_next(report, dataset_id, description.num_dimensions)}"
        if not check:
            _print_folds(preprocessed)
    print(report.table())
    for note in report.notes:
        print(f"note: {note}")
    print(f"licence: {description.licence}\ncite: {description.citation}")
    print("checked only, nothing was written" if check else done)
    return report


def _checked_options(source_type: str, options_class: type, options: dict[str, Any]) -> Any:
    known = [field.name for field in fields(options_class)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UserError(f"{source_type} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    return options_class(**options)


def _published(options: Any) -> dict[str, Any]:
    """The options as they stand in the report; not those of `field(repr=False)`, which are secrets."""
    return {field.name: _plain(getattr(options, field.name)) for field in fields(options) if field.repr}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _existing(dataset_id: int) -> Path:
    """The raw folder of a dataset."""
    from nnunet_synth.data.nnunet_folders import environment_folder, find_dataset
    return environment_folder("nnUNet_raw") / find_dataset(dataset_id)


def _new(dataset_id: int | None, name: str, check: bool) -> tuple[Path, Path | None]:
    """Where dataset and folds go. Raises UserError when the id is in use in any of nnU-Net's folders."""
    if not re.fullmatch(r"[A-Za-z0-9]+", name):
        raise UserError(f"name {name!r}: use letters and digits only")
    if dataset_id is None and check:
        return Path(name), None
    from nnunet_synth.data.nnunet_folders import environment_folder
    from nnunet_synth.data.splits import splits_file
    from nnunet_synth.dataset_conversion.unfinished import hidden_folder
    if not 1 <= dataset_id <= 999:
        raise UserError(f"dataset id {dataset_id}: nnU-Net's ids are 1 to 999")
    raw, preprocessed = environment_folder("nnUNet_raw"), environment_folder("nnUNet_preprocessed")
    target = raw / f"Dataset{dataset_id:03d}_{name}"
    folds = splits_file(preprocessed / target.name)         # of this conversion, where it was killed at the end
    # nnU-Net looks an id up in all three folders and stops when it finds two names.
    for folder in (raw, preprocessed, Path(os.environ.get("nnUNet_results", raw))):
        for existing in sorted(folder.glob(f"Dataset{dataset_id:03d}_*")):
            if not hidden_folder(target).exists() or list(existing.iterdir()) != [folds]:
                raise UserError(f"{existing} exists; choose another -d or remove it")
    return target, folds.parent


def _next(report: ConversionReport, dataset_id: int | None, num_dimensions: int) -> str:
    plan = f"nnUNetv2_plan_and_preprocess -d {dataset_id} -c {'2d' if num_dimensions == 2 else '2d 3d_fullres'} " \
        "--verify_dataset_integrity"
    has_layouts = any(case.has_layout for case in report.cases)
    return plan if has_layouts else f"{plan}, then nnunet_synth layouts {dataset_id} --method threshold"


def _print_folds(preprocessed: Path) -> None:
    from nnunet_synth.data.splits import load_splits, splits_file
    if splits_file(preprocessed).exists():
        names = [f"{index} = {fold['name']}" if "name" in fold else str(index)
                 for index, fold in enumerate(load_splits(preprocessed))]
        print(f"folds in {splits_file(preprocessed)}: {', '.join(names)}")
