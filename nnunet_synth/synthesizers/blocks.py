"""Building blocks that several synthesizers share: multi-scale patch discriminator, spectral norm, initialisation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

LEAK = 0.2      # slope of every LeakyReLU in SPADE, SEAN and pix2pixHD


# ----------------------------------------------------------------------------------------------------------------------
# Discriminator


class PatchDiscriminator(nn.Module):
    """One scale: 4×4 convolutions, padding 2, of stride 2 (`num_layers` of them, the width doubling up to 8×), then
    one of stride 1 to a single logit a patch. All but the first strided one have instance norm and spectral norm.
    """

    def __init__(self, in_channels: int, width: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        widths = [min(width * 2 ** layer, width * 8) for layer in range(num_layers)]
        first = nn.Sequential(nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=2), nn.LeakyReLU(LEAK))
        middle = [nn.Sequential(spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=2, bias=False)),
                                nn.InstanceNorm2d(after), nn.LeakyReLU(LEAK))
                  for before, after in zip(widths, widths[1:], strict=False)]
        self.layers = nn.ModuleList([first, *middle, nn.Conv2d(widths[-1], 1, 4, padding=2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, C, H, W] → the features of every layer, the last one = logits."""
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features


class MultiScaleDiscriminator(nn.Module):
    """The same patch discriminator on the image and on its 2× averaged copies (pix2pixHD §3.2; SEAN: two scales)."""

    def __init__(self, in_channels: int, width: int = 64, num_layers: int = 3, num_scales: int = 2) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(in_channels, width, num_layers) for _ in range(num_scales))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """[N, C, H, W] (condition and image, concatenated) → [scale][layer] feature maps."""
        features = []
        for scale, discriminator in enumerate(self.scales):
            if scale > 0:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            features.append(discriminator(x))
        return features


# ----------------------------------------------------------------------------------------------------------------------
# Weights


def init_xavier(module: nn.Module, gain: float) -> None:
    """Xavier-normal weights and zero biases for every convolution and linear layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_normal_(layer.weight, gain=gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def add_spectral_norm(layers: Iterable[nn.Module]) -> None:
    """Divide the weight of each layer by its largest singular value from now on; layers that have it stay."""
    for layer in layers:
        if not is_parametrized(layer, "weight"):
            spectral_norm(layer).train(layer.training)      # torch hands it over in train mode


def fold_spectral_norm(module: nn.Module) -> None:
    """Make the normalised weights the weights: the same function without the power iteration."""
    module.eval()       # in train mode reading the weight would iterate once more
    for layer in module.modules():
        if is_parametrized(layer, "weight"):
            remove_parametrizations(layer, "weight", leave_parametrized=True)


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state with all spectral norms folded, as contiguous tensors of their own; `module` is untouched.

    Not by folding a deep copy: the copies of parametrized layers share their class with the originals, and
    `remove_parametrizations` deletes `weight` from that class.
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if "parametrizations." not in name}
    for name, layer in module.named_modules():
        if is_parametrized(layer, "weight"):
            norms = layer.parametrizations["weight"]
            was_training = norms.training
            norms.eval()        # in train mode reading the weight would iterate once more
            state[f"{name}.weight"] = layer.weight
            norms.train(was_training)
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients flow through the module but none to its parameters: half the cost in the generator's step."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
