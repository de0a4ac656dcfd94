"""A network whose weights are the running average of another's: it teaches and never learns by gradient."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_synth.trainers.configured import unwrap


class AveragedNetwork:
    """θ′_t = α_t θ′_{t−1} + (1 − α_t) θ_t with α_t = min(1 − 1/t, α) for t = 1, 2, …

    The first averages are thus plain means: the random weights of the start are forgotten at once.

    Args:
        network: the learner, wrapped or not; its copy predicts at full resolution only.
        decay: α.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.network = copy.deepcopy(unwrap(network)).requires_grad_(False)
        self.network.decoder.deep_supervision = False

    def __repr__(self) -> str:
        return f"AveragedNetwork({self.decay})"         # nnU-Net writes attributes into debug.json

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of the learner after a step."""
        self.num_updates += 1
        weight = 1 - min(1 - 1 / self.num_updates, self.decay)
        for mine, its in zip(self.network.parameters(), unwrap(network).parameters(), strict=True):
            mine.lerp_(its, weight)
        for mine, its in zip(self.network.buffers(), unwrap(network).buffers(), strict=True):
            mine.copy_(its)

    def start_from(self, network: nn.Module) -> None:
        """Carry the learner's weights (nnU-Net's -pretrained_weights reach the learner alone)."""
        self.network.load_state_dict(unwrap(network).state_dict())

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.network.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["weights"])
        self.num_updates = state["num_updates"]
