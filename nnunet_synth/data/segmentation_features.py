"""The encoder of a trained nnU-Net as features for the perceptual loss: what matters to segment is what must match."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.trained_model import read_trained_model
from nnunet_synth.data.trained_network import build_network
from nnunet_synth.errors import UserError

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
MAX_TAPS = 5        # as many as VGG19 gives; the deepest stages see whole organs, not texture
SMALLEST_TAP = 2    # pixels a side; nnU-Net's instance norm refuses a map of one pixel


def stage_maps(encoder: nn.Module, images: Tensor, smallest: int) -> Iterator[Tensor]:
    """The feature map of each stage of nnU-Net's encoder, shallow to deep, as long as it has `smallest` pixels a side;
    the first one in any case.

    Args:
        images: [N, C, H, W] in the network's intensities.
    """
    maps = images if getattr(encoder, "stem", None) is None else encoder.stem(images)
    for number, (stage, stride) in enumerate(zip(encoder.stages, encoder.strides, strict=True)):
        if number > 0 and min(maps.shape[-2:]) // max(np.atleast_1d(stride)) < smallest:
            return
        maps = stage(maps)
        yield maps


class SegmentationFeatures(nn.Module):
    """Images [N, C, H, W] in [-1, 1] → the encoder's feature maps, shallow to deep; fewer of small images.

    Args:
        encoder: nnU-Net's, plain or residual.
        to_network: maps images in [-1, 1] to the network's intensities.
    """

    def __init__(self, encoder: nn.Module, to_network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = encoder
        self.to_network = to_network
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(islice(stage_maps(self.encoder, self.to_network(image), SMALLEST_TAP), MAX_TAPS))


def load_segmentation_features(folder: str | Path, experiment: Experiment,
                               to_network: Callable[[Tensor], Tensor]) -> SegmentationFeatures:
    """The frozen encoder of a supervised nnU-Net trained for this fold.

    Args:
        folder: results of one fold (…/nnUNetTrainer__nnUNetPlans__2d/fold_0), holding a checkpoint.
        to_network: maps images in [-1, 1] to the network's intensities.

    Raises:
        UserError: no readable checkpoint, another dataset, fold or a 3D configuration, or a network without encoder.
    """
    path = find_checkpoint(folder)
    if path is None:
        raise UserError(f"{folder} holds neither {' nor '.join(CHECKPOINTS)}: name the fold folder of a trained "
                        "nnU-Net")
    model = read_trained_model(path, "train it again, or use --perceptual off")
    if model.plans["dataset_name"] != experiment.dataset_name or model.fold != experiment.fold:
        raise UserError(f"{path} was trained on fold {model.fold} of {model.plans['dataset_name']}, this is fold "
                        f"{experiment.fold} of {experiment.dataset_name}: its features would know validation cases")
    manager = PlansManager(model.plans).get_configuration(model.configuration)
    if len(manager.patch_size) != 2:
        raise UserError(f"{path} is a 3D network ({model.configuration}): perceptual features need a 2d configuration")
    return SegmentationFeatures(unet_encoder(build_network(model), path, "use --perceptual off"), to_network)


def find_checkpoint(folder: str | Path) -> Path | None:
    """The final checkpoint of a fold, or its best one, or None."""
    return next((path for name in CHECKPOINTS if (path := Path(folder) / name).is_file()), None)


def unet_encoder(network: nn.Module, path: Path, cure: str) -> nn.Module:
    """The encoder of a U-Net.

    Args:
        path, cure: where the network comes from and what to do instead, for the message.

    Raises:
        UserError: it has none that works in stages, as transformers.
    """
    encoder = getattr(network, "encoder", None)
    if not hasattr(encoder, "stages") or not hasattr(encoder, "strides"):
        raise UserError(f"{path} holds a {type(network).__name__}, which has no encoder of stages as a U-Net: {cure}")
    return encoder
