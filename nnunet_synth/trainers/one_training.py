"""One training a fold: two of them would write one another's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_synth.data.nnunet_folders import environment_folder
from nnunet_synth.lock import only_writer, refuse_second_writer


def only_training(trainer: nnUNetTrainer) -> AbstractContextManager[None]:
    """Held while a trainer writes its fold's folder: its training, or its validation. Prediction asks nobody.

    Raises:
        UserError: another process writes there.
    """
    return only_writer(Path(trainer.output_folder)) if trainer.local_rank == 0 else nullcontext()


def refuse_second_training(trainer: type[nnUNetTrainer], plans: Mapping[str, Any], configuration: str,
                           fold: int | str) -> None:
    """Raise UserError where another process trains, or validates, this fold. For before nnU-Net's constructor, which
    begins a log in the folder."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
        refuse_second_writer(environment_folder("nnUNet_results") / plans["dataset_name"]
                             / f"{trainer.__name__}__{plans['plans_name']}__{configuration}" / f"fold_{fold}")
