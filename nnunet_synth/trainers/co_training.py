"""Self-ensembling co-training: two networks teach each other, and each must agree with the ensemble of its own past.

Li et al., Self-Ensembling Co-Training Framework for Semi-Supervised COVID-19 CT Segmentation, IEEE J. Biomed. Health
Inform. 25:4140, 2021, from its abstract: what is ours in it is in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_synth.losses.consistency import squared_difference
from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.trainers.averaged import AveragedNetwork
from nnunet_synth.trainers.cross_pseudo import CPSTrainer
from nnunet_synth.trainers.loss_terms import Loss, finest, split_outputs, summed
from nnunet_synth.trainers.preview import PreviewSample

# ----------------------------------------------------------------------------------------------------------------------
# The step


def co_training_step(networks: Sequence[nn.Module], ensembles: Sequence[Callable[[Tensor], Tensor]], x_l: Tensor,
                     y_l: Tensor | list[Tensor], x_u: Tensor, *, loss: Loss, pseudo_labels: PseudoLabels,
                     backward: Callable[[Tensor], None], pseudo_weight: float, consistency_weight: float,
                     autocast: Callable[[], AbstractContextManager] = nullcontext) -> dict[str, Any]:
    """Accumulate the gradient of Σ_i L_s(i) + λ_p L_Seg(f_i(x_u), y_j) + λ_c mean (f_i(x_u) − f̄_i(x_u))², j the other.

    Args:
        networks: the two; may be wrapped in DistributedDataParallel.
        ensembles: what each has become on average, x → logits at full resolution.
        pseudo_weight, consistency_weight: λ_p, λ_c at this time.

    Returns:
        Detached scalars "loss", "loss_supervised", "loss_pseudo", "loss_consistency"; the labels "y_1", "y_2" [B, …].
    """
    with autocast():
        outputs = [split_outputs(each(torch.cat([x_l, x_u])), len(x_l)) for each in networks]
        y_1, y_2 = (pseudo_labels.from_logits(finest(on_u)) for _, on_u in outputs)
        with torch.no_grad():
            remembered = [pseudo_labels.probabilities(ensemble(x_u)) for ensemble in ensembles]
        supervised = [loss(on_l, y_l) for on_l, _ in outputs]
        pseudo = [loss(on_u, pseudo_labels.for_outputs(y_other, on_u))
                  for (_, on_u), y_other in zip(outputs, (y_2, y_1), strict=True)]
    consistency = [squared_difference(pseudo_labels.probabilities(finest(on_u)), past)
                   for (_, on_u), past in zip(outputs, remembered, strict=True)]
    for loss_s, loss_p, loss_c in zip(supervised, pseudo, consistency, strict=True):
        backward(loss_s + pseudo_weight * loss_p + consistency_weight * loss_c)
    terms = {"loss_supervised": summed(supervised), "loss_pseudo": summed(pseudo),
             "loss_consistency": summed(consistency)}
    total = terms["loss_supervised"] + pseudo_weight * terms["loss_pseudo"] \
        + consistency_weight * terms["loss_consistency"]
    return {"loss": total, **terms, "y_1": pseudo_labels.to_labels(y_1), "y_2": pseudo_labels.to_labels(y_2)}


# ----------------------------------------------------------------------------------------------------------------------
# The trainer


class SelfEnsemblingTrainer(CPSTrainer):
    """Self-ensembling co-training. The trained model is the first network; peer and ensembles lie beside it."""

    CONSISTENCY_WEIGHT = 0.1
    RAMP_UP = 80 / 300          # epochs of Laine and Aila's temporal ensembling

    def initialize(self) -> None:
        super().initialize()
        self.ensembles = [AveragedNetwork(each, self.settings.ensemble_decay) for each in (self.network, self.peer)]

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "ensembles": [ensemble.state_dict() for ensemble in self.ensembles]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        for ensemble, stored in zip(self.ensembles, state["ensembles"], strict=True):
            ensemble.load_state_dict(stored)

    def consistency_weight(self) -> float:
        """Nothing is remembered in the first epoch."""
        return super().consistency_weight() if self.ensembles[0].num_updates > 0 else 0.0

    def train_step(self, batch: dict) -> dict:
        x_l, y_l, unlabelled = self.to_device(batch)
        self.zero_gradients()
        results = co_training_step(
            (self.network, self.peer), self.ensembles, x_l, y_l, unlabelled.image, loss=self.loss,
            pseudo_labels=self.pseudo_labels, backward=self.backward, autocast=self.autocast,
            pseudo_weight=self.settings.pseudo_weight * self.ramp(), consistency_weight=self.consistency_weight())
        self.update_networks()
        self._last_sample = PreviewSample.of_first(
            unlabelled.image, {"y 1": results["y_1"], "y 2": results["y_2"]}, {})
        return self.scalars(results)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        for ensemble, each in zip(self.ensembles, (self.network, self.peer), strict=True):
            ensemble.update(each)
