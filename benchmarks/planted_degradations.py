"""Do the measures of `nnunet_synth quality` see what is wrong? Four faults planted into phantom images, each twice.

    python -m benchmarks.planted_degradations [--size 96] [--num-patients 24] [--output FOLDER]

Real images are slices of some phantom patients; the clean synthetic set are slices of others, which an ideal
synthesizer would draw. Into copies of the clean set one fault each is planted, weak and strong: blur, noise, mode
collapse (a few images again and again) and wrong lesion densities. Each fault must be told by its own measure and by
FID: clean, weak and strong in this order. Writes `benchmarks/results/planted_degradations_cpu.json`, and with --output
the report of the comparison.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator, SeedSequence
from scipy.ndimage import gaussian_filter

from benchmarks.record import circumstances, write_result
from nnunet_synth.data.phantom import PhantomSettings, draw_case
from nnunet_synth.quality.image_set import ImageSet
from nnunet_synth.quality.imagenet import load_imagenet
from nnunet_synth.quality.measure import Quality, QualityOptions, measure_quality
from nnunet_synth.quality.report import write_quality
from nnunet_synth.quality.window import LUNG_CT, Window

WINDOW = Window(*LUNG_CT, "lung CT, HU")
STRENGTHS = ("weak", "strong")


def slices_of_patients(name: str, numbers: range, size: int, num_slices: int, seed: int = 0) -> ImageSet:
    """Slices that show lungs, of phantom patients with lesions."""
    images, labels, cases = [], [], []
    for number in numbers:
        settings = PhantomSettings(size, num_slices, slice_spacing=200 / num_slices)
        case = draw_case(SeedSequence([seed, number]), settings)
        for image, label, layout in zip(case.image, case.label, case.layout, strict=True):
            if layout.any():
                images.append(image.astype(np.float32))
                labels.append(label)
                cases.append(f"patient_{number}")
    return ImageSet(name, np.stack(images)[:, None], np.stack(labels), cases,
                    f"phantom patients {numbers.start} to {numbers.stop - 1}")


# ----------------------------------------------------------------------------------------------------------------------
# Faults. Each: the clean set, and how strong (0 weak, 1 strong) → the faulty one.


def blurred(clean: ImageSet, strength: int, rng: Generator) -> ImageSet:
    """A Gaussian of 0.6 or 1.2 pixels."""
    sigma = (0.6, 1.2)[strength]
    return replace(clean, images=gaussian_filter(clean.images, (0, 0, sigma, sigma)))


def noisy(clean: ImageSet, strength: int, rng: Generator) -> ImageSet:
    """White noise of 40 or 120 HU."""
    noise = rng.standard_normal(clean.images.shape, dtype=np.float32)
    return replace(clean, images=clean.images + (40, 120)[strength] * noise)


def collapsed(clean: ImageSet, strength: int, rng: Generator) -> ImageSet:
    """A quarter of the images, or a sixteenth, again and again."""
    few = rng.permutation(len(clean))[:max(2, len(clean) // (4, 16)[strength])]
    chosen = few[np.arange(len(clean)) % len(few)]
    return replace(clean, images=clean.images[chosen], labels=clean.labels[chosen],
                   cases=[clean.cases[index] for index in chosen])


def too_dense(clean: ImageSet, strength: int, rng: Generator) -> ImageSet:
    """Lesions denser by 150 or 400 HU: consolidations where there were ground-glass opacities."""
    added = np.float32((150, 400)[strength]) * (clean.labels[:, None] > 0)
    return replace(clean, images=clean.images + added)


# fault → how it is made, the measures that must tell it, and whether it raises (1) or lowers (-1) them
FAULTS: dict[str, tuple[Callable[[ImageSet, int, Generator], ImageSet], dict[str, int]]] = {
    "blur": (blurred, {"variance_of_laplacian": -1}),
    "noise": (noisy, {"noise_nlm": 1, "noise_bm3d": 1}),
    "collapse": (collapsed, {"MM-STD": -1}),
    "histogram": (too_dense, {"KL": 1}),
}


def plant(clean: ImageSet, seed: int = 0) -> list[ImageSet]:
    """The clean set, and each fault in both strengths ("blur, weak")."""
    faulty = [replace(make(clean, strength, np.random.default_rng([seed, strength])), name=f"{fault}, {word}",
                      origin=f"{clean.origin}; {make.__doc__.splitlines()[0]}")
              for fault, (make, _) in FAULTS.items() for strength, word in enumerate(STRENGTHS)]
    return [clean, *faulty]


# ----------------------------------------------------------------------------------------------------------------------
# What the measures say


def values_of(quality: Quality) -> dict[str, dict[str, float]]:
    """Measure → set → value."""
    values: dict[str, dict[str, float]] = {"FID": dict(quality.headline.fid), "KID": dict(quality.headline.kid)}
    values["MM-FID"] = {name: float(np.mean(scores)) for name, scores in quality.fid.items()}
    values["MM-STD"] = {name: float(np.mean(scores)) for name, scores in quality.deviation.items()}
    for measure in ("variance_of_laplacian", "high_frequency_share", "noise_nlm", "noise_bm3d"):
        values[measure] = {name: measures.mean(measure) for name, measures in quality.measures.items()}
    values["KL"] = dict(quality.kl)
    values["jpeg_bytes"] = dict(quality.jpeg_bytes)
    return values


def orders(values: dict[str, dict[str, float]], clean: str = "clean") -> dict[str, dict[str, bool]]:
    """fault → measure → whether clean, weak and strong come in the right order."""
    found: dict[str, dict[str, bool]] = {}
    for fault, (_, measures) in FAULTS.items():
        names = [clean, *(f"{fault}, {word}" for word in STRENGTHS)]
        found[fault] = {measure: bool((np.diff([values[measure][name] for name in names]) * direction > 0).all())
                        for measure, direction in {**measures, "FID": 1}.items()}
    return found


def compare(size: int, num_patients: int, num_slices: int, options: QualityOptions, seed: int = 0) -> Quality:
    """Real against clean and faulty sets, `num_patients` in each."""
    real = slices_of_patients("real", range(num_patients), size, num_slices, seed)
    clean = slices_of_patients("clean", range(1000, 1000 + num_patients), size, num_slices, seed)
    number = min(len(real), len(clean))

    def cut(one: ImageSet) -> ImageSet:
        return replace(one, images=one.images[:number], labels=one.labels[:number], cases=one.cases[:number])

    network = load_imagenet("auto", WINDOW, options.device)
    return measure_quality(cut(real), plant(cut(clean), seed), WINDOW, [network], {}, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--num-patients", type=int, default=24)
    parser.add_argument("--num-slices", type=int, default=6)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--output", type=Path, help="folder for the report")
    args = parser.parse_args()
    options = QualityOptions(extractors=["imagenet"], resolutions=args.resolutions)
    quality = compare(args.size, args.num_patients, args.num_slices, options)
    values, right = values_of(quality), orders(values_of(quality))
    for measure, of_sets in values.items():
        print(f"{measure:24}" + "  ".join(f"{name} {value:.4g}" for name, value in of_sets.items()))
    print(right)
    result: dict[str, Any] = {"size": args.size, "images": len(quality.real), "network": quality.extractors["imagenet"],
                              "resolutions": args.resolutions, "values": values, "orders": right}
    write_result(result, "planted_degradations", torch.device("cpu"))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        write_quality(quality, args.output, circumstances(torch.device("cpu")))


if __name__ == "__main__":
    main()
