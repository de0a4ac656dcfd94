"""Does a CoSinGAN that has seen one slice obey new masks, and does RC add variety? On the phantom, in one run.

    python -m benchmarks.cosingan_one_slice [--preset tiny] [--steps N] [--size 96] [--folder FOLDER]

Trains on the slice with the largest lesion among some phantom patients, draws images for the labels of others, and lets
two analytic segmenters (an intensity interval inside the lungs; nothing is learned) look for the lesions: on the real
slices of those other patients, on the drawn ones, and on the drawn ones against exchanged labels; with the randomised
condition (RC) off and on. Every image is drawn with gray values of its own; the spread is the standard deviation of
lesion means over images, and over drawings of one and the same label.
Writes `benchmarks/results/cosingan_one_slice_<device>.json` and a gallery beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.phantom_training import (
    SEMANTIC,
    PhantomSlices,
    add_arguments,
    draw,
    lesion_means,
    lesion_values,
    mean_dice,
    patients,
    sharpness_ratio,
    shown,
    train,
)
from benchmarks.record import RESULTS, write_result
from nnunet_synth.evaluation.image_quality import ThresholdSegmenter, lesion_histogram_kl, segmentability
from nnunet_synth.synthesizers.base import Slices
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from nnunet_synth.synthesizers.gallery import overlay, write_gallery
from nnunet_synth.synthesizers.options import parse_options

NUM_DRAWINGS = 8        # of one label, for the spread within it


def run(preset: str = "tiny", steps: int | None = None, size: int = 96, num_patients: int = 20, num_slices: int = 8,
        device: str = "cpu", seed: int = 0, folder: Path | None = None, picture: Path | None = None,
        **options: Any) -> dict[str, Any]:
    """Train on one slice of `num_patients`, judge on half as many others."""
    training, unseen, _ = patients(num_patients, size, num_slices)
    wall, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        cosingan = train("cosingan", preset, training, size, steps, folder or Path(temporary), device, seed,
                         num_models=1, **options)
    result = {"preset": preset, "size": size, "seed": seed, "options": options, "steps": cosingan.meta.steps,
              "scales": [scale.height for scale in cosingan.scales],
              "training_slice": cosingan.meta.metrics["training_slices"],
              "seconds_training": time.perf_counter() - wall, "cpu_seconds_training": time.process_time() - used,
              "num_unseen_slices": len(unseen), **judge(cosingan, training, unseen, seed)}
    if picture is not None:
        gallery(cosingan, unseen[::max(1, len(unseen) // 6)][:6], picture, seed)
    return result


def judge(cosingan: CoSinGAN, training: PhantomSlices, unseen: list[Slices], seed: int = 0) -> dict[str, Any]:
    """All measures, with RC off and on, and what of the task is fulfilled."""
    fitted = ThresholdSegmenter.fit(training.with_lesions, [1])
    real = mean_dice(unseen, unseen)
    result: dict[str, Any] = {"dice_real_given_interval": real, "spread_of_lesion_means_hu": {
        "real": float(lesion_means(unseen).std() * 1000)}}
    for name, is_on in (("rc_off", False), ("rc_on", True)):
        with_rc(cosingan, is_on)
        drawn = draw(cosingan, unseen, seed, batch_size=1)
        again = np.stack([lesion_means(draw(cosingan, unseen[::4], seed + 1 + number, batch_size=1))
                          for number in range(NUM_DRAWINGS)])
        found = mean_dice(drawn, drawn)
        result[name] = {
            "given_interval": {"dice_synthetic": found, "ratio": found / real,
                               "dice_permuted": mean_dice(drawn, drawn[1:] + drawn[:1])},
            "fitted_interval": segmentability(fitted, unseen, drawn),
            "lesion_mean_hu": float(lesion_values(drawn).mean() * 1000),
            "spread_over_drawings_of_one_label_hu": float(again.std(0).mean() * 1000),
            "lesion_intensity_kl": lesion_histogram_kl(lesion_values(unseen), lesion_values(drawn)),
            "sharpness_ratio": sharpness_ratio(unseen, drawn),
        }
        result["spread_of_lesion_means_hu"][name] = float(lesion_means(drawn).std() * 1000)
    spread = result["spread_of_lesion_means_hu"]
    result["lesion_mean_hu_real"] = float(lesion_values(unseen).mean() * 1000)
    result["obeys_new_masks"] = {name: result[name]["given_interval"]["ratio"] >= 0.8 for name in ("rc_off", "rc_on")}
    result["rc_raises_the_spread"] = spread["rc_on"] > spread["rc_off"]
    return result


def with_rc(cosingan: CoSinGAN, is_on: bool) -> None:
    cosingan.config = replace(cosingan.config, randomised_condition=is_on)


def gallery(cosingan: CoSinGAN, parts: list[Slices], target: Path, seed: int) -> None:
    """real | label | RC off | RC on, twice."""
    drawn = []
    for is_on, number in ((False, 0), (True, 1), (True, 2)):
        with_rc(cosingan, is_on)
        drawn.append(draw(cosingan, parts, seed + number, batch_size=1))

    rows = []
    for part, *others in zip(parts, *drawn, strict=True):
        classes = SEMANTIC.combine(part.label, part.layout)[0].numpy()
        rows.append([shown(part), overlay(np.zeros_like(shown(part)), classes, opacity=1.0), *map(shown, others)])
    write_gallery(rows, ["real", "label", "plain", "RC", "RC again"], target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    add_arguments(parser, steps=None, size=96, threads=1)
    parser.add_argument("--folder", type=Path, help="keep the trained model there")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    output = args.output or RESULTS / f"cosingan_one_slice_{device.type}.json"
    result = run(args.preset, args.steps, args.size, args.patients, device=args.device, seed=args.seed,
                 folder=args.folder, picture=output.with_suffix(".png"), **parse_options(args.option))
    for key, value in result.items():
        print(f"{key}: {value}")
    write_result(result, "cosingan_one_slice", device, output)


if __name__ == "__main__":
    main()
