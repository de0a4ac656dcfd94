"""ACE, the normalisation block of SEAN (Zhu et al. 2020, §3.1), without its cost.

    ACE(x) = γ ⊙ BN(x + noise) + β        γ = a·γ_style + (1 − a)·γ_SPADE,  β likewise with b;  (a, b) = sigmoid(blend)

The published block paints the 512 numbers of each class's style onto the class's pixels and convolves that. But the
convolution of a map that is constant on each class is a convolution of the one-hot map with another kernel,

    K[o, c, u, v] = Σ_f W[o, f, u, v] · μ_c[f],        μ_c = ReLU(A_c · code_c + a_c),

so the painted map is never made (`FoldedLabels`), and where all images share one code, γ and β take few distinct
values, which are computed once each (`PatternLabels`). Both equal the published block to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.synthesizers.label_patterns import LabelPatterns, find_label_patterns

# Beyond this many distinct neighbourhoods (of noise, say) a label map is no longer worth tabulating.
MAX_PATTERNS = 2 ** 16


class Labels(Protocol):
    """A label map at one resolution, ready to modulate any ACE."""

    def modulate(self, ace: ACE, x: Tensor, codes: Tensor) -> Tensor:
        """γ·BN(x) + β for x [N, C, H, W] and codes [N, S, F], or [1, S, F] shared by all."""
        ...


class ClasswiseLinear(nn.Module):
    """ReLU(A_c · code_c + a_c): every class its own layer, or one layer for all of them."""

    def __init__(self, num_layers: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_layers))

    def forward(self, codes: Tensor) -> Tensor:
        """[N, S, F] → [N, S, F]."""
        if len(self.layers) == 1:
            return F.relu(self.layers[0](codes))
        return F.relu(torch.stack([layer(code) for layer, code in zip(self.layers, codes.unbind(1), strict=True)], 1))


class ACE(nn.Module):
    """One ACE for C channels and S classes.

    `style_dim` 0 makes the block without the style branch that SEAN has at full resolution (plain SPADE).
    """

    def __init__(self, channels: int, num_classes: int, style_dim: int, hidden: int, shared_fc: bool) -> None:
        super().__init__()
        self.noise_std = nn.Parameter(torch.zeros(channels))
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.spade_hidden = nn.Conv2d(num_classes, hidden, 3, padding=1)
        self.spade = nn.Conv2d(hidden, 2 * channels, 3, padding=1)              # γ, then β
        self.is_styled = style_dim > 0
        if self.is_styled:
            self.style_fc = ClasswiseLinear(1 if shared_fc else num_classes, style_dim)
            self.style = nn.Conv2d(style_dim, 2 * channels, 3, padding=1)       # γ, then β
            self.blend = nn.Parameter(torch.zeros(2))                           # of γ, of β

    def forward(self, x: Tensor, labels: Labels, codes: Tensor, noise: Tensor | None) -> Tensor:
        """x [N, C, H, W] → the same shape; noise [N, 1, H, W] ~ N(0, 1) or None."""
        if noise is not None:
            x = x + noise.to(x.dtype) * self.noise_std.view(-1, 1, 1).to(x.dtype)
        return labels.modulate(self, x, codes)

    def blended(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The two branches with a and b multiplied into their weights.

        Returns:
            the SPADE branch's second convolution [2C, hidden, 3, 3]; the common bias [2C]; and the folded style
            kernels [N, 2C, S·9] (None without a style branch).
        """
        if not self.is_styled:
            return self.spade.weight, self.spade.bias, None
        share = torch.sigmoid(self.blend).repeat_interleave(len(self.spade.bias) // 2)
        weight = self.spade.weight * (1 - share).view(-1, 1, 1, 1)
        bias = torch.lerp(self.spade.bias, self.style.bias, share)
        return weight, bias, self.style_kernels(codes) * share[:, None]

    def style_kernels(self, codes: Tensor) -> Tensor:
        """K of the module's docstring, [N, 2C, S·9] float32, channel-major as `unfold` orders its columns."""
        out_channels, style_dim = self.style.weight.shape[:2]
        # Taps before features, so that a channels_last weight is multiplied where it lies instead of being copied.
        taps = self.style.weight.permute(0, 2, 3, 1).reshape(out_channels * 9, style_dim)
        kernels = F.linear(self.style_fc(codes), taps)                          # [N, S, 2C·9]
        return kernels.unflatten(-1, (out_channels, 9)).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class FoldedLabels:
    """Every pixel by itself; each image may have its own code. The form that training differentiates."""

    one_hot: Tensor         # [N, S, H, W]
    columns: Tensor         # [N, S·9, H·W], the 3×3 one-hot neighbourhood of each pixel

    @classmethod
    def of(cls, semantic: Tensor, num_classes: int, dtype: torch.dtype) -> FoldedLabels:
        one_hot = one_hot_of(semantic, num_classes, dtype)
        return cls(one_hot=one_hot, columns=F.unfold(one_hot, 3, padding=1))

    def modulate(self, ace: ACE, x: Tensor, codes: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias, kernels = ace.blended(codes)
        gamma_beta = F.conv2d(F.relu(ace.spade_hidden(self.one_hot)), weight, bias, padding=1)
        if kernels is not None:
            styled = kernels @ self.columns
            gamma_beta = gamma_beta + styled.unflatten(-1, gamma_beta.shape[2:])
        gamma, beta = gamma_beta.chunk(2, dim=1)
        return ace.norm(x) * (1 + gamma) + beta


@dataclass(frozen=True)
class PatternLabels:
    """Every distinct neighbourhood once; all images share one code. The form that inference uses."""

    patterns: LabelPatterns
    columns: Tensor         # [P₃, S·9], the distinct 3×3 one-hot neighbourhoods

    @classmethod
    def of(cls, semantic: Tensor, num_classes: int, dtype: torch.dtype) -> PatternLabels:
        patterns = find_label_patterns(semantic, num_classes)
        return cls(patterns, patterns.columns(dtype))

    def modulate(self, ace: ACE, x: Tensor, codes: Tensor) -> Tensor:
        assert not ace.training and len(codes) == 1, "patterns are for inference with one code for all images"
        with torch.autocast(x.device.type, enabled=False):
            gamma, beta = self._gamma_beta(ace, codes).chunk(2, dim=1)
            # In eval mode batch norm is (x − m)/σ, so it goes into the tables: γ(x − m)/σ + β = x·scale + shift.
            scale = (1 + gamma) * torch.rsqrt(ace.norm.running_var + ace.norm.eps)
            shift = beta - ace.norm.running_mean * scale
        scale, shift = (F.embedding(self.patterns.index, table.to(x.dtype)).movedim(-1, 1) for table in (scale, shift))
        return torch.addcmul(shift, x, scale)

    def _gamma_beta(self, ace: ACE, codes: Tensor) -> Tensor:
        """[P₅, 2C], γ and β of each distinct 5×5 neighbourhood."""
        weight, bias, kernels = ace.blended(codes)
        hidden = F.relu(F.linear(self.columns, ace.spade_hidden.weight.flatten(1), ace.spade_hidden.bias))
        hidden = hidden * self.patterns.is_inside[:, None]                      # zero padding of the second convolution
        nine = hidden[self.patterns.wide].flatten(1)                            # [P₅, 9·hidden]
        gamma_beta = F.linear(nine, weight.permute(0, 2, 3, 1).flatten(1), bias)
        if kernels is not None:
            styled = F.linear(self.columns, kernels[0])                         # [P₃, 2C]
            gamma_beta = gamma_beta + styled[self.patterns.wide[:, 4]]          # the 3×3 at the centre of the 5×5
        return gamma_beta


def labels_for(semantic: Tensor, num_classes: int, dtype: torch.dtype, is_shared: bool) -> Labels:
    """The faster form for [N, H, W] int64 labels; `is_shared`: in eval mode, with one code for all images."""
    if is_shared:
        labels = PatternLabels.of(semantic, num_classes, dtype)
        if len(labels.patterns.wide) <= MAX_PATTERNS:
            return labels
    return FoldedLabels.of(semantic, num_classes, dtype)


def one_hot_of(semantic: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """[N, H, W] int64 → [N, S, H, W]."""
    return F.one_hot(semantic, num_classes).movedim(-1, 1).to(dtype)
