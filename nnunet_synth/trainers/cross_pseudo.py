"""Cross pseudo supervision, without (CPSTrainer) and with (SACPSTrainer) synthetic images.

Lyu et al., Pseudo-Label Guided Image Synthesis for Semi-Supervised COVID-19 Pneumonia Infection Segmentation (SA-CPS),
III.C; cross pseudo supervision: Chen et al., CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_synth.config import TrainerConfig
from nnunet_synth.data.loaders import split_channels
from nnunet_synth.errors import UserError
from nnunet_synth.losses.segmentation import PseudoLabels, agreement, foreground_fraction
from nnunet_synth.synthesizers.base import SynthResult
from nnunet_synth.trainers.preview import PreviewSample, write_preview
from nnunet_synth.trainers.semi_supervised import SemiSupervisedTrainer, unwrap
from nnunet_synth.trainers.synthesis import Synthesis, UnlabelledBatch

Outputs = Tensor | list[Tensor]
Loss = Callable[[Outputs, Tensor | list[Tensor]], Tensor]


# ----------------------------------------------------------------------------------------------------------------------
# The step


def cross_pseudo_step(network: nn.Module, peer: nn.Module, x_l: Tensor, y_l: Tensor | list[Tensor], x_u: Tensor, *,
                      loss: Loss, pseudo_labels: PseudoLabels, backward: Callable[[Tensor], None],
                      pseudo_weight: float, synthetic_weight: float = 0.0,
                      synthesize: Callable[[Tensor], SynthResult] | None = None,
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
    with _no_gradient_sync(networks) if synthesize is not None else nullcontext():
        with autocast():
            outputs = [_split(each(torch.cat([x_l, x_u])), len(x_l)) for each in networks]
            y_1, y_2 = (pseudo_labels.from_logits(_finest(on_u)) for _, on_u in outputs)       # Eq. 9
            supervised = [loss(on_l, y_l) for on_l, _ in outputs]                              # Eq. 5
            pseudo = [loss(on_u, pseudo_labels.for_outputs(y_other, on_u))                     # Eq. 11
                      for (_, on_u), y_other in zip(outputs, (y_2, y_1), strict=True)]
        for loss_s, loss_p in zip(supervised, pseudo, strict=True):
            backward(loss_s + pseudo_weight * loss_p)
    del outputs
    terms = {"loss_supervised": _total(supervised), "loss_pseudo": _total(pseudo),
             "loss_synthetic": torch.zeros_like(supervised[0].detach())}
    labels_1, labels_2 = pseudo_labels.to_labels(y_1), pseudo_labels.to_labels(y_2)
    results: dict[str, Any] = {"y_1": labels_1, "y_2": labels_2}

    if synthesize is not None:
        drawn = synthesize(torch.cat([labels_2, labels_1]))                                    # Eq. 10
        synthetic = []
        for each, x_s, label, ok in zip(networks, drawn.image.chunk(2), drawn.label.chunk(2), drawn.ok.chunk(2),
                                        strict=True):
            with autocast():
                loss_s = _loss_on_usable(each, x_s, pseudo_labels.from_labels(label), ok, loss, pseudo_labels)
            backward(synthetic_weight * loss_s)                                                # Eq. 12
            synthetic.append(loss_s)
        terms["loss_synthetic"] = _total(synthetic)
        results["synthetic"] = drawn

    total = terms["loss_supervised"] + pseudo_weight * terms["loss_pseudo"] + synthetic_weight * terms["loss_synthetic"]
    return {"loss": total, **terms, **results}


def _loss_on_usable(network: nn.Module, x_s: Tensor, target: Tensor, ok: Tensor, loss: Loss,
                    pseudo_labels: PseudoLabels) -> Tensor:
    """L_Seg over the samples that are `ok`; 0 (but with a gradient, DDP waits for one) where none is."""
    usable = ok.nonzero()[:, 0]
    if 0 < len(usable) < len(ok):
        if isinstance(network, DistributedDataParallel):
            # Batch Dice gathers over the ranks, whose batches must stay equal: usable samples stand in for the others.
            usable = usable[torch.arange(len(ok), device=ok.device) % len(usable)]
        x_s, target = x_s[usable], target[usable]
    weight = 0.0 if len(usable) == 0 else 1.0
    outputs = network(x_s)
    return weight * loss(outputs, pseudo_labels.for_outputs(target, outputs))


def _no_gradient_sync(networks: Sequence[nn.Module]) -> AbstractContextManager:
    """Under DDP gradients are averaged over the ranks in the last backward only."""
    stack = ExitStack()
    for network in networks:
        if isinstance(network, DistributedDataParallel):
            stack.enter_context(network.no_sync())
    return stack


def _split(outputs: Outputs, num_labelled: int) -> tuple[Outputs, Outputs]:
    """Outputs on cat([x_l, x_u]) → on x_l, on x_u."""
    if isinstance(outputs, Tensor):
        return outputs[:num_labelled], outputs[num_labelled:]
    return [output[:num_labelled] for output in outputs], [output[num_labelled:] for output in outputs]


def _finest(outputs: Outputs) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def _total(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.detach() for loss in losses]).sum()


# ----------------------------------------------------------------------------------------------------------------------
# The trainers


class CPSTrainer(SemiSupervisedTrainer):
    """Cross pseudo supervision: each network learns from the other's pseudo-labels on the unlabelled stream.

    The trained model is the first network; the peer lies beside it under one extra key of the checkpoint.
    """

    @classmethod
    def check_settings(cls, settings: TrainerConfig) -> None:
        super().check_settings(settings)
        if settings.label_source != "pseudo":
            raise UserError("label_source head needs a synthesizer with a segmentation head (UM2I, CS2): set it to "
                            "pseudo")
        if settings.synthetic_accept_threshold is not None:
            raise UserError("synthetic_accept_threshold needs the real-against-synthetic classifier of nnunet_synth "
                            "select, which this version does not have; set it to null")

    # -- the peer ----------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        self.peer = self.build_network_architecture(
            self.plans_manager, self.configuration_manager, self.num_input_channels,
            self.label_manager.num_segmentation_heads, self.enable_deep_supervision).to(self.device)
        if self._do_i_compile():
            self.peer = torch.compile(self.peer)
        self.peer_optimizer, self.peer_lr_scheduler = self.optimizer_for(self.peer)
        if self.is_ddp:
            self.peer = nn.SyncBatchNorm.convert_sync_batchnorm(self.peer)
            self.peer = DistributedDataParallel(self.peer, device_ids=[self.local_rank])
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
        for optimizer in (self.optimizer, self.peer_optimizer):
            optimizer.zero_grad(set_to_none=True)
        results = cross_pseudo_step(
            self.network, self.peer, x_l, y_l, unlabelled.image, loss=self.loss, pseudo_labels=self.pseudo_labels,
            backward=self.backward, autocast=self.autocast,
            pseudo_weight=self.settings.pseudo_weight * self.ramp(),
            synthetic_weight=self.settings.synthetic_weight * self.ramp(), synthesize=self.synthesizer_for(unlabelled))
        self.update_networks()
        self._last_sample = PreviewSample.of_first(unlabelled.image, results)
        return self.scalars(results)

    def to_device(self, batch: dict) -> tuple[Tensor, Tensor | list[Tensor], UnlabelledBatch]:
        """x_l, y_l and the unlabelled batch, outside the layout masked if the settings say so."""
        def move(part: Tensor) -> Tensor:
            return part.to(self.device, non_blocking=True)

        target = batch["target"]
        y_l = [move(level) for level in target] if isinstance(target, list) else move(target)
        image, layout, _, _ = split_channels(move(batch["data"]))
        image_u, layout_u, cluster_u, valid_u = split_channels(move(batch["data_u"]))
        return (self.mask_outside(image, layout).contiguous(), y_l,
                UnlabelledBatch(self.mask_outside(image_u, layout_u).contiguous(), layout_u, cluster_u, valid_u))

    def synthesizer_for(self, unlabelled: UnlabelledBatch) -> Callable[[Tensor], SynthResult] | None:
        """Draws synthetic images for pseudo-labels of this batch; CPS has none."""
        return None

    def backward(self, loss: Tensor) -> None:
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()

    def update_networks(self) -> None:
        """Clip and step each network by its own optimizer, with one gradient scaler for both."""
        for network, optimizer in ((self.network, self.optimizer), (self.peer, self.peer_optimizer)):
            if self.grad_scaler is not None:
                self.grad_scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), 12)
            if self.grad_scaler is not None:
                self.grad_scaler.step(optimizer)
            else:
                optimizer.step()
        if self.grad_scaler is not None:
            self.grad_scaler.update()

    def scalars(self, results: dict[str, Any]) -> dict[str, Any]:
        """What is averaged over the epoch and logged."""
        values = {key: results[key] for key in ("loss", "loss_supervised", "loss_pseudo", "loss_synthetic")}
        values["foreground_1"] = foreground_fraction(results["y_1"])
        values["foreground_2"] = foreground_fraction(results["y_2"])
        values["agreement"] = agreement(results["y_1"], results["y_2"])
        return {key: value.detach().float().cpu().numpy() for key, value in values.items()}

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        every = self.settings.preview_every
        if self.local_rank == 0 and every and (self.current_epoch + 1) % every == 0:
            target = Path(self.output_folder) / "previews" / f"epoch_{self.current_epoch + 1:04d}.png"
            write_preview(self._last_sample, target)
        self._last_sample = None


class SACPSTrainer(CPSTrainer):
    """Synthesis-assisted cross pseudo supervision: both networks also learn from synthetic images, drawn on the fly to
    fit the other's pseudo-labels."""

    synthesis: Synthesis | None = None
    _synthesis_to_restore: dict[str, Any] | None = None

    def prepare_training(self) -> None:
        super().prepare_training()
        if self.settings.synthetic_weight == 0:
            return
        seed = None if self.settings.seed is None else self.settings.seed + self.local_rank
        _, dummy_2d, _, _ = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.synthesis, warnings = Synthesis.load(self.experiment, self.settings, self.device, seed,
                                                  ignore_axes=(0,) if dummy_2d else None)
        for warning in warnings:
            self.print_to_log_file(f"WARNING: {warning}")
        if self._synthesis_to_restore is not None:
            self.synthesis.load_state(self._synthesis_to_restore)

    def extra_state(self) -> dict[str, Any]:
        state = super().extra_state()
        return {**state, "synthesis": self.synthesis.state()} if self.synthesis is not None else state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._synthesis_to_restore = state.get("synthesis")

    def synthesizer_for(self, unlabelled: UnlabelledBatch) -> Callable[[Tensor], SynthResult] | None:
        if self.synthesis is None:
            return None

        def synthesize(labels: Tensor) -> SynthResult:
            drawn = self.synthesis.draw(labels, unlabelled)
            layout = unlabelled.repeated(2).layout
            return SynthResult(self.mask_outside(drawn.image, layout), drawn.label, drawn.ok, drawn.aux)

        return synthesize

    def scalars(self, results: dict[str, Any]) -> dict[str, Any]:
        values = super().scalars(results)
        if self.synthesis is not None:
            ok = results["synthetic"].ok
            values["synthetic_used"] = ok.float().mean().cpu().numpy()
            values["seconds_synthesis"] = torch.tensor(self.synthesis.seconds).numpy()
        return values
