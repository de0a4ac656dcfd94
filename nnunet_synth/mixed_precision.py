"""Half precision: on CUDA always, as nnU-Net; on the CPU where the user asks for it.

Processors with AMX or AVX-512 BF16 multiply bfloat16 much faster than float32. As nnUNet_compile is, this is a property
of the machine and not of an experiment, hence an environment variable: `nnUNet_synth_cpu_bf16=1`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from nnunet_synth.errors import UserError

VARIABLE = "nnUNet_synth_cpu_bf16"
_YES, _NO = ("1", "t", "true", "y", "yes"), ("", "0", "f", "false", "n", "no")


def is_wanted_on_cpu() -> bool:
    """Raises UserError where the variable is neither yes nor no."""
    value = os.environ.get(VARIABLE, "").lower()
    if value not in _YES + _NO:
        raise UserError(f"environment variable {VARIABLE} is {value!r}: set it to 1 or 0")
    return value in _YES


def autocast(device: torch.device | str, cuda_dtype: torch.dtype = torch.float16) -> AbstractContextManager:
    """torch's autocast on a CUDA device; on the CPU bfloat16 where it is wanted, otherwise nothing."""
    device_type = torch.device(device).type
    if device_type == "cuda":
        return torch.autocast("cuda", dtype=cuda_dtype)
    return torch.autocast("cpu", dtype=torch.bfloat16) if device_type == "cpu" and is_wanted_on_cpu() else nullcontext()


class LossInFloat32(nn.Module):
    """A segmentation loss outside the CPU's autocast, which unlike CUDA's leaves softmax and sums in bfloat16."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Of network outputs, one or several resolutions."""
        with torch.autocast("cpu", enabled=False):
            outputs = outputs.float() if isinstance(outputs, Tensor) else [output.float() for output in outputs]
            return self.loss(outputs, target)
