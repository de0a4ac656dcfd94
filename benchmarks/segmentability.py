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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import RESULTS, write_result
from nnunet_synth.data.phantom import PhantomSettings, draw_case, segment_by_intensity
from nnunet_synth.evaluation.image_quality import (
    ThresholdSegmenter,
    lesion_histogram_kl,
    segmentability,
)
from nnunet_synth.evaluation.overlap import dice
from nnunet_synth.evaluation.sharpness import variance_of_laplacian
from nnunet_synth.synthesizers import find_synthesizer
from nnunet_synth.synthesizers.base import Slices, StyleOptions, Synthesizer, SynthMeta, SynthRequest
from nnunet_synth.synthesizers.gallery import overlay, to_gray, write_gallery
from nnunet_synth.synthesizers.options import make_config, parse_options
from nnunet_synth.synthesizers.pretrain import pretrain
from nnunet_synth.synthesizers.semantic import SemanticClasses

HU_WINDOW = (-1000.0, 200.0)
SEMANTIC = SemanticClasses.from_labels({"infection": 1}, {"left_lung": 1, "right_lung": 2})


@dataclass
class PhantomSlices:
    """Slices of phantom patients as a `SliceSource`; intensities are HU / 1000.

    Attributes:
        pool: unlabelled slices, which are never asked for their labels.
    """

    parts: list[Slices]
    pool: PhantomSlices | None = None

    @classmethod
    def of_patients(cls, numbers: range, size: int, num_slices: int, seed: int,
                    has_lesions: bool = True) -> PhantomSlices:
        """The same numbers without lesions are the same patients in the same scanner."""
        parts = []
        for number in numbers:
            case = draw_case(np.random.SeedSequence([seed, number]), PhantomSettings(size, num_slices), has_lesions)
            hu = np.clip(case.image.astype(np.float32), *HU_WINDOW) / 1000
            label, layout = (torch.from_numpy(part.astype(np.int64)) for part in (case.label, case.layout))
            parts += [Slices(torch.from_numpy(hu[index])[None, None], label[index][None], layout[index][None],
                             torch.ones(1, size, size, dtype=torch.bool), [(f"patient{number}", index)])
                      for index in range(num_slices)]
        return cls(parts)

    @property
    def with_lesions(self) -> list[Slices]:
        """By slice, then by patient: neighbours in the list are of different patients, which the control needs."""
        found = [part for part in self.parts if (part.label > 0).sum() >= 16]
        return sorted(found, key=lambda part: part.origin[0][1])

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        """Half of them with lesions, where labels tell which; mirrored at random."""
        with_lesions = self.with_lesions or self.parts
        chosen = [pool[rng.integers(len(pool))] for pool in
                  (with_lesions if rng.random() < 0.5 else self.parts for _ in range(num_slices))]
        return concatenate([mirrored(part) if rng.random() < 0.5 else part for part in chosen])

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        yield from (self.with_lesions if only_targets else self.parts)[:max_slices]

    def unlabelled(self) -> PhantomSlices | None:
        return self.pool

    def without_labels(self) -> PhantomSlices:
        return PhantomSlices([replace(part, label=torch.zeros_like(part.label)) for part in self.parts])


def mirrored(part: Slices) -> Slices:
    """Left and right exchanged, also by name."""
    layout = torch.tensor([0, 2, 1])[part.layout]
    return replace(part, image=part.image.flip(-1), label=part.label.flip(-1), layout=layout.flip(-1),
                   valid=part.valid.flip(-1))


def concatenate(parts: list[Slices]) -> Slices:
    image, label, layout, valid = (torch.cat([getattr(part, name) for part in parts])
                                   for name in ("image", "label", "layout", "valid"))
    return Slices(image, label, layout, valid, [origin for part in parts for origin in part.origin])


def train(name: str, preset: str, slices: PhantomSlices, size: int, steps: int, folder: Path, device: str,
          seed: int = 0, **options: Any) -> Synthesizer:
    """A synthesizer trained on these slices by the one loop; `options` change the preset."""
    synthesizer_class = find_synthesizer(name)
    config = make_config(synthesizer_class, preset, options)
    meta = SynthMeta(synthesizer=name, config=asdict(config), dataset="phantom", channel_names=["CT"],
                     semantic=SEMANTIC, target_labels=[1], intensity_range=[[bound / 1000 for bound in HU_WINDOW]],
                     patch_size=[size, size], divisor=1, fold=0, train_case_ids=[])
    torch.manual_seed(seed)
    synthesizer = synthesizer_class.build(meta, config)
    return pretrain(synthesizer, slices, folder, device=device, steps=steps, seed=seed, checkpoint_every=10 ** 6)


def draw(synthesizer: Synthesizer, parts: list[Slices], seed: int, scans: list[Slices] | None = None,
         batch_size: int = 8) -> list[Slices]:
    """Each part with an image drawn for its label and layout. The real image is not given; those that need one get the
    scan in the same place of `scans`."""
    device = next(synthesizer.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    drawn = []
    for start in range(0, len(parts), batch_size):
        some = parts[start:start + batch_size]
        batch = concatenate(some).to(device)
        image = concatenate(scans[start:start + batch_size]).to(device).image if synthesizer.needs else None
        synthesizer.begin_step(generator)
        result = synthesizer.synthesize(SynthRequest(label=batch.label, layout=batch.layout, image=image,
                                                     generator=generator))
        drawn += [replace(part, image=image[None].cpu()) for part, image in zip(some, result.image, strict=True)]
    return drawn


def lesion_values(parts: list[Slices]) -> np.ndarray:
    return np.concatenate([part.image[:, 0][part.label > 0].numpy() for part in parts])


def lesion_means(parts: list[Slices]) -> np.ndarray:
    return np.array([lesion_values([part]).mean() for part in parts])


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

    def given(part: Slices) -> np.ndarray:
        return segment_by_intensity(part.image[0, 0].numpy() * 1000, part.layout[0].numpy())

    def mean_dice(parts: list[Slices], labels: list[Slices]) -> float:
        return float(np.mean([dice(given(part), other.label[0].numpy() > 0)
                              for part, other in zip(parts, labels, strict=True)]))

    real, synthetic = mean_dice(unseen, unseen), mean_dice(drawn, drawn)
    sharpness = [float(torch.cat([variance_of_laplacian(part.image) for part in parts]).mean())
                 for parts in (unseen, drawn)]
    return {
        "fitted_interval": segmentability(fitted, unseen, drawn),
        "given_interval": {"dice_real": real, "dice_synthetic": synthetic, "ratio": synthetic / real,
                           "dice_permuted": mean_dice(drawn, drawn[1:] + drawn[:1])},
        "lesion_intensity_kl": lesion_histogram_kl(lesion_values(unseen), lesion_values(drawn)),
        "sharpness_ratio": sharpness[1] / sharpness[0],
        "lesion_mean_hu": {"real": float(lesion_values(unseen).mean() * 1000),
                           "synthetic": float(lesion_values(drawn).mean() * 1000)},
        "lesion_mean_hu_between_two_styles": float(np.abs(one_style - other_style).mean() * 1000),
        "num_unseen_slices": len(unseen),
        **(removal(synthesizer, unseen, healthy, given, seed) if synthesizer.needs else {}),
    }


def removal(synthesizer: Synthesizer, unseen: list[Slices], healthy: list[Slices],
            segment: Callable[[Slices], np.ndarray], seed: int) -> dict[str, Any]:
    """How much of each lesion is found again when the image shows it and the label asks for none; the same on the real
    image and on that of the patient without the disease, for comparison."""
    cured = draw(synthesizer, [replace(part, label=torch.zeros_like(part.label)) for part in unseen], seed, unseen)

    def found(parts: list[Slices]) -> float:
        return float(np.mean([segment(part)[part_with.label[0].numpy() > 0].mean()
                              for part, part_with in zip(parts, unseen, strict=True)]))

    return {"share_of_lesions_found": {"real": found(unseen), "drawn without": found(cured),
                                       "before the disease": found(healthy)}}


def gallery(unseen: list[Slices], drawn: list[Slices], target: Path, num_rows: int = 6) -> None:
    """real | label | synthetic."""
    rows = []
    for part, other in zip(unseen[:num_rows], drawn[:num_rows], strict=True):
        real, synthetic = (to_gray((image.numpy() * 1000 - HU_WINDOW[0]) / (HU_WINDOW[1] - HU_WINDOW[0]) * 2 - 1)
                           for image in (part.image[0], other.image[0]))
        semantic = SEMANTIC.combine(part.label, part.layout)[0].numpy()
        rows.append([real, overlay(np.zeros_like(real), semantic, opacity=1.0), synthetic])
    write_gallery(rows, ["real", "label", "synthetic"], target)


def run(name: str = "sean", preset: str = "tiny", steps: int = 1500, size: int = 64, num_patients: int = 20,
        num_slices: int = 8, device: str = "cpu", seed: int = 0, picture: Path | None = None,
        **options: Any) -> dict[str, Any]:
    """Train on `num_patients`, judge on half as many others; `options` change the preset."""
    training = PhantomSlices.of_patients(range(num_patients), size, num_slices, seed=11)
    others = range(1000, 1000 + num_patients // 2)
    training.pool = PhantomSlices.of_patients(range(2000, 2000 + num_patients), size, num_slices,
                                              seed=11).without_labels()
    unseen = PhantomSlices.of_patients(others, size, num_slices, seed=11).with_lesions
    before = {part.origin[0]: part
              for part in PhantomSlices.of_patients(others, size, num_slices, seed=11, has_lesions=False).parts}
    healthy = [before[part.origin[0]] for part in unseen]
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
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
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
