"""CoSinGAN's mixed reconstruction loss (Eq. 6) put together: its terms, weighted, for images of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunet_synth.bounds import WEIGHT, Settings, bounded, choice
from nnunet_synth.errors import UserError
from nnunet_synth.losses.mixed_reconstruction import MultiScaleSSIMLoss, equal_weights, weighted_pixel_loss
from nnunet_synth.losses.reconstruction import perceptual_loss
from nnunet_synth.synthesizers.feature_set import FeatureSet
from nnunet_synth.synthesizers.semantic import SemanticClasses


@dataclass(frozen=True)
class MixedWeights(Settings):
    """What configurations with a mixed loss have in common; the defaults are CoSinGAN's (Eq. 6, 7)."""

    pixel_weight: float = bounded(10.0, WEIGHT)                  # λ_WPPL
    class_weights: tuple[float, ...] = bounded((0.1, 0.5, 1.0), WEIGHT)  # M of background, anatomy, labels
    ms_ssim_weight: float = bounded(1.0, WEIGHT)                 # λ_MS-SSIM
    ms_ssim: str = choice(*MultiScaleSSIMLoss.FORMS)            # | wang
    classification_weight: float = bounded(10.0, WEIGHT)         # λ_MS-FVL: features of VGG19, where they are at hand
    # Λ_MS-FUL: features of the fold's own nnU-Net, where they are at hand.
    segmentation_weight: float = bounded(10.0, WEIGHT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.class_weights) != 3:
            raise UserError("class_weights are three numbers: of the background, of the anatomy, of the labels")


class MixedReconstruction(nn.Module):
    """ℓ_rec = λ_WPPL ℓ_WPPL + λ_MS-SSIM ℓ_MS-SSIM + λ_MS-FVL ℓ_MS-FVL + λ_MS-FUL ℓ_MS-FUL, term by term.

    Args:
        class_weights: M of every semantic class, see `weights_of_classes`.
        size: of the shorter side of the images, pixels.
    """

    def __init__(self, weights: MixedWeights, class_weights: Sequence[float], size: int, features: FeatureSet) -> None:
        super().__init__()
        self.weights, self.features = weights, features
        self.register_buffer("class_weights", torch.tensor(class_weights, dtype=torch.float32), persistent=False)
        self.structure = MultiScaleSSIMLoss(size, weights.ms_ssim) if weights.ms_ssim_weight > 0 else None

    def forward(self, fake: Tensor, real: Tensor, semantic: Tensor) -> dict[str, Tensor]:
        """Images [N, C, H, W] in [−1, 1] and classes [N, H, W] int64 → weighted terms by name."""
        weights, features = self.weights, self.features
        terms = {"pixels": weights.pixel_weight * weighted_pixel_loss(fake, real, semantic, self.class_weights)}
        if self.structure is not None:
            terms["ms_ssim"] = weights.ms_ssim_weight * self.structure(fake, real)
        if features.classification is not None and weights.classification_weight > 0:
            terms["ms_fvl"] = weights.classification_weight * perceptual_loss(features.classification(real),
                                                                              features.classification(fake))
        if features.segmentation is not None and weights.segmentation_weight > 0:
            taps = features.segmentation(real)
            terms["ms_ful"] = weights.segmentation_weight * perceptual_loss(taps, features.segmentation(fake),
                                                                            equal_weights(taps))
        return terms


def weights_of_classes(semantic: SemanticClasses, class_weights: tuple[float, float, float]) -> list[float]:
    """M of every class from those of the background, of anatomy, and of labels."""
    of_background, of_anatomy, of_labels = class_weights
    labels = set(semantic.label_classes.values())
    return [of_background, *(of_labels if number in labels else of_anatomy for number in range(1, len(semantic)))]
