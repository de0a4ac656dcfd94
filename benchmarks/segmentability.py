"""Can lesions that a synthesizer was asked to draw be found again? Trained and judged on the phantom, in one run.

    python -m benchmarks.segmentability [--synthesizer sean] [--preset tiny] [--steps 1500] [--size 64]
                                       [--option gray_step=10 …]

Trains on slices of some phantom patients, draws images for the labels of others, and lets two analytic segmenters (an
intensity interval inside the lungs; nothing is learned) look for the lesions: on the real slices of those other
patients, on the synthetic ones, and on the synthetic ones against exchanged labels. Beside it stand the divergence of
lesion intensities and the sharpness, so that painting constants cannot pass, and what a change of style changes.
Those that need an image (UM2I, CS2) get the same patient's before the disease, so that every lesion must be put in; how
much of one they take out again where none is asked for is measured, too.
Writes `benchmarks/results/segmentability_<synthesizer>_<device>.json` and a gallery beside it.
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
    find_lesions,
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
from nnunet_synth.synthesizers.base import Slices, StyleOptions, Synthesizer
from nnunet_synth.synthesizers.gallery import overlay, write_gallery
from nnunet_synth.synthesizers.options import parse_options


def judge(synthesizer: Synthesizer, training: PhantomSlices, unseen: list[Slices], healthy: list[Slices],
          seed: int = 0) -> dict[str, Any]:
    """All measures; the intervals of the first segmenter are fitted on training slices, those of the second are given
    in HU by the phantom. `healthy` are the unseen slices before the disease."""
    synthesizer.fit_pool(training)
    drawn = draw(synthesizer, unseen, seed, healthy)
    averaged = synthesizer.style
    synthesizer.style = StyleOptions(num_styles=1)      # the codes of single slices, twice: is style obeyed?
    one_style, other_style = (lesion_means(draw(synthesizer, unseen, seed + number, healthy)) for number in (1, 2))
    synthesizer.style = averaged
    fitted = ThresholdSegmenter.fit(training.with_lesions, [1])

    real, synthetic = mean_dice(unseen, unseen), mean_dice(drawn, drawn)
    return {
        "fitted_interval": segmentability(fitted, unseen, drawn),
        "given_interval": {"dice_real": real, "dice_synthetic": synthetic, "ratio": synthetic / real,
                           "dice_permuted": mean_dice(drawn, drawn[1:] + drawn[:1])},
        "lesion_intensity_kl": lesion_histogram_kl(lesion_values(unseen), lesion_values(drawn)),
        "sharpness_ratio": sharpness_ratio(unseen, drawn),
        "lesion_mean_hu": {"real": float(lesion_values(unseen).mean() * 1000),
                           "synthetic": float(lesion_values(drawn).mean() * 1000)},
        "lesion_mean_hu_between_two_styles": float(np.abs(one_style - other_style).mean() * 1000),
        "num_unseen_slices": len(unseen),
        **(removal(synthesizer, unseen, healthy, seed) if synthesizer.needs else {}),
    }


def removal(synthesizer: Synthesizer, unseen: list[Slices], healthy: list[Slices], seed: int) -> dict[str, Any]:
    """How much of each lesion is found again when the image shows it and the label asks for none; the same on the real
    image and on that of the patient without the disease, for comparison."""
    cured = draw(synthesizer, [replace(part, label=torch.zeros_like(part.label)) for part in unseen], seed, unseen)

    def found(parts: list[Slices]) -> float:
        return float(np.mean([find_lesions(part)[part_with.label[0].numpy() > 0].mean()
                              for part, part_with in zip(parts, unseen, strict=True)]))

    return {"share_of_lesions_found": {"real": found(unseen), "drawn without": found(cured),
                                       "before the disease": found(healthy)}}


def gallery(unseen: list[Slices], drawn: list[Slices], target: Path, num_rows: int = 6) -> None:
    """real | label | synthetic."""
    rows = []
    for part, other in zip(unseen[:num_rows], drawn[:num_rows], strict=True):
        semantic = SEMANTIC.combine(part.label, part.layout)[0].numpy()
        rows.append([shown(part), overlay(np.zeros_like(shown(part)), semantic, opacity=1.0), shown(other)])
    write_gallery(rows, ["real", "label", "synthetic"], target)


def run(name: str = "sean", preset: str = "tiny", steps: int = 1500, size: int = 64, num_patients: int = 20,
        num_slices: int = 8, device: str = "cpu", seed: int = 0, picture: Path | None = None,
        **options: Any) -> dict[str, Any]:
    """Train on `num_patients`, judge on half as many others; `options` change the preset."""
    training, unseen, healthy = patients(num_patients, size, num_slices)
    training.pool = PhantomSlices.of_patients(range(2000, 2000 + num_patients), size, num_slices).without_labels()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        synthesizer = train(name, preset, training, size, steps, Path(folder), device, seed, **options)
    seconds = time.perf_counter() - started
    result = {"synthesizer": name, "preset": preset, "options": options, "steps": steps, "size": size,
              "num_patients": num_patients, "seed": seed, "seconds_training": seconds,
              **judge(synthesizer, training, unseen, healthy)}
    if picture is not None:
        some = slice(None, None, max(1, len(unseen) // 6))
        gallery(unseen[some], draw(synthesizer, unseen[some], 0, healthy[some]), picture)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthesizer", default="sean")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="change the preset")
    add_arguments(parser, steps=1500)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    output = args.output or RESULTS / f"segmentability_{args.synthesizer}_{torch.device(args.device).type}.json"
    result = run(args.synthesizer, args.preset, args.steps, args.size, args.patients, device=args.device,
                 seed=args.seed, picture=output.with_suffix(".png"), **parse_options(args.option))
    for key, value in result.items():
        print(f"{key}: {value}")
    write_result(result, "segmentability", torch.device(args.device), output)


if __name__ == "__main__":
    main()
