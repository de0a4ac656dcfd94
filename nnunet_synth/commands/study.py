"""Compare methods: datasets × label ratios × methods × folds × seeds, trained, tested and put into one table.

STUDY is a YAML file, or the name of one that comes with the package (phantom, covid-semiseg, covid-19-20, mosmed,
covid19-ct-seg, nccid, cs2, lcgan, ablation-losses, ablation-styles, ablation-ratio, ablation-synthetic,
ablation-um2i-tasks, ablation-um2i-steps, ablation-um2i-superpixels).
docs/reproduce.md explains the file.

Each training is an ordinary `nnUNetv2_train` in a process of its own, so what is measured is what a user gets; results
lie in nnU-Net's own folders, and a training that is there already counts. Stop the study at any time and start it again
with the same command: what is done is kept, a broken training goes on from its checkpoint. A run that fails does not
stop the others. FOLDER gets state.txt (one line a run), logs/, predictions/, study.json, study.md and report.html.

  nnunet_synth study phantom --dry-run         what would be done, and the state of every run
  nnunet_synth study mine.yaml --gpus 0,1      two trainings at a time
  nnunet_synth study mine.yaml --list          one shell command a run, for the job array of any scheduler: each works
                                               alone once the runs it needs are done, and does nothing a second time
  nnunet_synth study collect mine.yaml         the table of what is done so far
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_synth.argument_types import real
from nnunet_synth.bounds import Bounds
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from nnunet_synth.study.board import Board
    from nnunet_synth.study.place import Place
    from nnunet_synth.study.plan import Study

EXAMPLE = "nnunet_synth study phantom --budget-minutes 60"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="STUDY", nargs="+",
                        help="a YAML file, or a name of the above; with the word collect before it, only the result")
    parser.add_argument("--folder", type=Path, metavar="FOLDER",
                        help="where the study keeps its state and results (default: study_NAME)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print every run, its state and its commands; do nothing")
    mode.add_argument("--list", action="store_true", dest="as_list", help="print one shell command a run")
    mode.add_argument("--only", metavar="RUN", help="do this run only (as --list says)")
    parser.add_argument("--budget-minutes", type=real(Bounds(low=0, high=10**7, open_low=True)), metavar="M",
                        help="start no further run after M minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    parser.add_argument("--gpus", metavar="0,1", help="one run at a time on each of these GPUs")


def run(args: argparse.Namespace) -> None:
    *before, name = args.words
    if before not in ([], ["collect"]):
        raise UserError(f"{' '.join(args.words)}: give one STUDY, or collect STUDY")
    study(name, folder=args.folder, dry_run=args.dry_run, as_list=args.as_list, only=args.only,
          budget_minutes=args.budget_minutes, device=args.device, gpus=args.gpus.split(",") if args.gpus else None,
          collect=bool(before))


def study(name: str | Path, *, folder: str | Path | None = None, dry_run: bool = False, as_list: bool = False,
          only: str | None = None, budget_minutes: float | None = None, device: str | None = None,
          gpus: Sequence[str] | None = None, collect: bool = False) -> Path | None:
    """Do what this module's docstring says; returns the path of report.html, if one was written.

    Raises:
        UserError: a mistake in the study file or the arguments, another study in the same folder, or runs that failed
            (after all others were done, and the result was written).
    """
    from nnunet_synth.commands.pretrain import find_device
    from nnunet_synth.study.board import Board
    from nnunet_synth.study.graph import runs_of
    from nnunet_synth.study.parse import find_study, read_study
    from nnunet_synth.study.place import Place
    from nnunet_synth.study.runner import Runner, run_one, study_lock

    if budget_minutes is not None and not budget_minutes >= 0:
        raise UserError(f"--budget-minutes {budget_minutes}: must be 0 or more")
    file = find_study(name)
    plan = read_study(file)
    slots = _slots(gpus, device)
    place = Place.find(Path(folder or f"study_{plan.name}"), "cuda" if gpus else
                       (device or "cpu") if dry_run or as_list else find_device(device))
    runs = runs_of(plan, place)
    if as_list:
        options = ["--folder", str(place.folder), "--device", place.device]
        for one in runs:
            if not one.missing:
                print(shlex.join(["nnunet_synth", "study", str(name), *options, "--only", one.id]))
        return None
    if dry_run:
        _show(Board(runs, place.folder))
        return None
    if only is not None:
        with study_lock(place.folder, shared=True):
            board = run_one(only, runs, place, slots)
        if board.entries[only].state == "failed":
            raise UserError(f"{only} failed: {board.entries[only].reason}")
        return None
    if collect:
        return _finish(plan, Board(runs, place.folder), place)
    print(f"{plan.title}: {len(runs)} runs in {place.folder}", flush=True)
    with study_lock(place.folder):
        board = Runner(runs, place, slots, None if budget_minutes is None else budget_minutes * 60).run()
        report = _finish(plan, board, place)
    failed = [one for one in runs if board.entries[one.id].state == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed, the first of them {failed[0].id}: "
                        f"{board.entries[failed[0].id].reason}; start the same study again to try them again")
    return report


def _slots(gpus: Sequence[str] | None, device: str | None) -> list[str | None]:
    if gpus is None:
        return [None]
    if device == "cpu":
        raise UserError("--gpus and --device cpu contradict each other")
    if any(not gpu.strip() for gpu in gpus) or len(set(gpus)) < len(gpus):
        raise UserError(f"--gpus {','.join(gpus)}: give different numbers, e.g. 0,1")
    import torch
    if not torch.cuda.is_available():
        raise UserError("--gpus: this PyTorch sees no CUDA device; use --device cpu")
    return [gpu.strip() for gpu in gpus]


def _show(board: Board) -> None:
    """Every run with its commands; what of it is done is looked up, what needs undone runs is not."""
    done: set[str] = set()
    for run in board.runs:
        state = board.entries[run.id].state
        if run.missing:
            print(f"skipped  {run.id}: {run.missing}")
            continue
        if all(need in done for need in run.needs):
            try:
                if run.is_done():
                    done.add(run.id)
            except UserError as error:
                print(f"problem  {run.id}: {error}")
                continue
        print(f"{'done' if run.id in done else 'pending' if state == 'done' else state:8} {run.id}")
        for line in [] if run.id in done else run.shown():
            print(f"    {line}")


def _finish(plan: Study, board: Board, place: Place) -> Path:
    """Write the result and say where it is."""
    from nnunet_synth.study.result import write_result
    report = write_result(plan, board, place)
    print(f"{board.count()}\n{place.folder / 'study.md'}\nThe report: {report}", flush=True)
    return report
