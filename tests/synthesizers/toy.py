"""A synthesizer small enough to train in a second, and slices to train it on: test doubles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.synthesizers.base import Batch, Prepared, Slices, SliceSource, Stage, Synthesizer, SynthMeta, Terms
from nnunet_synth.synthesizers.semantic import SemanticClasses


@dataclass(frozen=True)
class ToyConfig:
    width: int = 8
    noise: bool = True
    num_steps: int = 6


class ToySynthesizer(Synthesizer):
    """One-hot label → conv → batch norm → ReLU → (+ noise) → conv → tanh, after a frozen input scale."""

    name = "toy"
    Config = ToyConfig
    PRESETS = {"tiny": ToyConfig(), "default": ToyConfig(width=16), "paper": ToyConfig(width=32)}

    def __init__(self, meta: SynthMeta, config: ToyConfig) -> None:
        super().__init__(meta, config)
        self.scale = nn.Conv2d(len(meta.semantic), len(meta.semantic), 1)       # never trained: must stay frozen
        self.body = nn.Sequential(nn.Conv2d(len(meta.semantic), config.width, 3, padding=1),
                                  nn.BatchNorm2d(config.width), nn.ReLU())
        self.head = nn.Conv2d(config.width, len(meta.channel_names), 1)
        self.noise_strength = nn.Parameter(torch.full((config.width, 1, 1), 0.1))

    @classmethod
    def build(cls, meta: SynthMeta, config: ToyConfig) -> ToySynthesizer:
        return cls(meta, config)

    @property
    def divisor(self) -> int:
        return 4

    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        total = steps or self.config.num_steps
        return [ToyStage(self, "coarse", total // 2), ToyStage(self, "fine", total - total // 2)]

    def forward(self, semantic: Tensor, generator: torch.Generator | None = None) -> Tensor:
        hidden = self.body(self.scale(self.meta.semantic.one_hot(semantic)))
        if self.config.noise:
            noise = torch.randn(len(hidden), 1, *hidden.shape[2:], generator=generator, device=hidden.device)
            hidden = hidden + noise * self.noise_strength
        return torch.tanh(self.head(hidden))

    def _decode(self, request: Prepared) -> Tensor:
        return self(request.semantic, request.generator)


class ToyStage(Stage):
    betas = (0.5, 0.9)

    def __init__(self, synthesizer: ToySynthesizer, name: str, num_steps: int) -> None:
        self.name, self.num_steps, self.batch_size = name, num_steps, 2
        self.synthesizer = synthesizer
        self.generator = _Trained(synthesizer)
        channels = len(synthesizer.meta.semantic) + len(synthesizer.meta.channel_names)
        self.discriminator = nn.Conv2d(channels, 1, 3, padding=1)
        self.ended = 0

    def learning_rates(self, step: int) -> tuple[float, float]:
        decay = 1 - step / self.num_steps
        return 1e-2 * decay, 1e-2 * decay

    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        drawn = slices.sample(self.batch_size, tuple(self.synthesizer.meta.patch_size), rng)
        return {"real": self.synthesizer.to_unit(drawn.image),
                "semantic": self.synthesizer.meta.semantic.combine(drawn.label, drawn.layout)}

    def generator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        fake = self.synthesizer(batch["semantic"])
        batch["fake"] = fake.detach()
        adversarial = -self._judge(fake, batch).mean()
        reconstruction = F.l1_loss(fake, batch["real"])
        return adversarial + 10 * reconstruction, {"reconstruction": reconstruction.detach()}

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        real, fake = self._judge(batch["real"], batch), self._judge(batch["fake"], batch)
        accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean(), {"discriminator_accuracy": accuracy.detach()}

    def _judge(self, image: Tensor, batch: Batch) -> Tensor:
        return self.discriminator(torch.cat([self.synthesizer.meta.semantic.one_hot(batch["semantic"]), image], 1))

    def on_end(self) -> None:
        self.ended += 1


class _Trained(nn.ModuleList):
    """The trained parts of the toy: all but `scale`."""

    def __init__(self, synthesizer: ToySynthesizer) -> None:
        super().__init__([synthesizer.body, synthesizer.head])
        self.noise_strength = synthesizer.noise_strength


class ToySlices:
    """Discs of intensity 0.6 (label 1) in a square lung of −0.2 (layout 1) on a background of −0.8."""

    def __init__(self, num_slices: int = 8, size: int = 32, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.slices = [disc_slice(rng, size, with_disc=number % 4 != 0) for number in range(num_slices)]
        self.sampled = 0

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        self.sampled += num_slices
        chosen = rng.integers(len(self.slices), size=num_slices)
        parts = [tuple(np.flip(part, -1) if flip else part for part in self.slices[number])
                 for number, flip in zip(chosen, rng.random(num_slices) < 0.5, strict=True)]
        return _stack(parts, [("toy", int(number)) for number in chosen], patch_size)

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        kept = [number for number, (_, label, _) in enumerate(self.slices) if label.any() or not only_targets]
        for number in kept[:max_slices]:
            yield _stack([self.slices[number]], [("toy", number)], self.slices[number][1].shape)


def disc_slice(rng: np.random.Generator, size: int, with_disc: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """image [H, W] float32, label [H, W], layout [H, W]."""
    y, x = np.mgrid[:size, :size]
    layout = ((abs(y - size / 2) < size * 0.4) & (abs(x - size / 2) < size * 0.4)).astype(np.int64)
    centre, radius = rng.uniform(size * 0.3, size * 0.7, 2), rng.uniform(size * 0.1, size * 0.2)
    label = (with_disc & ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius ** 2)).astype(np.int64)
    image = np.where(label > 0, 0.6, np.where(layout > 0, -0.2, -0.8)) + rng.normal(0, 0.02, (size, size))
    return image.astype(np.float32), label, layout


def _stack(parts: list[Any], origin: list[tuple[str, int]], patch_size: tuple[int, int]) -> Slices:
    height, width = patch_size
    image, label, layout = (torch.from_numpy(np.stack([part[k] for part in parts])[:, :height, :width].copy())
                            for k in range(3))
    return Slices(image=image[:, None], label=label, layout=layout, valid=torch.ones_like(label, dtype=torch.bool),
                  origin=origin)


def toy_meta(**changes: Any) -> SynthMeta:
    semantic = SemanticClasses.from_labels({"lesion": 1}, {"lung": 1})
    meta = {"synthesizer": "toy", "config": asdict(ToyConfig()), "dataset": "Dataset001_Toy", "channel_names": ["CT"],
            "semantic": semantic, "target_labels": [1], "intensity_range": [[-1.0, 1.0]], "patch_size": [32, 32],
            "divisor": 4, "fold": 0, "train_case_ids": ["toy"], "plans_sha256": "a" * 64, "spacing": [1.0, 1.0]}
    return SynthMeta(**{**meta, **changes})


def build_toy(seed: int = 0, **config: Any) -> ToySynthesizer:
    config = ToyConfig(**config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ToySynthesizer.build(toy_meta(config=asdict(config)), config)
