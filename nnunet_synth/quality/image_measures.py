"""What each image of a set tells by itself: sharpness, noise, and how well superpixels keep to its lesions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from nnunet_synth.evaluation.sharpness import high_frequency_share, variance_of_laplacian
from nnunet_synth.progress import progress
from nnunet_synth.quality.image_set import ImageSet
from nnunet_synth.quality.noise import noise_level_bm3d, noise_level_nlm
from nnunet_synth.quality.window import Window
from nnunet_synth.superpixels import slic, under_segmentation_error

BATCH_SIZE = 16
NUM_SUPERPIXELS = 512   # of an image, whatever its size, as long as each has MIN_PIXELS
MIN_PIXELS = 16
NUM_PROBED = 32         # images of a set whose noise and superpixels are measured: both take seconds an image

# measure → what tables and axes call it; intensities are shares of the window, images with several channels averaged.
HEADINGS = {
    "variance_of_laplacian": "variance of the Laplacian",
    "high_frequency_share": "high-frequency share",
    "noise_nlm": "noise (NLM)",
    "noise_bm3d": "noise (BM3D, first stage)",
    "under_segmentation": "under-segmentation error",
}


@dataclass(frozen=True)
class ImageMeasures:
    """measure → its value for each image that it was taken of (all for sharpness, NUM_PROBED for the others)."""

    values: dict[str, np.ndarray] = field(default_factory=dict)

    def mean(self, measure: str) -> float:
        return float(self.values[measure].mean()) if len(self.values[measure]) else float("nan")

    def deviation(self, measure: str) -> float:
        """Over the images, with n − 1."""
        return float(self.values[measure].std(ddof=1)) if len(self.values[measure]) > 1 else float("nan")


def measure_images(images: ImageSet, window: Window, num_probed: int = NUM_PROBED) -> ImageMeasures:
    """All measures of a set, on intensities cut off at the window, which real and synthetic images then share."""
    sharpness = [_sharpness(window.to_unit(torch.tensor(images.images[part]))) for part in images.batches(BATCH_SIZE)]
    values = {name: np.concatenate([of_batch[name] for of_batch in sharpness]) for name in sharpness[0]}
    noise = {"noise_nlm": noise_level_nlm, "noise_bm3d": noise_level_bm3d}
    levels: dict[str, list[float]] = {name: [] for name in noise}
    for index in progress(_evenly(len(images), num_probed), f"noise of {images.name}"):
        channels = window.to_unit(torch.tensor(images.images[index])).numpy()
        for name, level in noise.items():
            levels[name].append(float(np.mean([level(channel) for channel in channels])))
    values |= {name: np.array(found) for name, found in levels.items()}
    values["under_segmentation"] = _under_segmentation(images, window, num_probed)
    return ImageMeasures(values)


def _sharpness(unit: torch.Tensor) -> dict[str, np.ndarray]:
    return {"variance_of_laplacian": variance_of_laplacian(unit).numpy(),
            "high_frequency_share": high_frequency_share(unit).numpy()}


def _under_segmentation(images: ImageSet, window: Window, num_probed: int) -> np.ndarray:
    """Of the superpixels that unsupervised masks (UM2I) are made from, against the lesions; of images with lesions."""
    if images.labels is None:
        return np.array([])
    with_lesions = [index for index in range(len(images)) if images.labels[index].any()]
    errors = []
    for place in _evenly(len(with_lesions), num_probed):
        index = with_lesions[place]
        unit = window.to_unit(torch.tensor(images.images[index:index + 1]))
        segments = slic(unit, min(NUM_SUPERPIXELS, unit[0, 0].numel() // MIN_PIXELS))
        errors.append(under_segmentation_error(segments, torch.tensor(images.labels[index:index + 1]).long()).item())
    return np.array(errors)


def _evenly(length: int, at_most: int) -> list[int]:
    if at_most >= length:
        return list(range(length))
    return np.linspace(0, length - 1, at_most).round().astype(int).tolist()
