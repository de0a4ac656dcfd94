"""Do synthetic lesions have the intensities of real ones? UM2I's Fig. 8 (mode collapse), on the phantom.

    python -m benchmarks.lesion_histograms [--synthesizers sean um2i m2i] [--steps 600] [--size 64]

Each synthesizer is trained on slices of some phantom patients and draws the labels of others; UM2I, which needs a scan,
gets theirs from before the disease. Then the Hounsfield units of lesion pixels, real and synthetic, are compared: their
histograms, KL(real ‖ synthetic), and how much the means of single slices' lesions differ between slices.
Writes `benchmarks/results/lesion_histograms_<device>.json` and a picture beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.phantom_training import (
    HU_WINDOW,
    add_arguments,
    draw,
    lesion_means,
    lesion_values,
    patients,
    train,
)
from benchmarks.record import RESULTS, write_result
from nnunet_synth.atomic import atomic_file
from nnunet_synth.evaluation.image_quality import lesion_histogram_kl
from nnunet_synth.synthesizers.base import Slices

NUM_BINS = 48
NUM_EXAMPLES = 4


def run(names: Sequence[str], steps: int, size: int, num_patients: int, num_slices: int, device: str, seed: int,
        picture: Path) -> dict[str, Any]:
    """Train each of `names` on `num_patients`, draw the labels of half as many others, and compare."""
    training, unseen, healthy = patients(num_patients, size, num_slices)
    drawn = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            synthesizer = train(name, "tiny", training, size, steps, Path(folder), device, seed)
        synthesizer.fit_pool(training)
        drawn[name] = draw(synthesizer, unseen, seed, healthy)
    write_picture(unseen, drawn, picture)
    return {"preset": "tiny", "steps": steps, "size": size, "num_patients": num_patients, "seed": seed,
            "num_unseen_slices": len(unseen), "real": describe(unseen),
            **{name: {**describe(parts), "kl_real_synthetic": lesion_histogram_kl(lesion_values(unseen),
                                                                                  lesion_values(parts))}
               for name, parts in drawn.items()}}


def describe(parts: list[Slices]) -> dict[str, Any]:
    """Of the lesions' HU: mean, standard deviation over pixels and between slices' means, and the histogram."""
    hu = lesion_values(parts) * 1000
    return {"mean": float(hu.mean()), "std_of_pixels": float(hu.std()),
            "std_of_slice_means": float(lesion_means(parts).std() * 1000), "histogram": histogram(parts).tolist()}


def histogram(parts: list[Slices]) -> np.ndarray:
    """Share of lesion pixels in each of `NUM_BINS` bins of the window."""
    counts = np.histogram(lesion_values(parts) * 1000, NUM_BINS, HU_WINDOW)[0]
    return counts / counts.sum()


def write_picture(unseen: list[Slices], drawn: dict[str, list[Slices]], target: Path) -> None:
    """A row for the real slices and one for each synthesizer: the histogram (real in gray behind), some slices."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    examples = np.linspace(0, len(unseen) - 1, NUM_EXAMPLES).round().astype(int)
    rows = {"real": unseen, **drawn}
    centres = np.linspace(*HU_WINDOW, NUM_BINS + 1)[:-1] + (HU_WINDOW[1] - HU_WINDOW[0]) / NUM_BINS / 2
    figure = Figure(figsize=(11, 2 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 1 + NUM_EXAMPLES, width_ratios=[2, *[1] * NUM_EXAMPLES], squeeze=False)
    for row, (name, parts) in zip(axes, rows.items(), strict=True):
        row[0].fill_between(centres, histogram(unseen), color="0.8", step="mid")
        if name != "real":
            kl = lesion_histogram_kl(lesion_values(unseen), lesion_values(parts))
            row[0].step(centres, histogram(parts), where="mid", color="C0")
            name = f"{name}: KL {kl:.2f}"
        row[0].set_title(name, fontsize=9)
        row[0].set_yticks([])
        for plot, index in zip(row[1:], examples, strict=True):
            plot.imshow(parts[index].image[0, 0].numpy() * 1000, cmap="gray", vmin=HU_WINDOW[0], vmax=HU_WINDOW[1])
            plot.contour(parts[index].label[0].numpy() > 0, levels=[0.5], colors="C1", linewidths=0.7)
            plot.set_axis_off()
    axes[-1, 0].set_xlabel("HU of lesion pixels")
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthesizers", nargs="+", default=["sean", "um2i", "m2i"])
    parser.add_argument("--slices", type=int, default=8)
    add_arguments(parser, steps=600)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    output = args.output or RESULTS / f"lesion_histograms_{device.type}.json"
    result = run(args.synthesizers, args.steps, args.size, args.patients, args.slices, args.device, args.seed,
                 output.with_suffix(".png"))
    for name in ("real", *args.synthesizers):
        print(name, {key: value for key, value in result[name].items() if key != "histogram"})
    write_result(result, "lesion_histograms", device, output)


if __name__ == "__main__":
    main()
