"""What a training needs to go on as if it had never stopped, in files that are whole or not there."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_synth.atomic import atomic_file, remove_abandoned
from nnunet_synth.errors import UserError

OUR_KEY = "nnunet_synth"        # stock nnU-Net ignores extra keys of a checkpoint
SCHEMA = 2


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write atomically: a crash, a full disk or `kill -9` leaves the previous checkpoint whole."""
    remove_abandoned(path)
    with atomic_file(path) as temporary:
        torch.save(checkpoint, temporary)


def read_checkpoint(path: str | Path, device: torch.device) -> dict[str, Any]:
    """Read one of our trainers' checkpoints; nothing in it is unpickled beyond tensors and plain containers.

    Raises:
        UserError: not readable, or written by another trainer.
    """
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:      # torch raises RuntimeError, UnpicklingError, EOFError, … for broken files
        raise UserError(f"{path} cannot be resumed from: it is damaged, or stock nnU-Net wrote it; "
                        "start without --c") from error
    if OUR_KEY not in checkpoint:
        raise UserError(f"{path} was written by stock nnU-Net: give it as -pretrained_weights instead")
    if checkpoint[OUR_KEY]["schema"] != SCHEMA:
        raise UserError(f"{path} was written by another version of nnunet_synth; start without --c")
    return checkpoint


def capture_rng() -> dict[str, Any]:
    """The state of every global random number generator, as tensors and plain containers."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached_gauss = np.random.get_state()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached_gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Set every global random number generator to a captured state."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached_gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached_gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([device_state.cpu() for device_state in state["cuda"]])


def plain(content: Any) -> Any:
    """NumPy scalars and arrays as Python's: a checkpoint with np.float64 in it cannot be read with weights_only."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(plain(value) for value in content)
    if isinstance(content, np.ndarray):
        return content.tolist()
    return content.item() if isinstance(content, np.generic) else content
