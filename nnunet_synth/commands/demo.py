"""Do the whole job on a procedural chest CT, in about ten minutes on two CPU cores.

Draws a dataset with labelled, unlabelled and test scans, plans it with nnU-Net, hides most labels, pretrains a SEAN
synthesizer, trains stock nnU-Net on the labelled scans (the baseline) and SACPSTrainer on all of them, predicts the
test scans with both, measures DSC and NSD, and writes report.html. Every command that it runs is printed, so that you
can repeat it on your own data; the commands' output is in FOLDER/logs. Interrupted, it continues where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_synth.argument_types import whole
from nnunet_synth.bounds import SEED

EXAMPLE = "nnunet_synth demo my_demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=Path("nnunet_synth_demo"),
                        help="where everything is written (default: %(default)s)")
    parser.add_argument("--quick", action="store_true",
                        help="a few minutes: one epoch and a short pretraining, too short for good scores")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"), help="(default: %(default)s)")
    parser.add_argument("--seed", type=whole(SEED), default=0, help="of the phantom and the trainings (default: 0)")


def run(args: argparse.Namespace) -> None:
    demo(args.folder, args.quick, args.device, args.seed)


def demo(folder: str | Path = "nnunet_synth_demo", quick: bool = False, device: str = "cpu", seed: int = 0) -> Path:
    """Run what this module's docstring says; returns the path of `report.html`.

    Raises:
        UserError: the folder is something else's, the device is not there, or a command failed (its log is named).
    """
    from nnunet_synth.demo.job import FULL, QUICK, Job, run_job
    from nnunet_synth.demo.summary import read_scores, summary_table, write_summary
    _check_device(device)
    job = Job(Path(folder).absolute(), QUICK if quick else FULL, seed, device)
    print(f"The demo lies in {job.folder}. To repeat one of its commands by hand, set these first:")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        print(f"    export {name}={job.environment[name]}")
    report = write_summary(job, run_job(job))
    print(f"\n{summary_table(read_scores(job)).markdown([])}\n\nThe report: {report}")
    return report


def _check_device(device: str) -> None:
    import torch

    from nnunet_synth.errors import UserError
    if device == "cuda" and not torch.cuda.is_available() or device == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {device}: this PyTorch sees no such device; nnunet_synth doctor says more, "
                        "--device cpu works everywhere")
