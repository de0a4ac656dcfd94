"""Dual consistency: the answer must turn with the image, and stand when the features are perturbed.

Li et al., Dual-Consistency Semi-Supervised Learning with Uncertainty Quantification for COVID-19 Lesion Segmentation
from CT Images, MICCAI 2021 (UDC-Net), from its abstract: what is ours in it is in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from nnunet_synth.losses.consistency import entropy
from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.trainers.cross_consistency import Auxiliaries, CCTTrainer
from nnunet_synth.trainers.loss_terms import Loss, Outputs, finest, split_outputs
from nnunet_synth.trainers.preview import PreviewSample

# ----------------------------------------------------------------------------------------------------------------------
# Uncertainty


def uncertainties(predictions: Sequence[Tensor], exclusive: bool) -> tuple[Tensor, Tensor]:
    """Epistemic and aleatoric uncertainty of several predictions of one image.

    Aleatoric is the mean of their entropies, what each is unsure of; epistemic the entropy of their mean less that,
    what they disagree about. Both are without gradient.

    Args:
        predictions: [B, C, …] probabilities each.

    Returns:
        [B, 1, …] each, or [B, R, …] of regions.
    """
    with torch.no_grad():
        stacked = torch.stack(list(predictions))
        aleatoric = torch.stack([entropy(p, exclusive) for p in stacked]).mean(0)
        return (entropy(stacked.mean(0), exclusive) - aleatoric).clamp(min=0), aleatoric


# ----------------------------------------------------------------------------------------------------------------------
# The step


def dual_consistency_step(encode_decode: Callable[[Tensor], tuple[Outputs, list[Tensor]]], auxiliaries: Auxiliaries,
                          transform: Callable[[Tensor], Tensor], x_l: Tensor, y_l: Tensor | list[Tensor], x_u: Tensor,
                          *, loss: Loss, pseudo_labels: PseudoLabels, backward: Callable[[Tensor], None],
                          consistency_weight: float,
                          autocast: Callable[[], AbstractContextManager] = nullcontext) -> dict[str, Any]:
    """Accumulate the gradient of L_s + λ (L_T + L_F) over probabilities of the unlabelled samples:

    L_T = mean w (T f(x) − f(T x))² and L_F = 1/K Σ_k mean w (f(x) − f_k(z̃_k))², with w = exp(−u_e − u_a) of the main
    and auxiliary answers to x. The main decoder's f(x) is a target in both.

    Args:
        encode_decode, auxiliaries: as for `cross_consistency_step`.
        transform: T of a batch [B, C, …]: a flip or turn.

    Returns:
        Detached scalars "loss", "loss_supervised", "loss_transformation", "loss_feature", "epistemic", "aleatoric"
        (means); the labels "y_u" [B, …].
    """
    num_l, num_u = len(x_l), len(x_u)
    with autocast():
        outputs, features = encode_decode(torch.cat([x_l, x_u, transform(x_u)]))
        supervised = loss(split_outputs(outputs, num_l)[0], y_l)
        on_u, on_transformed = finest(outputs)[num_l:].split(num_u)
        target = pseudo_labels.probabilities(on_u.detach())
        y_u = pseudo_labels.to_labels(pseudo_labels.from_logits(on_u))
        answers = [pseudo_labels.probabilities(answer)
                   for answer in auxiliaries([z[num_l:num_l + num_u] for z in features], y_u > 0)]
    epistemic, aleatoric = uncertainties([target, *answers], exclusive=pseudo_labels.regions is None)
    weight = (-epistemic - aleatoric).exp()
    difference = pseudo_labels.probabilities(on_transformed) - transform(target)
    transformation = (transform(weight) * difference.square()).mean()
    feature = torch.stack([(weight * (answer - target).square()).mean() for answer in answers]).mean()
    total = supervised + consistency_weight * (transformation + feature)
    backward(total)
    return {"loss": total.detach(), "loss_supervised": supervised.detach(),
            "loss_transformation": transformation.detach(), "loss_feature": feature.detach(),
            "epistemic": epistemic.mean(), "aleatoric": aleatoric.mean(), "y_u": y_u}


def random_symmetry(shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A random symmetry of the patch other than the identity: turned and flipped in the plane, volumes upside down.

    Args:
        shape: of the batch, [B, C, *sp].
    """
    turns = (0, 1, 2, 3) if shape[-1] == shape[-2] else (0, 2)
    axes = [(), (-1,)] if len(shape) == 4 else [(), (-1,), (-3,), (-1, -3)]
    others = [(turn, flipped) for turn in turns for flipped in axes][1:]
    turn, flipped = others[int(torch.randint(len(others), ()))]
    return lambda batch: torch.rot90(batch, turn, (-2, -1)).flip(flipped)


# ----------------------------------------------------------------------------------------------------------------------
# The trainer


class UDCTrainer(CCTTrainer):
    """UDC: CCT's feature perturbations and a transformation of the image, weighted by how certain the answers are."""

    def train_step(self, batch: dict) -> dict:
        x_l, y_l, unlabelled = self.to_device(batch)
        self.zero_gradients()
        results = dual_consistency_step(
            self.encode_decode, self.auxiliaries, random_symmetry(unlabelled.image.shape), x_l, y_l, unlabelled.image,
            loss=self.loss, pseudo_labels=self.pseudo_labels, backward=self.backward, autocast=self.autocast,
            consistency_weight=self.consistency_weight())
        self.update_networks()
        self._last_sample = PreviewSample.of_first(unlabelled.image, {"main": results["y_u"]}, {})
        return self.scalars(results)

    def scalars(self, results: dict[str, Any]) -> dict[str, Any]:
        return {**super().scalars(results), **self.to_numpy({
            "epistemic": results["epistemic"], "aleatoric": results["aleatoric"]})}
