"""Features for the perceptual loss: VGG19's relu1_1 … relu5_1, as in pix2pixHD, SPADE and SEAN."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_synth.errors import UserError

RELU_X_1 = (1, 6, 11, 20, 29)       # places of relu1_1, relu2_1, … relu5_1 among torchvision's vgg19().features
SECONDS_TO_WAIT = 10.0              # for an answer of the server that holds the weights


class VGG19Features(nn.Module):
    """Images [N, C, H, W] in [-1, 1] → five feature maps, shallow to deep.

    As published, the inputs are not normalised with ImageNet's mean and deviation. Three channels are taken for
    colours; otherwise every channel is a gray image of its own, repeated to three.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        from torchvision.models import vgg19
        super().__init__()
        with torch.device("meta"):      # neither memory nor random numbers for weights that are replaced or not used
            layers = vgg19(weights=None).features
        layers.load_state_dict({name.removeprefix("features."): tensor for name, tensor in state.items()
                                if name.startswith("features.")}, assign=True)
        layers = layers[:RELU_X_1[-1] + 1]
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False       # the tapped maps must not be overwritten
        starts = (0, *(place + 1 for place in RELU_X_1[:-1]))
        self.parts = nn.ModuleList(layers[start:end + 1] for start, end in zip(starts, RELU_X_1, strict=True))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = image if image.shape[1] == 3 else image.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
        features = []
        for part in self.parts:
            x = part(x)
            features.append(x)
        return features


def load_vgg19(weights_file: str | Path | None = None) -> VGG19Features | None:
    """VGG19 trained on ImageNet, from a file or from torchvision's cache (downloaded once, 548 MB).

    Returns:
        None when no file is named, the cache is empty and the weights cannot be downloaded.

    Raises:
        UserError: the named file does not hold torchvision's VGG19.
    """
    if weights_file is None:
        return _load_cached()
    try:
        return VGG19Features(torch.load(weights_file, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise UserError(f"{weights_file} does not exist: give torchvision's vgg19-dcbb9e9d.pth") from error
    except Exception as error:      # torch raises half a dozen kinds for a damaged or foreign file
        raise UserError(f"{weights_file} does not hold torchvision's VGG19: give its vgg19-dcbb9e9d.pth") from error


def _load_cached() -> VGG19Features | None:
    from torchvision.models import VGG19_Weights
    try:
        with impatient():
            state = torch.hub.load_state_dict_from_url(VGG19_Weights.IMAGENET1K_V1.url, map_location="cpu",
                                                       progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError):     # URLError is an OSError; RuntimeError: a damaged or cut-off download
        return None
    return VGG19Features(state)


@contextmanager
def impatient() -> Iterator[None]:
    """Machines without internet often drop packets instead of refusing: do not wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_TO_WAIT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
