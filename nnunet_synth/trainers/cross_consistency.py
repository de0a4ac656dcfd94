"""Cross-consistency training: auxiliary decoders must find in perturbed features what the main decoder finds.

Ouali et al., Semi-Supervised Semantic Segmentation with Cross-Consistency Training, CVPR 2020 (CCT).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_synth.losses.consistency import squared_difference
from nnunet_synth.losses.segmentation import PseudoLabels, foreground_fraction
from nnunet_synth.trainers.auxiliary_decoders import AuxiliaryDecoders
from nnunet_synth.trainers.configured import unwrap
from nnunet_synth.trainers.loss_terms import Loss, Outputs, finest, split_outputs
from nnunet_synth.trainers.perturbations import RecordedFeatures
from nnunet_synth.trainers.preview import PreviewSample
from nnunet_synth.trainers.semi_supervised import SemiSupervisedTrainer

Auxiliaries = Callable[[Sequence[Tensor], Tensor], list[Tensor]]

# ----------------------------------------------------------------------------------------------------------------------
# The step


def cross_consistency_step(encode_decode: Callable[[Tensor], tuple[Outputs, list[Tensor]]], auxiliaries: Auxiliaries,
                           x_l: Tensor, y_l: Tensor | list[Tensor], x_u: Tensor, *, loss: Loss,
                           pseudo_labels: PseudoLabels, backward: Callable[[Tensor], None], consistency_weight: float,
                           autocast: Callable[[], AbstractContextManager] = nullcontext) -> dict[str, Any]:
    """Accumulate the gradient of L_s + ω_u L_u, L_u = 1/K Σ_k mean (g(z) − g_k(z̃_k))² over the unlabelled samples.

    The main decoder's answer g(z) is a target: L_u trains the encoder and the auxiliary decoders.

    Args:
        encode_decode: x → the network's outputs and the features between its encoder and decoder, with gradient.
        auxiliaries: (features z, foreground [B, …] bool of g(z)) → K × logits.
        consistency_weight: ω_u at this time.

    Returns:
        Detached scalars "loss", "loss_supervised", "loss_consistency"; the labels "y_u" [B, …].
    """
    with autocast():
        outputs, features = encode_decode(torch.cat([x_l, x_u]))
        on_l, on_u = split_outputs(outputs, len(x_l))
        supervised = loss(on_l, y_l)
        logits = finest(on_u).detach()
        y_u = pseudo_labels.to_labels(pseudo_labels.from_logits(logits))
        answers = auxiliaries([z[len(x_l):] for z in features], y_u > 0)
    target = pseudo_labels.probabilities(logits)
    consistency = torch.stack([squared_difference(pseudo_labels.probabilities(answer), target)
                               for answer in answers]).mean()
    total = supervised + consistency_weight * consistency
    backward(total)
    return {"loss": total.detach(), "loss_supervised": supervised.detach(), "loss_consistency": consistency.detach(),
            "y_u": y_u}


# ----------------------------------------------------------------------------------------------------------------------
# The trainer


class CCTTrainer(SemiSupervisedTrainer):
    """Cross-consistency training. The trained model is the network with its main decoder; the auxiliary decoders lie
    beside it under one extra key of the checkpoint."""

    CONSISTENCY_WEIGHT = 30.0
    RAMP_UP = 0.1

    # -- the decoders ------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        self.recorded = RecordedFeatures(unwrap(self.network))
        networks = [self.build_network_architecture(
            self.plans_manager, self.configuration_manager, self.num_input_channels,
            self.label_manager.num_segmentation_heads, self.enable_deep_supervision)
            for _ in range(self.settings.num_auxiliary_decoders)]
        self.auxiliaries = AuxiliaryDecoders([network.decoder for network in networks],
                                             self.settings.feature_dropout).to(self.device)
        self.auxiliaries_optimizer, self.auxiliaries_lr_scheduler = self.optimizer_for(self.auxiliaries)
        if self.is_ddp:
            self.auxiliaries = DistributedDataParallel(self.auxiliaries, device_ids=[self.local_rank])

    def trained_networks(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        return [*super().trained_networks(), (self.auxiliaries, self.auxiliaries_optimizer)]

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.auxiliaries_lr_scheduler.step(self.current_epoch)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "auxiliaries_weights": unwrap(self.auxiliaries).state_dict(),
                "auxiliaries_optimizer": self.auxiliaries_optimizer.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        unwrap(self.auxiliaries).load_state_dict(state["auxiliaries_weights"])
        self.auxiliaries_optimizer.load_state_dict(state["auxiliaries_optimizer"])

    # -- the step ----------------------------------------------------------------------------------------------------

    def encode_decode(self, x: Tensor) -> tuple[Outputs, list[Tensor]]:
        with self.recorded.recording():
            outputs = self.network(x)
        return outputs, self.recorded.take()

    def train_step(self, batch: dict) -> dict:
        x_l, y_l, unlabelled = self.to_device(batch)
        self.zero_gradients()
        results = cross_consistency_step(
            self.encode_decode, self.auxiliaries, x_l, y_l, unlabelled.image, loss=self.loss,
            pseudo_labels=self.pseudo_labels, backward=self.backward, autocast=self.autocast,
            consistency_weight=self.consistency_weight())
        self.update_networks()
        self._last_sample = PreviewSample.of_first(unlabelled.image, {"main": results["y_u"]}, {})
        return self.scalars(results)

    def scalars(self, results: dict[str, Any]) -> dict[str, Any]:
        return {**super().scalars(results), **self.to_numpy({"foreground": foreground_fraction(results["y_u"])})}
