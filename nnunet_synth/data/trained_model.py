"""A trained nnU-Net as its checkpoint describes it: stock or ours, read without unpickling anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_synth.errors import UserError

# nnU-Net logs numpy scalars into its checkpoints; nothing else of numpy may be made from them.
_NUMPY_SCALARS = [type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")]


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """What one checkpoint holds.

    Attributes:
        weights: of the network, under nnU-Net's own names, on the CPU.
        plans, configuration, dataset_json, fold: what it was trained with, as the checkpoint stores them; the files
            beside it are those of whatever fold was started last.
        trainer_name: the class whose `build_network_architecture` makes the network.
        mirror_axes: along which predictions are averaged over mirrored images, or None.
        started: seconds since 1970 when the first epoch began, or None where it is not known.
        ours: what our trainers add (settings, the split's hash, …); {} where stock nnU-Net wrote the checkpoint.
    """

    path: Path
    weights: dict[str, Tensor]
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    fold: int | str
    trainer_name: str
    mirror_axes: tuple[int, ...] | None
    started: float | None
    ours: dict[str, Any]


def read_trained_model(path: str | Path, cure: str) -> TrainedModel:
    """Read a checkpoint of nnU-Net 2.

    Args:
        cure: what the user should do about an unreadable one, the end of the message.

    Raises:
        UserError: damaged, not a checkpoint of nnU-Net, or it holds more than tensors, numbers and text.
    """
    from numpy._core.multiarray import scalar
    try:
        with torch.serialization.safe_globals([scalar, np.dtype, *_NUMPY_SCALARS]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        facts = checkpoint["init_args"]
        started = checkpoint["logging"].get("epoch_start_timestamps")
        mirror_axes = checkpoint.get("inference_allowed_mirroring_axes")
        return TrainedModel(
            path=Path(path),
            weights={name.removeprefix("module.").removeprefix("_orig_mod."): tensor
                     for name, tensor in checkpoint["network_weights"].items()},
            plans=facts["plans"], configuration=facts["configuration"], dataset_json=facts["dataset_json"],
            fold=facts["fold"], trainer_name=checkpoint["trainer_name"],
            mirror_axes=None if mirror_axes is None else tuple(mirror_axes),
            started=float(started[0]) if started else None, ours=checkpoint.get("nnunet_synth", {}))
    except Exception as error:      # torch raises half a dozen kinds for a damaged or foreign file
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read as a checkpoint of nnU-Net ({reason}): {cure}") from error
