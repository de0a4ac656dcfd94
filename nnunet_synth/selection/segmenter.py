"""The supervised nnU-Net that must find in synthetic images what they were drawn for: LcGAN's FCN score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.errors import UserError
from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.trainers.teacher import Teacher, first_trained, load_teacher, stock_folders, trained_on


class Segmenter:
    """A trained 2D nnU-Net of this fold behind nnU-Net's own predictor: sliding window and mirroring as usual."""

    def __init__(self, model: Teacher) -> None:
        self._model = model
        self.description = f"{model.model.path.parents[1].name}, fold {model.model.fold}"

    def label(self, images: np.ndarray, layouts: np.ndarray) -> np.ndarray:
        """[N, C, H, W] float32 network intensities and [N, H, W] anatomy → [N, H, W] labels."""
        # A 2D network goes through a volume slice by slice: the images are the slices of one.
        return self._model.label(np.ascontiguousarray(images.swapaxes(0, 1)), layouts)


def load_segmenter(experiment: Experiment, name: str | None, device: str) -> Segmenter:
    """The final checkpoint of a network trained on this fold.

    Args:
        name: results folder of the dataset (nnUNetTrainer__nnUNetPlans__2d) or a path; None = stock nnU-Net under this
            configuration, then along its `inherits_from` chain.

    Raises:
        UserError: there is none, it saw other cases or another preprocessing than this fold has, or it is a 3D network.
    """
    path = _find(experiment, name)
    manager = experiment.label_manager
    labels = PseudoLabels(regions=manager.foreground_regions if manager.has_regions else None,
                          region_order=manager.regions_class_order if manager.has_regions else None)
    try:
        # It must not know the validation cases, just as a teacher of self-training.
        model = load_teacher(path, experiment, labels, torch.device(device), lambda: _lowest(experiment))
    except UserError as error:
        raise UserError(f"--segmenter {name or path.parents[1].name}: {error}") from error
    if len(model.seen.configuration_manager.patch_size) != 2:
        raise UserError(f"--segmenter {name or path.parents[1].name} is a 3D network: synthetic images are judged one "
                        "by one, name a 2D one (or none)")
    return Segmenter(model)


def _find(experiment: Experiment, name: str | None) -> Path:
    if name is None:
        folders = stock_folders(experiment)
    elif Path(name).is_dir():
        folders = [Path(name)]
    else:
        folders = [experiment.results_folder / name]
    return first_trained(
        experiment, folders, "segmenter",
        f"train it (nnUNetv2_train {experiment.dataset_name[7:10]} {experiment.configuration_chain()[-1]} "
        f"{experiment.fold}), name another with --segmenter TRAINER__PLANS__CONFIG (trained on this fold: "
        f"{trained_on(experiment)}), or rank without one (--segmenter none)")


def _lowest(experiment: Experiment) -> list[float]:
    """What a network that ignores all outside the layout is shown there."""
    from nnunet_synth.data.intensities import intensity_range
    from nnunet_synth.data.slices import FoldSlices
    return [low for low, _ in intensity_range(experiment, FoldSlices(experiment))]
