"""Weights with a checksum: safetensors says nothing of a flipped bit, and a network with one draws on.

The checksum is part of the file, so that one rename brings both: a crash between two files cannot part them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnunet_synth.errors import UserError

CHECKSUM = "sha256"         # key of the metadata; older files have none


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors with the checksum of the tensors in its metadata; the same weights, the same bytes."""
    # One key only: safetensors writes several in an order of its own, another one each time.
    save_file(dict(state), path, metadata={CHECKSUM: tensors_sha256(state)})


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises:
        UserError: they are not those that were written. A file without a checksum is taken as it is.
        SafetensorError, FileNotFoundError: as safetensors raises them.
    """
    with safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get(CHECKSUM)
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if expected is not None and tensors_sha256(state) != expected:
        raise UserError(f"{path} is damaged: its weights are not those that were written (checksum): copy it again, or "
                        "pretrain the synthesizer again")
    return state


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
