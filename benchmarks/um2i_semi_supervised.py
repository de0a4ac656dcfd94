"""Does UM2I's semi-supervised stage help where only four slices have labels? On the phantom, three seeds.

    python -m benchmarks.um2i_semi_supervised [--steps 1000] [--seeds 3]

The same four labelled slices train `tiny` UM2I for as many steps: supervised; with unlabelled slices for the
task of drawing alone (their segmentation loss has weight 0); and as published, with pseudo-labels. What could be had at
most is told by a supervised training with the labels of all slices. Judged on patients that none has seen: Dice of the
label head, on the unsupervised mask of a real slice, against its true lesions, and the mean absolute difference of the
drawn image to the real one. Of the pseudo-labels of the third it is asked whether those that the discriminator trusts
are better than those that it does not.
Writes `benchmarks/results/um2i_semi_supervised_<device>.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.phantom_training import PhantomSlices, concatenate, train
from benchmarks.record import RESULTS, write_result
from nnunet_synth.evaluation.overlap import dice
from nnunet_synth.synthesizers.base import Slices, StyleOptions
from nnunet_synth.synthesizers.um2i import UM2I

BATCH_SIZE = 4
NUM_LABELLED, NUM_POOL_PATIENTS, NUM_UNSEEN_PATIENTS, NUM_SLICES = 4, 12, 10, 8
ARMS = {"supervised": {"semi_supervised": False}, "unlabelled images, no pseudo-labels": {"unlabelled_weight": 0.0},
        "semi-supervised": {}}
ALL_LABELS = "supervised, all labels"


def labelled_slices(seed: int, size: int) -> PhantomSlices:
    """One slice with lesions of each of four patients."""
    rng = np.random.default_rng(seed)
    chosen = []
    for number in range(NUM_LABELLED):
        patient = PhantomSlices.of_patients(range(100 * seed + number, 100 * seed + number + 1), size, NUM_SLICES)
        with_lesions = patient.with_lesions or patient.parts
        chosen.append(with_lesions[rng.integers(len(with_lesions))])
    return PhantomSlices(chosen)


@torch.no_grad()
def judge(model: UM2I, unseen: list[Slices]) -> dict[str, float]:
    """Label head and image, from the unsupervised masks of real slices as they are."""
    model.style, model.label_source = StyleOptions(source="self"), "head"
    scores, differences = [], []
    for part in unseen:
        result = model.synthesize(part.request())
        scores.append(dice(result.label[0].numpy() > 0, part.label[0].numpy() > 0))
        differences.append(float((result.image - part.image).abs().mean()))
    return {"dice_of_head": float(np.mean(scores)), "absolute_difference_hu": 1000 * float(np.mean(differences))}


def judge_pseudo_labels(model: UM2I, pool: list[Slices]) -> dict[str, float]:
    """What the teacher said of the pool, whose labels the training never saw."""
    batch = concatenate(pool)
    model.teacher.eval()
    condition = model.condition_on(model.mask_of(model.to_unit(batch.image), None))
    label, confidence = model.teacher.label(condition, batch.valid)
    trusted = confidence > model.config.confidence_threshold
    lung, truth = batch.layout > 0, batch.label > 0

    def in_lung(where: torch.Tensor) -> float:
        return dice(((label > 0) & where & lung).numpy(), (truth & where & lung).numpy())

    return {"trusted_share": float(trusted.float().mean()),
            "trusted_share_of_true_lesions": float(trusted[truth].float().mean()),
            "dice_where_trusted": in_lung(trusted), "dice_elsewhere": in_lung(~trusted),
            "wrong_where_trusted": float(((label > 0) != truth)[trusted & lung].float().mean()),
            "wrong_elsewhere": float(((label > 0) != truth)[~trusted & lung].float().mean())}


def run_seed(seed: int, steps: int, size: int) -> dict[str, Any]:
    training = labelled_slices(seed, size)
    pool = PhantomSlices.of_patients(range(2000, 2000 + NUM_POOL_PATIENTS), size, NUM_SLICES)
    training.pool = pool.without_labels()
    unseen = PhantomSlices.of_patients(range(1000, 1000 + NUM_UNSEEN_PATIENTS), size, NUM_SLICES).with_lesions
    results: dict[str, Any] = {}
    for name, options in {**ARMS, ALL_LABELS: ARMS["supervised"]}.items():
        source = PhantomSlices(training.parts + pool.parts) if name == ALL_LABELS else training
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            model = train("um2i", "tiny", source, size, steps, Path(folder), "cpu", seed, batch_size=BATCH_SIZE,
                          **options)
            results[name] = {"cpu_seconds": time.process_time() - started, **judge(model, unseen)}
        if name == "semi-supervised":
            results[name]["pseudo_labels"] = judge_pseudo_labels(model, pool.parts)
        print(f"seed {seed}: {name}: {results[name]}", flush=True)
    return {"labelled": [list(part.origin[0]) for part in training.parts], **results}


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over the seeds, and each seed's gain of the semi-supervised training over the supervised one."""
    means = {name: {key: float(np.mean([seed[name][key] for seed in seeds]))
                    for key in ("dice_of_head", "absolute_difference_hu")} for name in (*ARMS, ALL_LABELS)}
    gains = [seed["semi-supervised"]["dice_of_head"] - seed["supervised"]["dice_of_head"] for seed in seeds]
    return {"mean": means, "gain_in_dice_of_each_seed": gains, "mean_gain_in_dice": float(np.mean(gains))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "um2i_semi_supervised_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seeds = [run_seed(seed, args.steps, args.size) for seed in range(args.seeds)]
    result = {"steps": args.steps, "batch_size": BATCH_SIZE, "size": args.size, "num_labelled_slices": NUM_LABELLED,
              "num_unlabelled_slices": NUM_POOL_PATIENTS * NUM_SLICES, **summary(seeds), "seeds": seeds}
    print({key: value for key, value in result.items() if key != "seeds"})
    write_result(result, "um2i_semi_supervised", torch.device("cpu"), args.output)


if __name__ == "__main__":
    main()
