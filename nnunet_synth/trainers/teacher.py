"""A teacher of self-training: found, checked against the student's data, and asked for labels by nnU-Net's predictor.

A teacher that saw other labels than the student may see would leak them through its pseudo-labels; so everything that
can be checked about its split is checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.splits import splits_file
from nnunet_synth.data.trained_model import TrainedModel, read_trained_model
from nnunet_synth.data.trained_network import build_network
from nnunet_synth.data.unlabelled import PoolPlan
from nnunet_synth.errors import UserError
from nnunet_synth.losses.segmentation import PseudoLabels

CHECKPOINT = "checkpoint_final.pth"
PREDICTION = {"tile_step_size": 0.5, "use_gaussian": True, "use_mirroring": True}       # as nnUNetv2_predict
_SPLIT_LINE = re.compile(r"^(\S+ \S+): This split has (\d+) training and (\d+) validation cases\.", re.MULTILINE)


# ----------------------------------------------------------------------------------------------------------------------
# Which one


def first_trained(experiment: Experiment, folders: Sequence[Path], role: str, cure: str) -> Path:
    """The final checkpoint of this fold in the first of these results folders that has one.

    Raises:
        UserError: none has: "no <role> at …: <cure>".
    """
    checkpoints = [folder / f"fold_{experiment.fold}" / CHECKPOINT for folder in folders]
    for checkpoint in checkpoints:
        if checkpoint.is_file():
            return checkpoint
    raise UserError(f"no {role} at {' or '.join(map(str, checkpoints))}: {cure}")


def stock_folders(experiment: Experiment) -> list[Path]:
    """Results folders of stock nnU-Net under this configuration, then along its `inherits_from` chain."""
    return [experiment.results_folder / f"nnUNetTrainer__{experiment.plans_name}__{configuration}"
            for configuration in experiment.configuration_chain()]


def trained_on(experiment: Experiment) -> str:
    """Names of all results folders of the dataset that are trained to their end on this fold, for a message."""
    names = sorted(path.parents[1].name
                   for path in experiment.results_folder.glob(f"*__*__*/fold_{experiment.fold}/{CHECKPOINT}"))
    return ", ".join(names) or "none"


def find_teacher(experiment: Experiment, name: str | None) -> Path:
    """The final checkpoint of the teacher's training on the fold of `experiment`.

    Args:
        name: results folder of the dataset (nnUNetTrainer__nnUNetPlans__2d), a path to one, or None: stock nnU-Net
            under this configuration, then along its `inherits_from` chain.

    Raises:
        UserError: there is none, or it is not trained to its end.
    """
    if name is None:
        folders = stock_folders(experiment)
    elif "/" in name or "\\" in name:
        folders = [Path(name)]
    elif len(name.split("__")) == 3:
        folders = [experiment.results_folder / name]
    else:
        raise UserError(f"teacher {name!r} is no results folder: give TRAINER__PLANS__CONFIGURATION, for example "
                        f"SACPSTrainer__{experiment.plans_name}__{experiment.configuration}, or a path with a slash")
    return first_trained(
        experiment, folders, "teacher", f"train it on this fold{_training_command(experiment, folders[-1].name)}, or "
        f"set teacher to another (trained on this fold: {trained_on(experiment)})")


def _training_command(experiment: Experiment, folder_name: str) -> str:
    """" (nnUNetv2_train …)" for a results folder with nnU-Net's kind of name."""
    parts = folder_name.split("__")
    if len(parts) != 3:
        return ""
    trainer, plans, configuration = parts
    return f" (nnUNetv2_train {experiment.dataset_name[7:10]} {configuration} {experiment.fold}" \
        f"{'' if trainer == 'nnUNetTrainer' else f' -tr {trainer}'}{'' if plans == 'nnUNetPlans' else f' -p {plans}'})"


# ----------------------------------------------------------------------------------------------------------------------
# May it teach here?


def check_teacher(model: TrainedModel, experiment: Experiment) -> list[str]:
    """Refuse a model that was trained for something else, or on another split.

    Returns:
        Warnings: what cannot be checked about a model that stock nnU-Net trained.

    Raises:
        UserError: another dataset, fold, set of labels or channels, preprocessing or split.
    """
    teacher = f"teacher {model.path}"
    if model.plans["dataset_name"] != experiment.dataset_name:
        raise UserError(f"{teacher} was trained on {model.plans['dataset_name']}, not on {experiment.dataset_name}: "
                        "set teacher to a model of this dataset")
    if str(model.fold) != str(experiment.fold):
        raise UserError(f"{teacher} was trained on fold {model.fold}, this is fold {experiment.fold}: it may have seen "
                        "labels that are held out or hidden here; set teacher to a model of this fold")
    seen = seen_by(model, experiment)
    for what, theirs, ours in (("labels", _labels(seen), _labels(experiment)),
                               ("channels", seen.channel_names, experiment.channel_names)):
        if theirs != ours:
            raise UserError(f"{teacher} was trained with {what} {theirs}, this dataset has {ours}: train it again")
    if seen.configuration_manager.previous_stage_name is not None:
        raise UserError(f"{teacher} is the second stage of a cascade, which needs the predictions of the first: set "
                        "teacher to a model of a single stage")
    if PoolPlan(seen).preprocessing_sha256 != PoolPlan(experiment).preprocessing_sha256:
        raise UserError(f"{teacher} ({model.configuration}) was trained on images of another spacing, orientation, "
                        f"normalisation or resampling than {experiment.configuration} has under today's plans: set "
                        "teacher to a model of this configuration, or train it again")
    if "split_sha256" not in model.ours:
        return _check_stock_split(model, experiment)
    if model.ours["split_sha256"] != experiment.split_sha256:
        raise UserError(f"{teacher} was trained on another split than fold {experiment.fold} of splits_final.json is "
                        "now: restore that file, or train the teacher again")
    return []


def seen_by(model: TrainedModel, experiment: Experiment) -> Experiment:
    """The experiment with the plans, configuration and labels that the model was trained with."""
    return replace(experiment, configuration=model.configuration, plans_manager=PlansManager(model.plans),
                   dataset_json=model.dataset_json)


def _labels(experiment: Experiment) -> dict[str, Any]:
    """Names, values and, for regions, the order of the outputs and of writing."""
    manager = experiment.label_manager
    labels = dict(experiment.dataset_json["labels"])
    if not manager.has_regions:
        return labels
    return {**labels, "outputs": [np.atleast_1d(region).tolist() for region in manager.foreground_regions],
            "regions_class_order": list(manager.regions_class_order)}


def _check_stock_split(model: TrainedModel, experiment: Experiment) -> list[str]:
    """Stock nnU-Net does not store its split. What tells of it: the cases it validated on, and a line of its log."""
    teacher, fold = f"teacher {model.path}", f"fold {experiment.fold} of splits_final.json"
    cure = "it was trained on another split; restore that file, or train the teacher again"
    held_out = set(experiment.labelled_ids if experiment.fold == "all" else experiment.val_ids)
    validated = _validated_ids(model.path.parent, experiment.dataset_json["file_ending"])
    foreign = sorted(validated - held_out)
    if foreign:
        raise UserError(f"{teacher} was validated on {', '.join(foreign[:5])}, which {fold} does not hold out: {cure}")
    sizes, logged = (len(experiment.train_ids), len(held_out)), _logged_sizes(model.path.parent)
    if logged not in (None, sizes):
        raise UserError(f"{teacher} was trained on {logged[0]} and validated on {logged[1]} cases, {fold} has "
                        f"{sizes[0]} and {sizes[1]}: {cure}")

    agreed = [f"it predicted {len(validated)} of {len(held_out)} validation cases and no other"] if validated else []
    agreed += [f"its log counts {sizes[0]} training and {sizes[1]} validation cases too"] if logged else []
    warnings = [f"stock nnU-Net does not store which cases it trained on, so that {fold} is what {teacher} was trained "
                f"on cannot be proven ({'; '.join(agreed) or 'nothing could be checked'})"]
    path = splits_file(experiment.preprocessed_folder)
    if experiment.fold != "all" and model.started is not None and path.stat().st_mtime > model.started:
        warnings.append(f"{path} was written after the training of {teacher} began: make sure that the entry of fold "
                        f"{experiment.fold} is still the same")
    return warnings


def _validated_ids(fold_folder: Path, file_ending: str) -> set[str]:
    return {path.name.removesuffix(file_ending) for path in (fold_folder / "validation").glob(f"*{file_ending}")}


def _logged_sizes(fold_folder: Path) -> tuple[int, int] | None:
    """How many training and validation cases the last training from epoch 0 on logged."""
    lines = []
    for log in fold_folder.glob("training_log_*.txt"):
        text = log.read_text(encoding="utf-8", errors="replace")
        if ": Epoch 0" in text:         # not the log of a mere validation, nor of a training that was resumed
            lines += _SPLIT_LINE.findall(text)
    if not lines:
        return None
    _, num_training, num_validation = max(lines)        # dates in ISO 8601: the latest
    return int(num_training), int(num_validation)


# ----------------------------------------------------------------------------------------------------------------------
# Asking it


@dataclass(frozen=True, repr=False)
class Teacher:
    """A checked model that labels preprocessed images; its weights never change.

    Attributes:
        seen: the experiment as the teacher was trained on it.
        pseudo_labels: how its outputs become labels (SA-CPS Eq. 9, with the student's τ).
        lowest: what it was shown outside the layout, of each channel; None = the image, as without
            `mask_outside_layout`.
        warnings: to print.
    """

    model: TrainedModel
    seen: Experiment
    pseudo_labels: PseudoLabels
    device: torch.device
    lowest: list[float] | None
    warnings: list[str]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that decides its pseudo-labels, but for the images."""
        configuration = self.seen.configuration_manager
        return {
            "format": 1,
            "weights_sha256": weights_sha256(self.model.weights),
            "trainer": self.model.trainer_name,
            "architecture": configuration.configuration["architecture"],
            "patch_size": list(configuration.patch_size),
            "mirror_axes": None if self.model.mirror_axes is None else list(self.model.mirror_axes),
            "prediction": PREDICTION,
            "preprocessing_sha256": PoolPlan(self.seen).preprocessing_sha256,
            "labels": _labels(self.seen),
            "confidence_threshold": self.pseudo_labels.threshold,
            "outside_layout": self.lowest,
        }

    @cached_property
    def key(self) -> str:
        """Hash of `facts`: the name of the folder of its pseudo-labels."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def label(self, image: np.ndarray, layout: np.ndarray) -> np.ndarray:
        """[C, z, y, x] preprocessed image, [z, y, x] layout → [z, y, x] labels."""
        if self.lowest is not None:
            image = np.where(layout > 0, image, np.reshape(np.array(self.lowest, dtype=image.dtype), (-1, 1, 1, 1)))
        logits = self._predictor.predict_sliding_window_return_logits(torch.from_numpy(image)).cpu()
        return self.pseudo_labels.to_labels(self.pseudo_labels.from_logits(logits[None]))[0].numpy()

    @cached_property
    def _predictor(self) -> nnUNetPredictor:
        predictor = nnUNetPredictor(**PREDICTION, perform_everything_on_device=self.device.type == "cuda",
                                    device=self.device, allow_tqdm=False)
        predictor.manual_initialization(
            build_network(self.model).requires_grad_(False), self.seen.plans_manager, self.seen.configuration_manager,
            None, self.seen.dataset_json, self.model.trainer_name, self.model.mirror_axes)
        return predictor


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """Hash of names and bytes of all weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_teacher(checkpoint: Path, experiment: Experiment, pseudo_labels: PseudoLabels, device: torch.device,
                 lowest_intensity: Callable[[], list[float]]) -> Teacher:
    """The teacher in `checkpoint`, checked.

    Args:
        lowest_intensity: of each channel: what a teacher was shown outside the layout if it was trained with
            `mask_outside_layout`.

    Raises:
        UserError: see `read_trained_model` and `check_teacher`.
    """
    model = read_trained_model(checkpoint, "train the teacher again, or set teacher to another model")
    warnings = check_teacher(model, experiment)
    is_masked = model.ours.get("settings", {}).get("mask_outside_layout", False)
    return Teacher(model, seen_by(model, experiment), pseudo_labels, device,
                   lowest_intensity() if is_masked else None, warnings)
