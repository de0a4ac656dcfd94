"""Is the phantom hard enough? A supervised nnU-Net with 10 % and with 100 % of the labels, on held-out cases.

    python benchmarks/phantom_label_ratio.py

Stock nnU-Net (planner, preprocessor, augmentation, loss, schedule) on a small 2d plan, in one process on one thread.
Prints a table and writes benchmarks/results/phantom_label_ratio.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

NUM_LABELLED, NUM_HELD_OUT = 40, 16
FEATURES = [8, 16, 32, 64, 64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--labelled", type=int, nargs="+", default=[4, 40])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "phantom_label_ratio.json")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        results = {count: {seed: train_and_evaluate(count, seed, args.iterations) for seed in args.seeds}
                   for count in args.labelled}
    report(results, args)


def prepare(folder: Path) -> None:
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ.update(nnUNet_def_n_proc="1", nnUNet_n_proc_DA="1", nnUNet_compile="f")
    from nnunet_synth.data.phantom import write_phantom_dataset
    write_phantom_dataset(folder / "raw", 900, num_labelled=NUM_LABELLED + NUM_HELD_OUT, num_unlabelled=0, num_test=0)
    subprocess.run([Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess"), "-d", "900", "-c", "2d", "-np", "1",
                    "-npfp", "1"], check=True, stdout=subprocess.DEVNULL)
    os.environ["nnUNet_n_proc_DA"] = "0"    # the planner cannot do with 0, the training is deterministic with it


def train_and_evaluate(num_labelled: int, seed: int, iterations: int) -> dict:
    """Train on `num_labelled` cases; DSC of the held-out cases, the pooled DSC and the seconds it took."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed)
    folder = Path(os.environ["nnUNet_preprocessed"]) / "Dataset900_ChestPhantom"
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    shrink(plans["configurations"]["2d"])
    cases = sorted(path.name[:-7] for path in (folder / "gt_segmentations").glob("*.nii.gz"))
    chosen = np.random.default_rng(seed).permutation(cases[:NUM_LABELLED])[:num_labelled].tolist()
    (folder / "splits_final.json").write_text(json.dumps([{"train": chosen, "val": cases[NUM_LABELLED:]}]))

    trainer = nnUNetTrainer(plans, "2d", 0, json.loads((folder / "dataset.json").read_text()), torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = 10, iterations // 10
    start = time.monotonic()
    trainer.on_train_start()
    for _ in range(trainer.num_epochs):
        trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            trainer.train_step(next(trainer.dataloader_train))
        trainer.current_epoch += 1
    seconds = time.monotonic() - start
    return evaluate(trainer) | {"seconds": round(seconds), "train": chosen}


def shrink(configuration: dict) -> None:
    """A small U-Net and batch, so that a training takes minutes on one core."""
    architecture = configuration["architecture"]["arch_kwargs"]
    stages = len(FEATURES)
    architecture.update(
        n_stages=stages, features_per_stage=FEATURES, kernel_sizes=[[3, 3]] * stages,
        strides=[[1, 1]] + [[2, 2]] * (stages - 1), n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1))
    configuration.update(batch_size=8, patch_size=[96, 96])


def evaluate(trainer) -> dict:
    import numpy as np
    import torch
    network = trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    _, held_out = trainer.get_tr_and_val_datasets()
    scores, counts = [], np.zeros(2)
    for case in held_out.identifiers:
        data, segmentation, *_ = held_out.load_case(case)
        with torch.inference_mode():
            found = network(torch.from_numpy(data[:]).movedim(1, 0)).argmax(1).numpy() > 0
        truth = segmentation[0] > 0
        overlap = np.array([2 * (found & truth).sum(), found.sum() + truth.sum()])
        counts += overlap
        if truth.any():     # healthy cases have no DSC; their false positives count in the pooled one
            scores.append(overlap[0] / overlap[1])
    return {"dsc": float(np.mean(scores)), "pooled_dsc": float(counts[0] / counts[1])}


def report(results: dict, args: argparse.Namespace) -> None:
    import nnunetv2  # noqa: F401
    import numpy as np
    import torch

    from nnunet_synth.atomic import write_json
    print(f"\n{'labelled':>9} {'DSC':>7} {'pooled':>7}  per seed")
    for count, runs in results.items():
        dsc = [run["dsc"] for run in runs.values()]
        pooled = np.mean([run["pooled_dsc"] for run in runs.values()])
        print(f"{count:>9} {np.mean(dsc):7.3f} {pooled:7.3f}  {', '.join(f'{score:.3f}' for score in dsc)}")
    write_json({"device": f"CPU, 1 thread, {platform.machine()}", "torch": torch.__version__,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "iterations": args.iterations, "held_out": NUM_HELD_OUT, "results": results}, args.output)


if __name__ == "__main__":
    main()
