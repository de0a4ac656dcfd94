"""A glance into a running training: what the networks saw, what they thought, what was drawn from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nnunet_synth.synthesizers.gallery import overlay, to_gray, write_gallery


@dataclass(frozen=True)
class PreviewSample:
    """One unlabelled sample of a step: images [C, *sp] (x_u, then x̂₁ and x̂₂ if any) and both pseudo-labels [*sp].

    Copies: the step's batches must not be kept alive.
    """

    images: list[Tensor]
    y_1: Tensor
    y_2: Tensor

    @classmethod
    def of_first(cls, x_u: Tensor, results: dict[str, Any]) -> PreviewSample:
        """The first sample of a batch; `results` as `cross_pseudo_step` returns them."""
        images = [x_u[0]]
        if "synthetic" in results:
            drawn = results["synthetic"].image
            images += [drawn[0], drawn[len(drawn) // 2]]
        return cls([image.detach().clone() for image in images], results["y_1"][0].clone(), results["y_2"][0].clone())


def write_preview(sample: PreviewSample, target: Path) -> None:
    """x_u | ŷ of the first network | ŷ of the peer | x̂₁ (drawn from the peer's ŷ) | x̂₂ (from the first one's); of 3D
    patches the slice with the most foreground."""
    y_1, y_2 = sample.y_1.cpu().numpy(), sample.y_2.cpu().numpy()
    images = [image.float().cpu().numpy() for image in sample.images]
    if y_1.ndim == 3:
        best = int(((y_1 > 0) | (y_2 > 0)).sum((1, 2)).argmax())
        y_1, y_2, images = y_1[best], y_2[best], [image[:, best] for image in images]

    low, high = np.percentile(images[0], (0.5, 99.5))
    grays = [to_gray(2 * (image - low) / max(high - low, 1e-6) - 1) for image in images]
    row = [grays[0], overlay(grays[0], y_1), overlay(grays[0], y_2), *grays[1:]]
    titles = ["x_u", "y 1", "y 2", "synth 1", "synth 2"][:len(row)]      # synth 1 is drawn from y 2, synth 2 from y 1
    write_gallery([row], titles, target)
