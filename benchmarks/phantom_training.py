"""Slices of phantom patients, to train a synthesizer on, to draw and to judge: what several benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_synth.data.phantom import PhantomSettings, draw_case, segment_by_intensity
from nnunet_synth.evaluation.overlap import dice
from nnunet_synth.evaluation.sharpness import variance_of_laplacian
from nnunet_synth.synthesizers import find_synthesizer
from nnunet_synth.synthesizers.base import Slices, Synthesizer, SynthMeta, SynthRequest
from nnunet_synth.synthesizers.gallery import to_gray
from nnunet_synth.synthesizers.options import make_config
from nnunet_synth.synthesizers.pretrain import pretrain
from nnunet_synth.synthesizers.semantic import SemanticClasses

HU_WINDOW = (-1000.0, 200.0)
DATA_SEED = 11
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
    def of_patients(cls, numbers: range, size: int, num_slices: int, has_lesions: bool = True) -> PhantomSlices:
        """The same numbers without lesions are the same patients in the same scanner."""
        parts = []
        for number in numbers:
            seed = np.random.SeedSequence([DATA_SEED, number])
            case = draw_case(seed, PhantomSettings(size, num_slices), has_lesions)
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


def patients(num_patients: int, size: int, num_slices: int) -> tuple[PhantomSlices, list[Slices], list[Slices]]:
    """Slices to train on; those with lesions of half as many others; and the latter before the disease."""
    others = range(1000, 1000 + num_patients // 2)
    unseen = PhantomSlices.of_patients(others, size, num_slices).with_lesions
    before = {part.origin[0]: part
              for part in PhantomSlices.of_patients(others, size, num_slices, has_lesions=False).parts}
    return (PhantomSlices.of_patients(range(num_patients), size, num_slices), unseen,
            [before[part.origin[0]] for part in unseen])


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


def find_lesions(part: Slices) -> np.ndarray:
    """[H, W] bool: the phantom's own analytic segmenter."""
    return segment_by_intensity(part.image[0, 0].numpy() * 1000, part.layout[0].numpy())


def mean_dice(parts: list[Slices], labels: list[Slices]) -> float:
    """What `find_lesions` finds in `parts`, against the labels of `labels`."""
    return float(np.mean([dice(find_lesions(part), other.label[0].numpy() > 0)
                          for part, other in zip(parts, labels, strict=True)]))


def sharpness_ratio(real: list[Slices], drawn: list[Slices]) -> float:
    """Variance of the Laplacian, drawn / real."""
    of_real, of_drawn = (torch.cat([variance_of_laplacian(part.image) for part in parts]).mean()
                         for parts in (real, drawn))
    return float(of_drawn / of_real)


def shown(part: Slices) -> np.ndarray:
    """[H, W] uint8, the window from black to white."""
    return to_gray((part.image[0].numpy() * 1000 - HU_WINDOW[0]) / (HU_WINDOW[1] - HU_WINDOW[0]) * 2 - 1)


def add_arguments(parser: argparse.ArgumentParser, steps: int | None, size: int = 64, threads: int = 2) -> None:
    """What a training on the phantom can be told, with these defaults."""
    parser.add_argument("--steps", type=int, default=steps, help="(default: %(default)s; None = the preset's)")
    parser.add_argument("--size", type=int, default=size, help="pixels a side")
    parser.add_argument("--patients", type=int, default=20, help="to train on; half as many others to judge by")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=threads, help="of the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
