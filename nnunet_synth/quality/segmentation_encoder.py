"""The encoder of a trained nnU-Net as a feature extractor: what matters to segment is what must look alike."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import join
from pathlib import Path

import nnunetv2
import numpy as np
import torch
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_synth.data.segmentation_features import CHECKPOINTS, find_checkpoint, stage_maps, unet_encoder
from nnunet_synth.data.trained_model import read_trained_model
from nnunet_synth.data.trained_network import build_network
from nnunet_synth.errors import UserError
from nnunet_synth.quality.extractor import Extractor

SMALLEST_MAP = 4        # pixels a side of the feature map that is averaged; instance norm erases smaller ones


class DeepestFeatures(nn.Module):
    """Images [N, C, H, W] in the network's intensities → [N, 2·D]: mean and maximum of each map of the deepest stage
    that still has 4 × 4 pixels.

    Instance norm makes the mean of a map before the last nonlinearity the same for every image, so the mean alone would
    say little; the maximum tells whether what a map looks for is there at all.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        *_, deepest = stage_maps(self.encoder, images, SMALLEST_MAP)
        return torch.cat([deepest.mean((-2, -1)), deepest.amax((-2, -1))], 1)


class Normalisation:
    """Images [N, C, H, W] in the unit of the files → what the network was trained on, by nnU-Net's own classes."""

    def __init__(self, plans: PlansManager, configuration: str) -> None:
        manager = plans.get_configuration(configuration)
        facts = plans.foreground_intensity_properties_per_channel
        folder = join(nnunetv2.__path__[0], "preprocessing", "normalization")
        self.channels = [
            recursive_find_python_class(folder, scheme, "nnunetv2.preprocessing.normalization")(
                use_mask_for_norm=use_mask, intensityproperties=facts[str(channel)])
            for channel, (scheme, use_mask) in enumerate(zip(manager.normalization_schemes, manager.use_mask_for_norm,
                                                             strict=True))]

    def __call__(self, images: Tensor) -> Tensor:
        # Where an image shows nothing its annotation is −1; nothing is cropped here, so the mask is the whole image.
        raw = images.cpu().numpy().copy()
        for image in raw:
            everywhere = np.zeros(image.shape[1:], np.int8)
            for channel, normalise in enumerate(self.channels):
                image[channel] = normalise.run(image[channel], everywhere)
        return torch.from_numpy(raw).to(images.device)


def load_segmentation_encoder(folder: str | Path, num_channels: int, device: str = "cpu") -> Extractor:
    """The encoder of the network in the results folder of one fold (…/nnUNetTrainer__nnUNetPlans__2d/fold_0).

    Raises:
        UserError: no readable checkpoint, a 3D configuration, other channels, or a network without encoder.
    """
    path = find_checkpoint(folder)
    if path is None:
        raise UserError(f"{folder} holds neither {' nor '.join(CHECKPOINTS)}: name the fold folder of a trained "
                        "nnU-Net")
    model = read_trained_model(path, "train it again, or name another fold with --segmentation")
    plans = PlansManager(model.plans)
    if len(plans.get_configuration(model.configuration).patch_size) != 2:
        raise UserError(f"{path} is a 3D network ({model.configuration}): images are judged one by one, name a fold of "
                        "a 2d configuration")
    channels = model.dataset_json.get("channel_names") or model.dataset_json["modality"]
    if len(channels) != num_channels:
        raise UserError(f"{path} takes {len(channels)} channel(s) ({_listed(channels.values())}), the images have "
                        f"{num_channels}: name a network for such images")
    encoder = unet_encoder(build_network(model), path, "name another network")
    deepest = DeepestFeatures(encoder).eval().requires_grad_(False).to(device)
    return Extractor("segmentation", f"encoder of {model.trainer_name}, {model.plans['dataset_name']} "
                     f"{model.configuration} fold {model.fold}", deepest, Normalisation(plans, model.configuration))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))
