"""The averaged generator: an exponential moving average of its weights, and the batch statistics that belong to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ExponentialMovingAverage:
    """avg ← d·avg + (1−d)·weights with d = min(max_decay, (1+t)/(10+t)) after step t = 0, 1, …

    The warm-up lets the average forget the random initial weights: without it a run of a few hundred steps would
    return mostly noise. Only parameters are averaged; buffers (batch statistics, spectral norm's vectors) are not.
    """

    def __init__(self, module: nn.Module, max_decay: float = 0.999) -> None:
        self.module = module
        self.max_decay = max_decay
        self.average = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def decay(self, step: int) -> float:
        return min(self.max_decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights of the module after `step`."""
        weight = 1 - self.decay(step)
        for name, parameter in self.module.named_parameters():
            self.average[name].lerp_(parameter, weight)

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Overwrite the module's weights by their average."""
        for name, parameter in self.module.named_parameters():
            parameter.copy_(self.average[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module carries its averaged weights inside, and its own weights and buffers again afterwards."""
        own = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.put_in_place()
        try:
            yield
        finally:
            self.module.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, tensor in self.average.items():
            tensor.copy_(state[name])


@torch.no_grad()
def reestimate_batch_norm(module: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any]) -> None:
    """Replace the running statistics of every BatchNorm in `module` by the mean over `batches`.

    The running statistics were collected from the raw weights on their way; the averaged weights produce other
    activations, so in eval mode they would be normalised by statistics of a network that they are not.
    `forward(batch)` must run `module` in train mode.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None            # torch's spelling of "cumulative average"
    for batch in batches:
        forward(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
