"""The average image of a set, and its size as a lossless JPEG: the blurrier the average, the more varied the images.

The measure is ImageNet's (Deng et al., CVPR 2009), UM2I's Table IV. Noise that does not average out enlarges the file,
so it has to be read beside the noise level.
"""

from __future__ import annotations

import numpy as np

from nnunet_synth.quality.image_set import ImageSet
from nnunet_synth.quality.window import Window

CODEC = "lossless JPEG (ITU-T T.81, process 14; libjpeg-turbo)"
BATCH_SIZE = 64


def average_image(images: ImageSet, window: Window) -> np.ndarray:
    """uint8 [H, W], or [H, W, 3] of colour images: the mean of all, 0 … 255 for the window.

    Intensities are cut off at the window before they are averaged, and the sums are float64.
    """
    total = np.zeros(images.shape)
    for part in images.batches(BATCH_SIZE):
        total += np.clip(images.images[part], window.low, window.high).sum(0, dtype=np.float64)
    return as_picture(window.to_gray(total / len(images)))


def as_picture(gray: np.ndarray) -> np.ndarray:
    """uint8 [C, H, W] → [H, W, 3] for three channels, else the first one, [H, W]."""
    return np.moveaxis(gray, 0, -1) if len(gray) == 3 else gray[0]


def lossless_jpeg_size(picture: np.ndarray) -> int:
    """Bytes of uint8 [H, W] or [H, W, 3] as CODEC writes it."""
    import imagecodecs
    return len(imagecodecs.jpeg8_encode(np.ascontiguousarray(picture), lossless=True))
