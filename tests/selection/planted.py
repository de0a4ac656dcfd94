"""Models whose quality is known: what they draw is the scan itself, or the scan with one fault."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.evaluation.image_quality import ThresholdSegmenter
from nnunet_synth.evaluation.sharpness import variance_of_laplacian
from nnunet_synth.selection.acceptance import REAL
from nnunet_synth.synthesizers import checkpoint
from nnunet_synth.synthesizers.base import Prepared, Stage, Synthesizer, SynthMeta


@dataclass(frozen=True)
class PlantedConfig:
    fault: str = "none"         # | blur | noise | shuffle


class Planted(Synthesizer):
    """Draws the request's own image; it needs the image for nothing else."""

    name = "planted"
    Config = PlantedConfig
    PRESETS = {"tiny": PlantedConfig(), "default": PlantedConfig(), "paper": PlantedConfig()}

    def __init__(self, meta: SynthMeta, config: PlantedConfig) -> None:
        super().__init__(meta, config)
        # So that no two models have the same weights.
        self.mark = nn.Parameter(torch.tensor(float(len(config.fault))))

    @classmethod
    def build(cls, meta: SynthMeta, config: PlantedConfig) -> Planted:
        return cls(meta, config)

    @property
    def divisor(self) -> int:
        return 1

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image"})

    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        raise NotImplementedError("it is not trained")

    def _decode(self, request: Prepared) -> Tensor:
        image = request.image
        if self.config.fault == "blur":
            return gaussian_blur(image, 7, 1.5)
        if self.config.fault == "noise":
            return image + torch.randn(image.shape, generator=request.generator)
        return image.roll(1, 0) if self.config.fault == "shuffle" else image


class AnalyticSegmenter:
    """An interval of intensities, fitted on training slices: nothing is learned."""

    description = "thresholds"

    def __init__(self, slices) -> None:
        self.thresholds = ThresholdSegmenter.fit(slices.iterate(True, None), [1])

    def label(self, images, layouts):
        import numpy as np
        return np.stack([self.thresholds.segment(image[0], layout > 0, 1) for image, layout
                         in zip(images, layouts, strict=True)]).astype(np.int64)


class AnalyticClassifier(nn.Module):
    """Calls an image real where it is about as sharp as the real training images: nothing is learned, so that no
    rounding of a training decides. It stands in for the network that `selection.ranking.fit` trains."""

    def __init__(self, lowest: float, highest: float) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor([lowest, highest]))

    @classmethod
    def fit(cls, task, training, *_):
        images = torch.stack([torch.tensor(example.images.images[example.index]) for example in training
                              if example.target == REAL])
        found = variance_of_laplacian(images)
        return cls(float(found.min()) / 1.5, float(found.max()) * 1.5).eval().requires_grad_(False), [0.0]

    def forward(self, images: Tensor) -> Tensor:
        found = variance_of_laplacian(images)
        is_real = (self.sharpness[0] <= found) & (found <= self.sharpness[1])
        return torch.stack([torch.where(is_real, 4.0, -4.0), torch.zeros(len(images))], 1)


# The good one is neither the first nor the last.
FAULTS = {"step_000001": "blur", "step_000002": "none", "step_000003": "noise", "final": "shuffle"}
GOOD = "step_000002"


def plant(experiment: Experiment, meta: SynthMeta) -> None:
    """Four models of one synthesizer in the place where a training leaves them."""
    home = experiment.synthesizer_folder("planted")
    for name, fault in FAULTS.items():
        config = PlantedConfig(fault)
        model = Planted(replace(meta, synthesizer="planted", config=asdict(config)).with_metrics(finished=True), config)
        checkpoint.save_synthesizer(model, home if name == "final" else home / "checkpoints" / name)
