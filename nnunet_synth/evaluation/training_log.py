"""What a training run wrote about itself, epoch by epoch: nnU-Net's log and ours."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

NUMBER = r"-?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)"
EPOCH = re.compile(r": Epoch (\d+)\s*$")
LOSS = re.compile(rf": (train_loss|val_loss) ({NUMBER})")
DICE = re.compile(r": Pseudo dice \[(.*)\]")
SECONDS = re.compile(rf": Epoch time: ({NUMBER}) s")


def read_training_logs(folder: Path) -> dict[int, dict[str, float]]:
    """Epoch → "train_loss", "val_loss", "Pseudo dice" (mean of the classes) and "seconds", as far as it got.

    From all `training_log_*.txt` that nnU-Net left in a fold's folder, in the order in which the runs started: what a
    resumed run does again replaces what it did before.
    """
    epochs: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob("training_log_*.txt"), key=_start):
        current: dict[str, float] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            if epoch := EPOCH.search(line):
                current = epochs.setdefault(int(epoch[1]), {})
            elif loss := LOSS.search(line):
                current[loss[1]] = float(loss[2])
            elif dice := DICE.search(line):
                numbers = re.findall(rf"(?<![\w.]){NUMBER}", dice[1])      # "0.5" or "np.float32(0.5)"
                current["Pseudo dice"] = float(np.mean([float(number) for number in numbers])) if numbers else np.nan
            elif seconds := SECONDS.search(line):
                current["seconds"] = float(seconds[1])
    return epochs


def _start(path: Path) -> list[int]:
    """training_log_2026_9_30_… is before training_log_2026_10_1_…: months and days are not padded."""
    return [int(number) for number in re.findall(r"\d+", path.name)]


def read_semi_supervised_log(folder: Path) -> dict[int, dict[str, float]]:
    """Epoch → loss terms, agreement, …, from our trainers' `semi_supervised.jsonl`; empty where there is none."""
    from nnunet_synth.trainers.epoch_log import EpochLog
    return {entry.pop("epoch"): entry for entry in EpochLog(folder).read()}


def series(log: dict[int, dict[str, float]], name: str) -> dict[int, float]:
    """Epochs done (1, 2, …) → the number called `name`, where it was logged."""
    return {epoch + 1: values[name] for epoch, values in sorted(log.items()) if name in values}
