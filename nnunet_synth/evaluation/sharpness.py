"""How sharp is an image? Two measures that need no reference: LcGAN's blurriness in both forms its paper names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HIGH_FREQUENCY = 0.25       # cycles a pixel, half of the highest that an image can hold


def variance_of_laplacian(image: Tensor, valid: Tensor | None = None) -> Tensor:
    """Sharpness of each image [N, C, H, W] → [N] float64: the variance of the five-point Laplacian, borders repeated.

    Where `valid` [N, H, W] is False, nothing was scanned: what stands there has no say, and the border of the scan is
    repeated as that of an image is. Else this edge, the same in every set, would decide.

    In squared units of the image. LcGAN's choice for "blurriness" (Mangalagiri et al., "Blurriness"; the kernel is that
    of `scipy.ndimage.laplace`). Noise raises it too: read it beside a noise level.
    """
    image = image.double()
    inside = torch.ones_like(image[:, :1]) if valid is None else valid[:, None].to(image.dtype)
    padded, scanned = F.pad(image, (1, 1, 1, 1)), F.pad(inside, (1, 1, 1, 1))
    laplacian = torch.zeros_like(image)
    for rows, columns in ((slice(2, None), slice(1, -1)), (slice(-2), slice(1, -1)),
                          (slice(1, -1), slice(2, None)), (slice(1, -1), slice(-2))):
        laplacian += (padded[..., rows, columns] - image) * scanned[..., rows, columns]
    weight = inside.expand_as(image)
    number = weight.sum((1, 2, 3), keepdim=True).clamp_min(1)
    mean = (laplacian * weight).sum((1, 2, 3), keepdim=True) / number
    return ((laplacian - mean).square() * weight).sum((1, 2, 3)) / number.flatten()


def high_frequency_share(image: Tensor, above: float = HIGH_FREQUENCY) -> Tensor:
    """The share of an image's spectral amplitude that lies at high frequencies: [N, C, H, W] → [N] float64 in 0…1.

    The Fourier form of blurriness, of which the LcGAN paper says only that blurry images lack high frequencies and that
    a mean over the frequency domain tells so. A plain mean grows with the contrast of the image; a share of the whole
    amplitude (its mean, the constant part, left out) does not. 0 for a constant image.

    A Hann window fades the borders out: the jump from one border to the opposite one, which the Fourier transform sees
    as an edge, would otherwise add high frequencies to every image.

    Args:
        above: in cycles a pixel; frequencies beyond this radius are called high (0.5 is the highest along an axis).
    """
    image = image.double()
    height, width = image.shape[-2:]
    fade = torch.outer(torch.hann_window(height, periodic=False, dtype=image.dtype, device=image.device),
                       torch.hann_window(width, periodic=False, dtype=image.dtype, device=image.device))
    centred = image - (image * fade).sum((-2, -1), keepdim=True) / fade.sum()
    amplitude = torch.fft.fft2(centred * fade).abs()
    vertical, horizontal = (torch.fft.fftfreq(length, dtype=image.dtype, device=image.device)
                            for length in (height, width))
    is_high = torch.hypot(*torch.meshgrid(vertical, horizontal, indexing="ij")) > above
    whole = amplitude.sum((1, 2, 3))
    is_constant = whole <= 1e-9 * (image.abs() * fade).sum((1, 2, 3))       # but for rounding
    return torch.where(is_constant, 0.0, (amplitude * is_high).sum((1, 2, 3)) / whole)
