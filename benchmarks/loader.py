"""How many samples a second reach a semi-supervised training, and how long does its device wait for them?

    python -m benchmarks.loader [--device cpu|cuda] [--patch 256 256] [--batch 12] [--workers 1 2] [--rounds 3]

nnU-Net's augmentation by loader workers (`augmentation: cpu`) against `augmentation: device`, labelled and unlabelled
stream, on phantom chest CTs that nnU-Net itself has planned and preprocessed. A patch of three numbers is one of
3d_fullres. Three measurements:

cost      what a sample costs one processor core (its processor time, which other load hardly touches): the whole
          sample with `cpu`; reading and cropping with `device`, and beside it the device's time for the rest.
workers   samples a second that the workers make while nobody trains: a device that could use more waits for the rest.
loader    the same with the device's augmentation in between, one after another.
training  CPSTrainer's steps (`--trainer` for another one): samples a second, and the idle share, in which the step had
          ended and the next batch was not there yet. Pauses between kernels within a step do not count as idle.

On the CPU the training and the workers share the cores. Writes benchmarks/results/loader_<device>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import synchronise, write_result

AUGMENTATIONS = ("cpu", "device")
DATASET_ID = 901


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patch", type=int, nargs="+", default=[256, 256], help="two or three numbers")
    parser.add_argument("--batch", type=int, default=12, help="samples of each stream")
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--trainer", default="CPSTrainer")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="nnUNet_n_proc_DA")
    parser.add_argument("--batches", type=int, default=30, help="timed batches of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="in which both take turns; medians are reported")
    parser.add_argument("--threads", type=int, default=1, help="of the training on the CPU")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if len(args.patch) not in (2, 3):
        parser.error("--patch takes two or three numbers")

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), args)
        results = measure(args)
    print(table(results))
    write_result({**{key: value for key, value in vars(args).items() if key != "output"}, "results": results}, "loader",
                 torch.device(args.device), args.output)


# ----------------------------------------------------------------------------------------------------------------------
# The dataset and its trainers


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """A phantom dataset, planned and preprocessed by nnU-Net, with the network, patch and batch of this benchmark."""
    os.environ.update({f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")},
                      nnUNet_def_n_proc="1", nnUNet_n_proc_DA="1")
    from nnunet_synth.data.phantom import write_phantom_dataset
    is_3d = len(args.patch) == 3
    write_phantom_dataset(folder / "raw", DATASET_ID, num_labelled=5, num_unlabelled=4, num_test=0, size=args.patch[-1],
                          num_slices=args.patch[0] if is_3d else 8, slice_spacing=2.5 if is_3d else 8)
    command = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    subprocess.run([command, "-d", str(DATASET_ID), "-c", configuration(args), "-np", "1", "-npfp", "1"], check=True,
                   stdout=subprocess.DEVNULL)


def configuration(args: argparse.Namespace) -> str:
    return "2d" if len(args.patch) == 2 else "3d_fullres"


def plans_for(augmentation: str, args: argparse.Namespace) -> tuple[dict, dict]:
    """The plans with a U-Net of `--features`, and dataset.json."""
    folder, = Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{DATASET_ID}_*")
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    stages, axes = len(args.features), len(args.patch)
    chosen = plans["configurations"][configuration(args)]
    chosen["architecture"]["arch_kwargs"].update(
        n_stages=stages, features_per_stage=args.features, kernel_sizes=[[3] * axes] * stages,
        strides=[[1] * axes] + [[2] * axes] * (stages - 1), n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1))
    chosen.update(patch_size=args.patch, batch_size=args.batch,
                  nnunet_synth={"augmentation": augmentation, "seed": 0, "preview_every": 0})
    return plans, json.loads((folder / "dataset.json").read_text())


@contextmanager
def training(augmentation: str, num_workers: int, args: argparse.Namespace) -> Iterator[Any]:
    """A trainer at the start of its first epoch, its loaders running."""
    from nnunet_synth import trainers
    from nnunet_synth.data.loaders import stop
    os.environ["nnUNet_n_proc_DA"] = str(num_workers)
    with redirect_stdout(StringIO()):
        plans, dataset_json = plans_for(augmentation, args)
        trainer = getattr(trainers, args.trainer)(plans, configuration(args), 0, dataset_json,
                                                  torch.device(args.device))
        trainer.on_train_start()
        trainer.on_train_epoch_start()
    try:
        yield trainer
    finally:
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            stop(loader)


class Stopwatch:
    """A loader, and the seconds in which somebody waited for its batches."""

    def __init__(self, loader: Iterator[dict]) -> None:
        self.loader = loader
        self.seconds = 0.0

    def __next__(self) -> dict:
        start = time.perf_counter()
        batch = next(self.loader)
        self.seconds += time.perf_counter() - start
        return batch


# ----------------------------------------------------------------------------------------------------------------------
# The measurements


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each augmentation and number of workers; medians of the rounds."""
    costs = {augmentation: cost(augmentation, args) for augmentation in AUGMENTATIONS}
    kinds = [(augmentation, num_workers) for num_workers in args.workers for augmentation in AUGMENTATIONS]
    rounds = [{kind: throughput(*kind, args) for kind in kinds} for _ in range(args.rounds)]
    return [{"augmentation": augmentation, "workers": num_workers, **costs[augmentation],
             **{key: statistics.median(each[augmentation, num_workers][key] for each in rounds)
                for key in rounds[0][augmentation, num_workers]}} for augmentation, num_workers in kinds]


def cost(augmentation: str, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a sample, in one process without workers; and the bytes of a sample that go to the device."""
    with training(augmentation, 0, args) as trainer:
        loader = trainer.dataloader_train
        raw = loader if augmentation == "cpu" else loader.loader
        per_sample = 1000 / num_samples(next(raw))
        sizes = [nbytes(value) for value in next(raw).values()]
        result = {"worker_ms": per_sample * mean_seconds(lambda: next(raw), args.batches, time.process_time),
                  "device_ms": 0.0, "kilobytes": per_sample * sum(sizes) / 1e6}
        if augmentation == "device":
            now = time.process_time if args.device == "cpu" else time.perf_counter
            batches = [next(raw) for _ in range(4)]
            loader.loader = iter([dict(batches[number % 4]) for number in range(args.batches + 2)])
            result["device_ms"] = per_sample * mean_seconds(lambda: next(loader), args.batches, now, trainer.device)
    return result


def throughput(augmentation: str, num_workers: int, args: argparse.Namespace) -> dict[str, float]:
    with training(augmentation, num_workers, args) as trainer:
        loader, device = trainer.dataloader_train, trainer.device
        raw = loader if augmentation == "cpu" else loader.loader

        def forget_stock() -> None:
            """Take what the workers made while nobody asked: two queues, and one batch in the hands of each."""
            for _ in range(2 * max(6, num_workers // 2) + num_workers):
                next(raw)

        forget_stock()
        from_workers = with_device = mean_seconds(lambda: next(raw), args.batches, time.perf_counter)
        if augmentation == "device":
            forget_stock()
            with_device = mean_seconds(lambda: next(loader), args.batches, time.perf_counter, device)

        stopwatch = Stopwatch(raw)
        if augmentation == "device":
            loader.loader = stopwatch
        else:
            loader = stopwatch
        for _ in range(3):          # cuDNN chooses its algorithms
            trainer.train_step(next(loader))
        forget_stock()
        stopwatch.seconds = 0.0
        step = mean_seconds(lambda: trainer.train_step(next(loader)), args.batches, time.perf_counter, device, 0)
        per_batch = num_samples(next(raw))
    return {"workers_samples_per_second": per_batch / from_workers,
            "loader_samples_per_second": per_batch / with_device, "training_samples_per_second": per_batch / step,
            "idle_share": stopwatch.seconds / (step * args.batches)}


def mean_seconds(action: Callable[[], Any], count: int, now: Callable[[], float],
                 device: torch.device = torch.device("cpu"), warm_up: int = 2) -> float:  # noqa: B008 - immutable
    for _ in range(warm_up):
        action()
    synchronise(device)
    start = now()
    for _ in range(count):
        action()
    synchronise(device)
    return (now() - start) / count


def num_samples(batch: dict[str, Any]) -> int:
    """Of both streams."""
    return len(batch["data"]) + len(batch.get("data_u", ()))


def nbytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(nbytes, value))
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def table(results: list[dict[str, Any]]) -> str:
    lines = [f"{'augmentation':12} {'workers':>8} {'worker ms':>10} {'device ms':>10} {'kB':>7} {'workers /s':>11} "
             f"{'loader /s':>10} {'training /s':>12} {'idle':>6}"]
    lines += [f"{row['augmentation']:12} {row['workers']:8} {row['worker_ms']:10.2f} {row['device_ms']:10.2f} "
              f"{row['kilobytes']:7.0f} {row['workers_samples_per_second']:11.1f} "
              f"{row['loader_samples_per_second']:10.1f} "
              f"{row['training_samples_per_second']:12.1f} {row['idle_share']:6.0%}" for row in results]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
