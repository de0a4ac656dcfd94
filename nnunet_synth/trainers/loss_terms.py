"""What the training steps are built from: terms on parts of a batch, each backpropagated and freed before the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.synthesizers.base import SynthResult

Outputs = Tensor | list[Tensor]
Loss = Callable[[Outputs, Tensor | list[Tensor]], Tensor]
Synthesize = Callable[[Tensor], SynthResult]


def loss_on_usable(network: nn.Module, x_s: Tensor, target: Tensor, ok: Tensor, loss: Loss,
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


def no_gradient_sync(networks: Sequence[nn.Module]) -> AbstractContextManager:
    """Under DDP gradients are averaged over the ranks in the last backward only."""
    stack = ExitStack()
    for network in networks:
        if isinstance(network, DistributedDataParallel):
            stack.enter_context(network.no_sync())
    return stack


def split_outputs(outputs: Outputs, num_labelled: int) -> tuple[Outputs, Outputs]:
    """Outputs on cat([x_l, x_u]) → on x_l, on x_u."""
    if isinstance(outputs, Tensor):
        return outputs[:num_labelled], outputs[num_labelled:]
    return [output[:num_labelled] for output in outputs], [output[num_labelled:] for output in outputs]


def finest(outputs: Outputs) -> Tensor:
    """The output at the resolution of the image."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def touching_all(loss: Tensor, network: nn.Module, outputs: Outputs) -> Tensor:
    """The loss; under DDP with a gradient (of zero) for the outputs that it leaves out, which DDP would wait for."""
    if not isinstance(network, DistributedDataParallel) or isinstance(outputs, Tensor):
        return loss
    return loss + sum(0 * output.float().mean() for output in outputs)


def summed(losses: Sequence[Tensor]) -> Tensor:
    """The sum over the networks, detached."""
    return torch.stack([loss.detach() for loss in losses]).sum()


def with_total(terms: dict[str, Tensor], pseudo_weight: float, synthetic_weight: float) -> dict[str, Tensor]:
    """The terms with their weighted sum, "loss" (SA-CPS Eq. 14, SA-ST Eq. 18)."""
    total = terms["loss_supervised"] + pseudo_weight * terms["loss_pseudo"] + synthetic_weight * terms["loss_synthetic"]
    return {"loss": total, **terms}
