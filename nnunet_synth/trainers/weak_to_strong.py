"""From weak to strong: what a network is sure of in a sample must hold in strongly changed views of it.

Yang et al., Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation, CVPR 2023 (UniMatch), after
Sohn et al., FixMatch, NeurIPS 2020; CutMix: Yun et al., ICCV 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.data.intensity_augmentation import augment_intensity
from nnunet_synth.losses.segmentation import PseudoLabels, foreground_fraction
from nnunet_synth.trainers.configured import unwrap
from nnunet_synth.trainers.loss_terms import Loss, Outputs, finest, no_gradient_sync, split_outputs, touching_all
from nnunet_synth.trainers.perturbations import PerturbedCopies, channel_dropout
from nnunet_synth.trainers.preview import PreviewSample
from nnunet_synth.trainers.semi_supervised import SemiSupervisedTrainer
from nnunet_synth.trainers.synthesis import UnlabelledBatch

INTENSITY_PASSES = 2            # nnU-Net's intensity augmentation leaves a third of all images alone; twice, a tenth
CUTMIX_PROBABILITY = 0.5
CUTMIX_AREA = (0.02, 0.4)       # of the image
CUTMIX_RATIO = (0.3, 1 / 0.3)   # height : width

# ----------------------------------------------------------------------------------------------------------------------
# Strong views


@dataclass(frozen=True)
class StrongView:
    """A changed batch, and where its samples carry a box of the sample before them in the batch.

    Attributes:
        image: [B, C, *sp].
        pasted: [B, 1, *sp] bool.
    """

    image: Tensor
    pasted: Tensor

    def mix(self, values: Tensor) -> Tensor:
        """[B, 1 or R, *sp] of the batch as it was → of this view."""
        return torch.where(self.pasted, values.roll(1, 0), values)


def cutmix_boxes(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """[B, 1, *sp] bool for images [B, C, *sp]: each sample gets a box with probability 1/2; volumes in all slices."""
    boxes = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    height, width = shape[-2:]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    for box in boxes:
        if uniform(0, 1) >= CUTMIX_PROBABILITY:
            continue
        while True:
            area, ratio = uniform(*CUTMIX_AREA) * height * width, uniform(*CUTMIX_RATIO)
            size = int(math.sqrt(area * ratio)), int(math.sqrt(area / ratio))
            top, left = int(uniform(0, height)), int(uniform(0, width))
            if top + size[0] <= height and left + size[1] <= width:
                break
        box[..., top:top + size[0], left:left + size[1]] = True
    return boxes


def strong_view(batch: UnlabelledBatch, mask_outside: Callable[[Tensor, Tensor], Tensor],
                generator: torch.Generator, ignore_axes: tuple[int, ...] | None = None) -> StrongView:
    """Intensities augmented on the device where the batch is, then CutMix among its samples.

    Args:
        mask_outside: (image, layout) → image; applied after the augmentation, so that what is masked stays masked.
        generator: on the CPU.
        ignore_axes: spatial axes that keep their resolution (`augment_intensity`).
    """
    image = batch.image
    for _ in range(INTENSITY_PASSES):
        image = augment_intensity(image, generator, ignore_axes)
    image = mask_outside(torch.where(batch.valid[:, None], image, batch.image), batch.layout)
    pasted = cutmix_boxes(image.shape, generator).to(image.device, non_blocking=True)
    return StrongView(torch.where(pasted, image.roll(1, 0), image), pasted)


# ----------------------------------------------------------------------------------------------------------------------
# The step


def sure_labels(logits: Tensor, confidence: float, pseudo_labels: PseudoLabels) -> tuple[Tensor, Tensor]:
    """[B, heads, …] logits of the weak view → target and where the network is sure of it, p ≥ τ; detached.

    Of exclusive classes [B, 1, …] int64 and bool; of regions [B, R, …] bool, where sure may also mean: not there.
    """
    p = pseudo_labels.probabilities(logits.detach())
    if pseudo_labels.regions is None:
        highest, label = p.max(1, keepdim=True)
        return label, highest >= confidence
    return p >= 0.5, torch.maximum(p, 1 - p) >= confidence


def cross_entropy_where_sure(logits: Tensor, target: Tensor, sure: Tensor, pseudo_labels: PseudoLabels) -> Tensor:
    """FixMatch: 1(p ≥ τ) · H(y, p), averaged over all pixels, sure or not."""
    if pseudo_labels.regions is None:
        values = F.cross_entropy(logits, target[:, 0], reduction="none")[:, None]
    else:
        values = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return (values * sure).mean()


def weak_to_strong_step(network: nn.Module, x_l: Tensor, y_l: Tensor | list[Tensor], x_w: Tensor,
                        views: Sequence[StrongView], *, with_perturbed: Callable[[Tensor, int], Outputs], loss: Loss,
                        pseudo_labels: PseudoLabels, backward: Callable[[Tensor], None], confidence: float,
                        consistency_weight: float,
                        autocast: Callable[[], AbstractContextManager] = nullcontext) -> dict[str, Any]:
    """Accumulate the gradient of L_s + w (½ L_fp + ½ mean(L_s1, L_s2)).

    The terms of the weak view are backpropagated and freed before the strong views are looked at.

    Args:
        x_w: the unlabelled batch, weakly augmented.
        views: strongly changed views of it.
        with_perturbed: (x, n) → the network's outputs on x, and on its last n samples once more with perturbed
            features.
        confidence: τ.
        consistency_weight: w; UniMatch's is 1.

    Returns:
        Detached scalars "loss", "loss_supervised", "loss_feature", "loss_strong", "sure" (share of the pixels); the
        labels "y_w" [B, …].
    """
    with no_gradient_sync([network]):
        with autocast():
            outputs = with_perturbed(torch.cat([x_l, x_w]), len(x_w))
            supervised = loss(split_outputs(outputs, len(x_l))[0], y_l)
            on_w, on_perturbed = finest(outputs)[len(x_l):].split(len(x_w))
            target, sure = sure_labels(on_w, confidence, pseudo_labels)
            feature = cross_entropy_where_sure(on_perturbed, target, sure, pseudo_labels)
        backward(supervised + 0.5 * consistency_weight * feature)
    del outputs, on_w, on_perturbed

    with autocast():
        outputs = network(torch.cat([view.image for view in views]))
        strong = torch.stack([
            cross_entropy_where_sure(logits, view.mix(target), view.mix(sure), pseudo_labels)
            for logits, view in zip(finest(outputs).split(len(x_w)), views, strict=True)]).mean()
    backward(touching_all(0.5 * consistency_weight * strong, network, outputs))
    terms = {"loss_supervised": supervised.detach(), "loss_feature": feature.detach(), "loss_strong": strong.detach()}
    total = terms["loss_supervised"] + 0.5 * consistency_weight * (terms["loss_feature"] + terms["loss_strong"])
    return {"loss": total, **terms, "sure": sure.float().mean(), "y_w": pseudo_labels.to_labels(target)}


# ----------------------------------------------------------------------------------------------------------------------
# The trainer


class UniMatchTrainer(SemiSupervisedTrainer):
    """UniMatch: two strong views and one feature perturbation learn from the sure labels of the weak view."""

    def initialize(self) -> None:
        super().initialize()
        self.perturbed_copies = PerturbedCopies(unwrap(self.network), self._perturb)

    def prepare_training(self) -> None:
        super().prepare_training()
        _, dummy_2d, _, _ = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.ignore_axes = (0,) if dummy_2d else None       # of volumes that nnU-Net augments as slices

    def _perturb(self, features: Tensor) -> Tensor:
        return channel_dropout(features, self.settings.feature_dropout)

    def with_perturbed(self, x: Tensor, num_samples: int) -> Outputs:
        with self.perturbed_copies.of_last(num_samples):
            return self.network(x)

    def strong_view(self, unlabelled: UnlabelledBatch) -> StrongView:
        return strong_view(unlabelled, self.mask_outside, torch.default_generator, self.ignore_axes)

    def train_step(self, batch: dict) -> dict:
        x_l, y_l, unlabelled = self.to_device(batch)
        views = [self.strong_view(unlabelled) for _ in range(2)]
        self.zero_gradients()
        results = weak_to_strong_step(
            self.network, x_l, y_l, unlabelled.image, views, with_perturbed=self.with_perturbed, loss=self.loss,
            pseudo_labels=self.pseudo_labels, backward=self.backward, autocast=self.autocast,
            confidence=self.settings.weak_view_confidence, consistency_weight=self.consistency_weight())
        self.update_networks()
        self._last_sample = PreviewSample.of_first(
            unlabelled.image, {"weak": results["y_w"]}, {"strong 1": views[0].image, "strong 2": views[1].image})
        return self.scalars(results)

    def scalars(self, results: dict[str, Any]) -> dict[str, Any]:
        return {**super().scalars(results), **self.to_numpy({
            "sure": results["sure"], "foreground": foreground_fraction(results["y_w"])})}
