"""Noise and dropout for the methods that compare predictions under perturbation: nnU-Net's network has neither.

Features are perturbed by hooks on nnU-Net's own U-Net, so that the network that is stored stays a stock one. All random
numbers are torch's global ones, which the checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.errors import UserError


def with_input_noise(x: Tensor, std: float) -> Tensor:
    """x + N(0, std²), cut off at two standard deviations."""
    return x + (torch.randn_like(x) * std).clamp(-2 * std, 2 * std)


def check_is_unet(network: nn.Module) -> None:
    """Raise UserError where the features of the network cannot be reached."""
    if not hasattr(network, "encoder") or not hasattr(getattr(network, "decoder", None), "stages"):
        raise UserError(f"this trainer perturbs features between encoder and decoder, which {type(network).__name__} "
                        "does not have: use a plan with a U-Net (PlainConvUNet, ResidualEncoderUNet)")


@contextmanager
def feature_dropout(network: nn.Module, rate: float) -> Iterator[None]:
    """Dropout at the deepest features of the encoder and at the last ones of the decoder while inside."""
    def at_bottleneck(_: nn.Module, __: tuple, skips: Sequence[Tensor]) -> list[Tensor]:
        return [*skips[:-1], F.dropout(skips[-1], rate)]

    def at_end(_: nn.Module, __: tuple, features: Tensor) -> Tensor:
        return F.dropout(features, rate)

    hooks = [network.encoder.register_forward_hook(at_bottleneck),
             network.decoder.stages[-1].register_forward_hook(at_end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def channel_dropout(features: Tensor, rate: float) -> Tensor:
    """[N, C, …]: whole channels of a sample are dropped, the others scaled up."""
    return F.dropout2d(features, rate) if features.ndim == 4 else F.dropout3d(features, rate)


class PerturbedCopies:
    """Samples that go through the encoder once and through the decoder twice: as they are, and with perturbed features.

    A hook that is there from the start, not for a call only: torch.compile does not see hooks that come later.

    Args:
        network: a U-Net, not wrapped.
        perturb: of the features of one level, [N, C, …].
    """

    def __init__(self, network: nn.Module, perturb: Callable[[Tensor], Tensor]) -> None:
        check_is_unet(network)
        self.num_samples = 0
        self.perturb = perturb
        network.encoder.register_forward_hook(self)

    def __repr__(self) -> str:
        return "PerturbedCopies()"      # nnU-Net writes attributes into debug.json

    def __call__(self, _: nn.Module, __: tuple, skips: Sequence[Tensor]) -> list[Tensor] | None:
        if self.num_samples == 0:
            return None
        return [torch.cat([features, self.perturb(features[-self.num_samples:])]) for features in skips]

    @contextmanager
    def of_last(self, num_samples: int) -> Iterator[None]:
        """Inside, outputs have `num_samples` more rows: of the batch's last samples, perturbed."""
        self.num_samples = num_samples
        try:
            yield
        finally:
            self.num_samples = 0


class RecordedFeatures:
    """What an encoder hands to its decoder, kept while inside `recording`, with gradient.

    Args:
        network: a U-Net, not wrapped.
    """

    def __init__(self, network: nn.Module) -> None:
        check_is_unet(network)
        self.features: list[Tensor] = []
        self.is_recording = False
        network.encoder.register_forward_hook(self)

    def __repr__(self) -> str:
        return "RecordedFeatures()"

    def __call__(self, _: nn.Module, __: tuple, skips: Sequence[Tensor]) -> None:
        if self.is_recording:
            self.features = list(skips)

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.is_recording = True
        try:
            yield
        finally:
            self.is_recording = False

    def take(self) -> list[Tensor]:
        """The features, finest first; they are not kept any longer."""
        taken, self.features = self.features, []
        return taken
