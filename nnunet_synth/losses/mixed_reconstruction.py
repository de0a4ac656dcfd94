"""CoSinGAN's mixed reconstruction loss (Eq. 6): pixels, local structure, and features of two networks.

ℓ_rec = λ_WPPL ℓ_WPPL + λ_MS-SSIM ℓ_MS-SSIM + λ_MS-FVL ℓ_MS-FVL + λ_MS-FUL ℓ_MS-FUL with λ = 10, 1, 10, 10. The last two
(Eq. 8, 9) are `reconstruction.perceptual_loss`, with weights η of pix2pixHD for VGG19 and equal weights γ for the
segmentation network, about which the paper says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_synth.errors import UserError

# Zhao et al. 2016 (IEEE TCI 3): the standard deviations of the Gaussians, in pixels, all at full resolution.
ZHAO_SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)
# Wang et al. 2003: the exponents of the levels, each at half the resolution of the one before.
WANG_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WANG_WINDOW = 11
DATA_RANGE = 2.0        # of images in [−1, 1]


def weighted_pixel_loss(fake: Tensor, real: Tensor, semantic: Tensor, weights: Tensor) -> Tensor:
    """ℓ_WPPL = 1/P Σ_p M(C^p) |O^p − X^p| (Eq. 7), also averaged over the channels, in float32.

    Args:
        fake, real: [N, C, H, W].
        semantic: [N, H, W] int64 classes.
        weights: [num_classes] M.
    """
    return (weights[semantic][:, None] * (fake.float() - real.float()).abs()).mean()


# ----------------------------------------------------------------------------------------------------------------------
# MS-SSIM


def zhao_sigmas(size: int) -> tuple[float, ...]:
    """The Gaussians whose window, 4σ + 1 pixels wide, is at most half as wide as an image of `size` pixels: three at
    32, four at 48 and 64, all five from 96 on."""
    return tuple(sigma for sigma in ZHAO_SIGMAS if 2 * (2 * int(2 * sigma) + 1) <= size) or ZHAO_SIGMAS[:1]


def wang_exponents(size: int) -> tuple[float, ...]:
    """As many levels as the 11 × 11 window of torchmetrics allows for an image of `size` pixels (two at 32, three from
    48, four from 128, five from 176 on), their exponents divided by their sum."""
    number = max((levels for levels in range(1, len(WANG_EXPONENTS) + 1)
                  if size // max(1, (levels - 1) ** 2) >= WANG_WINDOW), default=1)
    return tuple(exponent / sum(WANG_EXPONENTS[:number]) for exponent in WANG_EXPONENTS[:number])


class MultiScaleSSIMLoss(nn.Module):
    """1 − MS-SSIM of two images [N, C, H, W] in [−1, 1], in float32; 0 = the same.

    Args:
        size: of the shorter side of the images, pixels; decides how many scales there are.
        form: "zhao" (the loss that the paper adopts; kornia) or "wang" (the measure that it cites; torchmetrics). The
            latter has no gradient where the images' structures are opposed.

    Raises:
        UserError: the form is unknown, or its library is not installed.
    """

    FORMS = ("zhao", "wang")

    def __init__(self, size: int, form: str = "zhao") -> None:
        super().__init__()
        if form not in self.FORMS:
            raise UserError(f"ms_ssim {form!r} is unknown; known: {', '.join(self.FORMS)}")
        self.form = form
        if form == "zhao":
            losses = _import("kornia.losses", "cosingan")
            # kornia's defaults would be 97.5 % L1, two hundred times as large.
            self.zhao = losses.MS_SSIMLoss(zhao_sigmas(size), data_range=DATA_RANGE, alpha=1.0, compensation=1.0)
        else:
            self.functional = _import("torchmetrics.functional.image", "eval")
            self.exponents = wang_exponents(size)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        fake, real = fake.float(), real.float()
        with torch.autocast(fake.device.type, enabled=False):       # squares of means lose their digits in bf16
            if self.form == "zhao":
                return self.zhao(fake, real)
            return 1 - self.functional.multiscale_structural_similarity_index_measure(
                fake, real, data_range=DATA_RANGE, betas=self.exponents, normalize="relu")


def _import(module: str, extra: str) -> object:
    import importlib
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the MS-SSIM loss needs {module.partition('.')[0]}, which is not installed: pip install "
                        f"'nnunet_synth[{extra}]', or leave it out (--option ms_ssim_weight=0)") from error


def equal_weights(features: Sequence[Tensor]) -> list[float]:
    """γ_k = 1 / K."""
    return [1 / len(features)] * len(features)
