"""nnU-Net's three folders and the datasets in them, found without importing what trains (torch takes seconds)."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_synth.errors import UserError


def environment_folder(variable: str) -> Path:
    """One of nnU-Net's three folders. Raises UserError when its environment variable is not set."""
    if variable not in os.environ:
        raise UserError(f"environment variable {variable} is not set: export it as nnU-Net's installation page says")
    return Path(os.environ[variable])


def find_dataset(dataset: str | int) -> str:
    """The full name of a dataset, e.g. Dataset501_Phantom, from its id or name. Raises UserError."""
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
    text = str(dataset)
    if text.startswith("Dataset"):
        return text
    if not text.isdigit():
        raise UserError(f"{text!r} is no dataset: give its id (501) or its full name (Dataset501_Phantom)")
    candidates = [str(name) for name in find_candidate_datasets(int(text))]
    if len(candidates) != 1:
        found = f"found {', '.join(candidates)}" if candidates else "found none"
        raise UserError(f"dataset {text} must exist once in nnUNet_raw and nnUNet_preprocessed: {found}")
    return candidates[0]
