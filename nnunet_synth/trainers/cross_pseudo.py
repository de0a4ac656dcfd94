"""Cross pseudo supervision, without (CPSTrainer) and with (SACPSTrainer) synthetic images.

Lyu et al., Pseudo-Label Guided Image Synthesis for Semi-Supervised COVID-19 Pneumonia Infection Segmentation (SA-CPS),
III.C; cross pseudo supervision: Chen et al., CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_synth.losses.segmentation import PseudoLabels, agreement, foreground_fraction
from nnunet_synth.trainers.configured import unwrap
from nnunet_synth.trainers.loss_terms import (
    Loss,
    Synthesize,
    finest,
    loss_on_usable,
    no_gradient_sync,
    split_outputs,
    summed,
    with_total,
)
from nnunet_synth.trainers.preview import PreviewSample
from nnunet_synth.trainers.semi_supervised import SemiSupervisedTrainer
from nnunet_synth.trainers.synthesis import DrawsSynthetic

# ----------------------------------------------------------------------------------------------------------------------
# The step


def cross_pseudo_step(network: nn.Module, peer: nn.Module, x_l: Tensor, y_l: Tensor | list[Tensor], x_u: Tensor, *,
                      loss: Loss, pseudo_labels: PseudoLabels, backward: Callable[[Tensor], None],
                      pseudo_weight: float, synthetic_weight: float = 0.0, synthesize: Synthesize | None = None,
                      autocast: Callable[[], AbstractContextManager] = nullcontext) -> dict[str, Any]:
    """Accumulate the gradient of Eq. 14, L_s + λ (L_pseudo + L_synthetic), in both networks.

    The terms are backpropagated one after another, which frees the graph of each before the next is built; the sum of
    the gradients is the gradient of the sum. Instance norm and the absence of dropout make one forward of the labelled
    and unlabelled samples serve for the supervised loss, the pseudo-labels and the pseudo-supervised loss.

    Args:
        network, peer: s_1 and s_2; may be wrapped in DistributedDataParallel.
        x_l, y_l, x_u: labelled images, their targets, unlabelled images.
        loss: L_Seg (Eq. 6): nnU-Net's compound loss, with deep supervision.
        backward: scales, if need be, and backpropagates.
        pseudo_weight, synthetic_weight: λ on either term.
        synthesize: [2B, …] int64 labels, cat([y2, y1]) → x̂ for each; None = no synthetic term.

    Returns:
        Detached scalars "loss", "loss_supervised", "loss_pseudo", "loss_synthetic"; and the pseudo-labels "y_1", "y_2"
        [B, …] int64 and, with synthesis, the "synthetic" result.
    """
    networks = (network, peer)
    with no_gradient_sync(networks) if synthesize is not None else nullcontext():
        with autocast():
            outputs = [split_outputs(each(torch.cat([x_l, x_u])), len(x_l)) for each in networks]
            y_1, y_2 = (pseudo_labels.from_logits(finest(on_u)) for _, on_u in outputs)        # Eq. 9
            supervised = [loss(on_l, y_l) for on_l, _ in outputs]                              # Eq. 5
            pseudo = [loss(on_u, pseudo_labels.for_outputs(y_other, on_u))                     # Eq. 11
                      for (_, on_u), y_other in zip(outputs, (y_2, y_1), strict=True)]
        for loss_s, loss_p in zip(supervised, pseudo, strict=True):
            backward(loss_s + pseudo_weight * loss_p)
    del outputs
    terms = {"loss_supervised": summed(supervised), "loss_pseudo": summed(pseudo),
             "loss_synthetic": torch.zeros_like(supervised[0].detach())}
    labels_1, labels_2 = pseudo_labels.to_labels(y_1), pseudo_labels.to_labels(y_2)
    results: dict[str, Any] = {"y_1": labels_1, "y_2": labels_2}

    if synthesize is not None:
        drawn = synthesize(torch.cat([labels_2, labels_1]))                                    # Eq. 10
        synthetic = []
        for each, x_s, label, ok in zip(networks, drawn.image.chunk(2), drawn.label.chunk(2), drawn.ok.chunk(2),
                                        strict=True):
            with autocast():
                loss_s = loss_on_usable(each, x_s, pseudo_labels.from_labels(label), ok, loss, pseudo_labels)
            backward(synthetic_weight * loss_s)                                                # Eq. 12
            synthetic.append(loss_s)
        terms["loss_synthetic"] = summed(synthetic)
        results["synthetic"] = drawn

    return {**with_total(terms, pseudo_weight, synthetic_weight), **results}


# ----------------------------------------------------------------------------------------------------------------------
# The trainers


class CPSTrainer(SemiSupervisedTrainer):
    """Cross pseudo supervision: each network learns from the other's pseudo-labels on the unlabelled stream.

    The trained model is the first network; the peer lies beside it under one extra key of the checkpoint.
    """

    # -- the peer ----------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        self.peer, self.peer_optimizer, self.peer_lr_scheduler = self.build_network()
        self._initial_first_weight = self._first_weight().clone()
        self._resumed = False

    def _first_weight(self) -> Tensor:
        return next(unwrap(self.network).parameters()).detach()

    def on_train_start(self) -> None:
        super().on_train_start()
        if not self._resumed and not torch.equal(self._first_weight(), self._initial_first_weight):
            self._share_pretrained_weights()

    def _share_pretrained_weights(self) -> None:
        """nnU-Net loads -pretrained_weights into the first network only; the peer gets them too, except for the
        segmentation heads, whose different initial weights keep the two apart."""
        own = unwrap(self.peer).state_dict()
        pretrained = {key: value for key, value in unwrap(self.network).state_dict().items()
                      if ".seg_layers." not in f".{key}"}
        unwrap(self.peer).load_state_dict({**own, **pretrained})
        self.print_to_log_file("The peer starts from the pretrained weights too, with segmentation heads of its own.")

    def trained_networks(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        return [*super().trained_networks(), (self.peer, self.peer_optimizer)]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        super().set_deep_supervision_enabled(enabled)
        unwrap(self.peer).decoder.deep_supervision = enabled

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.peer.train()
        self.peer_lr_scheduler.step(self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.peer.eval()

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "peer_weights": unwrap(self.peer).state_dict(),
                "peer_optimizer": self.peer_optimizer.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        unwrap(self.peer).load_state_dict(state["peer_weights"])
        self.peer_optimizer.load_state_dict(state["peer_optimizer"])
        self._resumed = True

    # -- the step ----------------------------------------------------------------------------------------------------

    def train_step(self, batch: dict) -> dict:
        x_l, y_l, unlabelled = self.to_device(batch)
        self.zero_gradients()
        results = cross_pseudo_step(
            self.network, self.peer, x_l, y_l, unlabelled.image, loss=self.loss, pseudo_labels=self.pseudo_labels,
            backward=self.backward, autocast=self.autocast,
            pseudo_weight=self.settings.pseudo_weight * self.ramp(),
            synthetic_weight=self.settings.synthetic_weight * self.ramp(), synthesize=self.synthesizer_for(unlabelled))
        self.update_networks()
        # synth 1 is drawn from y 2, synth 2 from y 1
        images = results["synthetic"].image.chunk(2) if "synthetic" in results else ()
        drawn = {f"synth {number}": image for number, image in enumerate(images, start=1)}
        self._last_sample = PreviewSample.of_first(
            unlabelled.image, {"y 1": results["y_1"], "y 2": results["y_2"]}, drawn)
        return self.scalars(results)

    def scalars(self, results: dict[str, Any]) -> dict[str, Any]:
        return {**super().scalars(results), **self.to_numpy({
            "foreground_1": foreground_fraction(results["y_1"]), "foreground_2": foreground_fraction(results["y_2"]),
            "agreement": agreement(results["y_1"], results["y_2"])})}


class SACPSTrainer(DrawsSynthetic, CPSTrainer):
    """Synthesis-assisted cross pseudo supervision: both networks also learn from synthetic images, drawn on the fly to
    fit the other's pseudo-labels."""
