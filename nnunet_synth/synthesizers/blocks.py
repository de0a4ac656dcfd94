"""Building blocks that several synthesizers share: normalisation, initialisation, spectral norm, masking, freezing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from nnunet_synth.errors import UserError

LEAK = 0.2      # slope of every LeakyReLU in SPADE, SEAN and pix2pixHD
NORMS = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}


def normalisation(kind: str, channels: int) -> nn.Module:
    """"instance" (without learned scale and shift, as pix2pixHD) or "batch". Raises UserError for another kind."""
    if kind not in NORMS:
        raise UserError(f"norm {kind!r} is unknown; known: {', '.join(NORMS)}")
    return NORMS[kind](channels)


# ----------------------------------------------------------------------------------------------------------------------
# Weights


def init_xavier(module: nn.Module, gain: float) -> None:
    """Xavier-normal weights and zero biases for every convolution and linear layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_normal_(layer.weight, gain=gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """N(0, std) weights and zero biases for every convolution and linear layer (pix2pix, pix2pixHD)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0, std)
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


def masked(image: Tensor, valid: Tensor) -> Tensor:
    """[N, C, H, W] in [−1, 1] with −1 wherever [N, H, W] is False: what nobody annotated is the same in the real and in
    the drawn image, so no loss sees it."""
    return image.masked_fill(~valid[:, None], -1)


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
