"""SEAN as published, in plain steps: every class's style painted onto its pixels and convolved, every norm, branch and
blend by itself. Slow and obvious; written from the paper's equations and the architecture table, not from our code
(it shares only the names under which the weights lie). Works in the dtype and on the device of what it is given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def style_codes(weights: Weights, image: Tensor, semantic: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    """Enc: [N, C, H, W], [N, H, W], [N, H, W] → [N, S, F], a loop over images, classes and features."""
    def conv(x: Tensor, layer: str, **options) -> Tensor:
        return F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], **options)

    def norm_activate(x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean((2, 3), keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-5)
        return torch.where(x > 0, x, 0.2 * x)

    def reflect(x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1), mode="reflect")

    x = torch.where(valid[:, None], image, torch.full_like(image, -1))
    x = norm_activate(conv(reflect(x), "encoder.layers.0.0"))
    x = norm_activate(conv(x, "encoder.layers.1.0", stride=2, padding=1))
    x = norm_activate(conv(x, "encoder.layers.2.0", stride=2, padding=1))
    x = norm_activate(F.conv_transpose2d(x, weights["encoder.layers.3.0.weight"], weights["encoder.layers.3.0.bias"],
                                         stride=2, padding=1, output_padding=1))
    features = torch.tanh(conv(reflect(x), "encoder.layers.4"))

    small = F.interpolate(semantic[:, None].double(), size=features.shape[2:], mode="nearest")[:, 0].long()
    seen = F.interpolate(valid[:, None].double(), size=features.shape[2:], mode="nearest")[:, 0] > 0
    codes = features.new_zeros(len(image), num_classes, features.shape[1])
    for number in range(len(image)):
        for index in range(num_classes):
            region = (small[number] == index) & seen[number]
            if region.any():
                for feature in range(features.shape[1]):
                    codes[number, index, feature] = features[number, feature][region].mean()
    return codes


def ace(weights: Weights, prefix: str, x: Tensor, semantic: Tensor, codes: Tensor, noise: Tensor | None) -> Tensor:
    """SEAN §3.1, the published form: [N, C, h, w], labels [N, h, w], codes [N, S, F] → [N, C, h, w]."""
    def conv(x: Tensor, layer: str) -> Tensor:
        return F.conv2d(x, weights[f"{prefix}.{layer}.weight"], weights[f"{prefix}.{layer}.bias"], padding=1)

    num_classes = weights[f"{prefix}.spade_hidden.weight"].shape[1]
    if noise is not None:
        x = x + noise * weights[f"{prefix}.noise_std"][None, :, None, None]
    mean = weights[f"{prefix}.norm.running_mean"][None, :, None, None]
    variance = weights[f"{prefix}.norm.running_var"][None, :, None, None]
    normalised = (x - mean) / torch.sqrt(variance + 1e-5)

    segmentation = torch.stack([semantic == index for index in range(num_classes)], dim=1).to(x.dtype)
    gamma, beta = conv(torch.relu(conv(segmentation, "spade_hidden")), "spade").chunk(2, dim=1)

    if f"{prefix}.style.weight" in weights:
        gamma_style, beta_style = conv(style_map(weights, prefix, semantic, codes), "style").chunk(2, dim=1)
        share_gamma, share_beta = torch.sigmoid(weights[f"{prefix}.blend"])
        gamma = share_gamma * gamma_style + (1 - share_gamma) * gamma
        beta = share_beta * beta_style + (1 - share_beta) * beta
    return normalised * (1 + gamma) + beta


def style_map(weights: Weights, prefix: str, semantic: Tensor, codes: Tensor) -> Tensor:
    """Each class's ReLU(A_c code_c + a_c) painted onto the class's pixels: [N, F, h, w]."""
    styles = []
    for index in range(codes.shape[1]):
        layer = index if f"{prefix}.style_fc.layers.{index}.weight" in weights else 0       # one layer for all classes
        styles.append(torch.relu(codes[:, index] @ weights[f"{prefix}.style_fc.layers.{layer}.weight"].T
                                 + weights[f"{prefix}.style_fc.layers.{layer}.bias"]))
    styles = torch.stack(styles, dim=1)                                                     # [N, S, F]
    return torch.stack([style[labels] for style, labels in zip(styles, semantic, strict=True)]).movedim(-1, 1)


def residual_block(weights: Weights, prefix: str, x: Tensor, semantic: Tensor, codes: Tensor, noise: list) -> Tensor:
    def normed(x: Tensor, which: str) -> Tensor:
        return ace(weights, f"{prefix}.{which}", x, semantic, codes, noise.pop(0))

    def activate(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2)

    shortcut = x
    if f"{prefix}.conv_s.weight" in weights:
        shortcut = F.conv2d(normed(x, "ace_s"), weights[f"{prefix}.conv_s.weight"])
    for step in "01":
        x = F.conv2d(activate(normed(x, f"ace_{step}")), weights[f"{prefix}.conv_{step}.weight"],
                     weights[f"{prefix}.conv_{step}.bias"], padding=1)
    return shortcut + x


def draw(weights: Weights, num_upsamplings: int, semantic: Tensor, codes: Tensor,
         noise: list[Tensor] | None = None) -> Tensor:
    """Dec: labels [N, H, W] and codes [N, S, F] → [N, C, H, W] in [−1, 1].

    `noise`: one map [N, 1, h, w] for each ACE in the order of use, or None.
    """
    num_classes = codes.shape[1]
    noise = [None] * 100 if noise is None else list(noise)
    height, width = semantic.shape[1:]

    def labels_at(level: int) -> Tensor:
        """The label map after `level` upsamplings."""
        size = (height // 2 ** (num_upsamplings - level), width // 2 ** (num_upsamplings - level))
        return F.interpolate(semantic[:, None].double(), size=size, mode="nearest")[:, 0].long()

    coarsest = torch.stack([labels_at(0) == index for index in range(num_classes)], dim=1).to(codes.dtype)
    x = F.conv2d(coarsest, weights["decoder.seed.weight"], weights["decoder.seed.bias"], padding=1)
    for level in range(num_upsamplings + 1):
        if level > 0:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        for number in range(2 if level == 1 else 1):
            x = residual_block(weights, f"decoder.blocks.{level}.{number}", x, labels_at(level), codes, noise)
    x = F.leaky_relu(x, 0.2)
    return torch.tanh(F.conv2d(x, weights["decoder.to_image.weight"], weights["decoder.to_image.bias"], padding=1))
