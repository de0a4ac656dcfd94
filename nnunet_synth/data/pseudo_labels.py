"""A teacher's labels of the unlabelled stream, made once and stored in the voxel grid of the preprocessed cases.

They are segmentations as nnU-Net stores them: int16 [1, z, y, x], −1 where the image was padded or masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from nnunet_synth.atomic import remove_abandoned
from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.layouts import CLUSTER_FACTOR, write_map
from nnunet_synth.data.loaders import UnlabelledCases, fill_holes
from nnunet_synth.data.made_of import is_made_of, stamps, write_note
from nnunet_synth.progress import progress


def pseudo_labels_folder(experiment: Experiment, key: str) -> Path:
    """Where the pseudo-labels of one teacher lie; `key` is the hash of all that decides them."""
    name = f"{experiment.configuration_manager.data_identifier}_pseudo"
    return experiment.preprocessed_folder / name / key


def make_pseudo_labels(cases: UnlabelledCases, case_ids: Sequence[str], folder: Path, patch_size: Sequence[int],
                       label: Callable[[np.ndarray, np.ndarray], np.ndarray], sees_layout: bool = False) -> None:
    """Label the cases that have no pseudo-label yet, or one of another preprocessed case than is there now.

    Interrupted, it continues where it stopped; a case appears complete or not at all.

    Args:
        cases: the unlabelled stream.
        case_ids: those of it to look after.
        label: (image [C, z, y, x] float32, layout [z, y, x]) → labels [z, y, x].
        sees_layout: `label` depends on the layout too.
    """
    def sources(case_id: str) -> list[Path]:
        return [*cases.stored_files(case_id), *([cases.layouts_folder / f"{case_id}.b2nd"] if sees_layout else [])]

    def note(case_id: str) -> Path:
        return folder / f"{case_id}_made_of.json"

    missing = [case_id for case_id in case_ids if not (folder / f"{case_id}.b2nd").exists()
               or not is_made_of(note(case_id), sources(case_id))]
    for case_id in progress(missing, "pseudo-labels", total=len(case_ids), initial=len(case_ids) - len(missing)):
        made_of = stamps(sources(case_id))
        image, outside, layout, _ = cases.load_case(case_id)
        inside = fill_holes(torch.from_numpy(outside[0] == 0)).numpy()
        labels = label(image[:].astype(np.float32, copy=False), layout[:] % CLUSTER_FACTOR)
        target = folder / f"{case_id}.b2nd"
        remove_abandoned(target)
        write_map(np.where(inside, labels, -1).astype(np.int16)[None], target, tuple(patch_size))
        write_note(note(case_id), made_of)
