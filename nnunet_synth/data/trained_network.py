"""The network of a trained nnU-Net, built by the trainer that trained it: trainers may change the architecture."""

from __future__ import annotations

import inspect
from copy import deepcopy

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_synth.data.trained_model import TrainedModel
from nnunet_synth.errors import UserError


def build_network(model: TrainedModel) -> nn.Module:
    """The network of a checkpoint with its weights, on the CPU, as `nnUNetv2_predict` builds it.

    Raises:
        UserError: nnU-Net does not find the trainer, or what it builds does not fit the weights.
    """
    try:
        build = recursive_find_trainer_class_by_name(model.trainer_name).build_network_architecture
    except RuntimeError as error:
        raise UserError(f"{model.path} was trained by {model.trainer_name}, which nnU-Net does not find here: install "
                        "what brings it, or set nnUNet_extTrainer") from error
    plans = PlansManager(deepcopy(model.plans))     # nnUNetTrainerBN writes into them what it builds
    configuration = plans.get_configuration(model.configuration)
    channels = determine_num_input_channels(plans, configuration, model.dataset_json)
    heads = plans.get_label_manager(model.dataset_json).num_segmentation_heads
    architecture = (plans, configuration) if "plans_manager" in inspect.signature(build).parameters else (
        # trainers written for nnU-Net before 2.8
        configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import)
    try:
        # Its random initial weights must not cost a training random numbers: what is built here would change the run.
        with torch.random.fork_rng(devices=[]):
            network = build(*architecture, channels, heads, enable_deep_supervision=False)
        network.load_state_dict(model.weights)
    except Exception as error:      # whatever a foreign trainer raises
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{model.path} does not fit what {model.trainer_name} builds here ({reason}): install the "
                        "versions of nnunetv2 and of the trainer that it was trained with") from error
    return network
