"""Preprocess the unlabelled pool (imagesUl) and the layouts with nnU-Net's own preprocessor and plans.

Cases that are up to date are kept; a pool made with other plans is made again. Training does the same when it starts
and finds something missing, so this command is for large pools, or to find mistakes in the data early.
"""

from __future__ import annotations

import argparse
import sys

from nnunet_synth.argument_types import whole
from nnunet_synth.bounds import JOBS

EXAMPLE = "nnunet_synth preprocess 501 2d"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="id or name of the dataset")
    parser.add_argument("configuration", metavar="CONFIG", help="configuration of the plans, e.g. 2d")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("--jobs", type=whole(JOBS), default=None, metavar="N",
                        help="worker processes (default: nnUNet_def_n_proc, or 8, at most the number of cores)")
    parser.add_argument("--force", action="store_true", help="preprocess everything again")


def run(args: argparse.Namespace) -> None:
    num_cases, num_layouts = preprocess(args.dataset, args.configuration, plans=args.plans, jobs=args.jobs,
                                        force=args.force)
    print(f"preprocessed {num_cases} unlabelled case(s) and {num_layouts} layout(s); the rest was up to date")


def preprocess(dataset: str | int, configuration: str, plans: str = "nnUNetPlans", jobs: int | None = None,
               force: bool = False) -> tuple[int, int]:
    """Preprocess what is missing; returns how many cases and layouts that were.

    Raises:
        UserError: see `nnunet_synth.data.unlabelled.preprocess_pool`; or there is neither a pool nor a layout, or no
            process to do it.
    """
    import os

    from nnunet_synth.process_counts import check_jobs, processes_from_environment
    check_jobs(jobs)
    default = processes_from_environment("nnUNet_def_n_proc", 8)        # before nnU-Net reads it

    from nnunet_synth.data.experiment import load_experiment
    from nnunet_synth.data.unlabelled import check_pool, preprocess_pool
    from nnunet_synth.errors import UserError

    experiment = load_experiment(dataset, configuration, plans=plans)
    check_pool(experiment)
    if not experiment.pool_ids and not any((experiment.raw_folder / name).is_dir()
                                           for name in ("layoutsTr", "clustersTr")):
        raise UserError(f"{experiment.raw_folder} has neither imagesUl nor layoutsTr nor clustersTr: put unlabelled "
                        "images into imagesUl, named CASE_0000" + experiment.dataset_json["file_ending"])
    if jobs is None:
        jobs = min(default, os.cpu_count() or 1)
    plan = preprocess_pool(experiment, num_processes=jobs, force=force)
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return len(plan.missing_cases), len(plan.missing_layouts)
