"""A glance into a running training: what the networks saw, what they thought, what was drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from nnunet_synth.synthesizers.gallery import overlay, to_gray, write_gallery


@dataclass(frozen=True)
class PreviewSample:
    """One unlabelled sample of a step: its image [C, *sp], label maps of it [*sp] and images drawn from them [C, *sp].

    Copies: the step's batches must not be kept alive.
    """

    x_u: Tensor
    labels: dict[str, Tensor]
    drawn: dict[str, Tensor]

    @classmethod
    def of_first(cls, x_u: Tensor, labels: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> PreviewSample:
        """The first sample of a batch, under the given titles."""
        def first(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {title: part[0].detach().clone() for title, part in parts.items()}

        return cls(x_u[0].detach().clone(), first(labels), first(drawn))


def write_preview(sample: PreviewSample, target: Path) -> None:
    """x_u | each label map over it | each drawn image; of 3D patches the slice with the most foreground."""
    labels = [label.cpu().numpy() for label in sample.labels.values()]
    images = [image.float().cpu().numpy() for image in (sample.x_u, *sample.drawn.values())]
    if labels[0].ndim == 3:
        best = int(np.any([label > 0 for label in labels], axis=0).sum((1, 2)).argmax())
        labels, images = [label[best] for label in labels], [image[:, best] for image in images]

    low, high = np.percentile(images[0], (0.5, 99.5))
    grays = [to_gray(2 * (image - low) / max(high - low, 1e-6) - 1) for image in images]
    row = [grays[0], *(overlay(grays[0], label) for label in labels), *grays[1:]]
    write_gallery([row], ["x_u", *sample.labels, *sample.drawn], target)
