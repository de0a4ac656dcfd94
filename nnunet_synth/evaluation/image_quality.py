"""How good are synthetic images? Measures that no training can please by accident.

Segmentability asks whether a lesion is where its label says: an analytic segmenter, two thresholds fitted on real
slices, must find it in the synthetic image, and must fail when the labels are exchanged between images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d, median_filter
from torch import Tensor

from nnunet_synth.evaluation.overlap import dice
from nnunet_synth.evaluation.sharpness import variance_of_laplacian
from nnunet_synth.synthesizers.base import Slices, SliceSource, Synthesizer

NUM_BINS = 128              # of intensity, when the interval is searched
NUM_REAL_SLICES = 64        # on which the segmenter is fitted and tried
NUM_SYNTHETIC_IMAGES = 64


# ----------------------------------------------------------------------------------------------------------------------
# The analytic segmenter


@dataclass(frozen=True)
class ThresholdSegmenter:
    """A label is where the smoothed intensity lies in its interval, inside the layout (or all that is valid).

    Attributes:
        intervals: dataset label → (low, high), both included, in network intensities of the first channel.
        sigma: in pixels, of the Gaussian that follows a 3 × 3 median. It sees the inside only, so that the rim of a
            lung is not blurred into the intensity of a lesion.
    """

    intervals: dict[int, tuple[float, float]]
    sigma: float = 0.8

    @classmethod
    def fit(cls, slices: Iterable[Slices], target_labels: Sequence[int], sigma: float = 0.8) -> ThresholdSegmenter:
        """The interval with the highest Dice over all pixels of the slices, found among all pairs of 128 bins."""
        values, labels = [], []
        for part in slices:
            for image, label, inside in _each(part):
                values.append(_smooth(image, inside, sigma)[inside])
                labels.append(label[inside])
        values, labels = np.concatenate(values), np.concatenate(labels)
        edges = np.linspace(*np.percentile(values, (0.1, 99.9)), NUM_BINS + 1)
        everything = np.histogram(values, edges)[0]
        intervals = {label: _best_interval(np.histogram(values[labels == label], edges)[0], everything, edges,
                                           int((labels == label).sum())) for label in target_labels}
        return cls(intervals, sigma)

    def segment(self, image: np.ndarray, inside: np.ndarray, label: int) -> np.ndarray:
        """bool [H, W] from image [H, W] and where to look [H, W]."""
        low, high = self.intervals[label]
        smooth = _smooth(image, inside, self.sigma)
        return inside & (smooth >= low) & (smooth <= high)


def _best_interval(hits: np.ndarray, everything: np.ndarray, edges: np.ndarray, total: int) -> tuple[float, float]:
    """Bins i ≤ j that maximise 2·|hits in i…j| / (|everything in i…j| + total), the widest of equally good ones.

    The outermost bins are open: nothing real lies beyond them, so nothing speaks against it.
    """
    hits_below, all_below = (np.concatenate([[0], np.cumsum(counts)]) for counts in (hits, everything))
    first, last = np.triu_indices(len(hits))
    chosen = all_below[last + 1] - all_below[first]
    scores = 2 * (hits_below[last + 1] - hits_below[first]) / np.maximum(chosen + total, 1)
    best = np.flatnonzero(scores == scores.max())
    widest = best[np.argmax(last[best] - first[best])]
    bounds = np.concatenate([[-np.inf], edges[1:-1], [np.inf]])
    return float(bounds[first[widest]]), float(bounds[last[widest] + 1])


def _smooth(image: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    """Median (noise, thin vessels), then a Gaussian mean over the pixels inside only."""
    if not inside.any():
        return image
    calm = median_filter(np.where(inside, image, np.median(image[inside])), 3)
    weight = gaussian_filter(inside.astype(np.float32), sigma)
    return gaussian_filter(np.where(inside, calm, 0).astype(np.float32), sigma) / np.maximum(weight, 1e-6)


def _each(slices: Slices) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(first channel, label, where to look) of each slice of a batch."""
    for image, label, layout, valid in zip(slices.image, slices.label, slices.layout, slices.valid, strict=True):
        inside = valid & (layout > 0) if bool((layout > 0).any()) else valid
        yield image[0].float().cpu().numpy(), label.cpu().numpy(), inside.cpu().numpy()


# ----------------------------------------------------------------------------------------------------------------------
# Segmentability


def segmentability(segmenter: ThresholdSegmenter, real: Iterable[Slices],
                   synthetic: Iterable[Slices]) -> dict[str, float]:
    """Does the segmenter find the requested lesions?

    Args:
        real: slices with their true images and labels.
        synthetic: slices whose images were drawn for their labels.

    Returns:
        Mean Dice over images and labels present: `dice_real`, `dice_synthetic`, `dice_permuted` (the control: each
        synthetic image against the label of the next one), and `ratio` = synthetic / real. NaN where nothing is there
        to be found, or only one image for the control.
    """
    dice_real, _ = _dice(segmenter, real)
    dice_synthetic, dice_permuted = _dice(segmenter, synthetic)
    return {"dice_real": dice_real, "dice_synthetic": dice_synthetic, "dice_permuted": dice_permuted,
            "ratio": dice_synthetic / dice_real if dice_real > 0 else float("nan")}


def _dice(segmenter: ThresholdSegmenter, slices: Iterable[Slices]) -> tuple[float, float]:
    """Mean Dice against the own label, and against the next image's label of the same size."""
    own, exchanged = [], []
    found = [(segmenter.segment(image, inside, value), label == value, value)
             for part in slices for image, label, inside in _each(part)
             for value in segmenter.intervals if (label == value).any()]
    for number, (prediction, truth, value) in enumerate(found):
        own.append(dice(prediction, truth))
        others = [other for other in found[number + 1:] + found[:number]
                  if other[2] == value and other[1].shape == truth.shape]
        if others:
            exchanged.append(dice(prediction, others[0][1]))
    return _mean(own), _mean(exchanged)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


# ----------------------------------------------------------------------------------------------------------------------
# Intensities


def lesion_histogram_kl(real: np.ndarray, synthetic: np.ndarray, num_bins: int = 64,
                        pseudo_count: float = 0.5) -> float:
    """KL(real ‖ synthetic) of the intensities inside lesions, in nats; 0 = the same histogram.

    Equal bins between the 0.1 and 99.9 percentiles of both together, outer values in the outer bins; the histograms are
    smoothed with a Gaussian of one bin, and half a count is added to every bin, so that an empty bin costs much but not
    infinitely much.
    """
    low, high = np.percentile(np.concatenate([real, synthetic]), (0.1, 99.9))
    if not low < high:
        return 0.0
    edges = np.linspace(low, high, num_bins + 1)

    def density(values: np.ndarray) -> np.ndarray:
        counts = np.histogram(np.clip(values, low, high), edges)[0].astype(float)
        smooth = gaussian_filter1d(counts, 1.0, mode="reflect") + pseudo_count
        return smooth / smooth.sum()

    p, q = density(real), density(synthetic)
    return float((p * np.log(p / q)).sum())


# ----------------------------------------------------------------------------------------------------------------------
# All of it, for one synthesizer


def measure_synthesizer(synthesizer: Synthesizer, slices: SliceSource, seed: int = 0,
                        num_images: int = NUM_SYNTHETIC_IMAGES, batch_size: int = 8) -> dict[str, float]:
    """Draw images for augmented training labels in pool styles and compare them with the training slices.

    Returns:
        Segmentability (see there), `lesion_intensity_kl`, `sharpness_ratio` (variance of the Laplacian, synthetic /
        real) and `drawable` (the share of requests that could be drawn).
    """
    synthesizer.fit_pool(slices)
    targets = synthesizer.meta.target_labels
    segmenter = ThresholdSegmenter.fit(slices.iterate(True, NUM_REAL_SLICES), targets)
    real, synthetic, drawable = [], [], 0
    for part, drawn, ok in draw_for_labels(synthesizer, slices, num_images, batch_size, seed):
        drawable += int(ok.sum())
        real.append(part)
        synthetic.append(replace(part, image=drawn))

    def lesions(parts: list[Slices]) -> np.ndarray:
        inside = [torch.isin(part.label, torch.tensor(targets)) & part.valid for part in parts]
        return np.concatenate([part.image[:, 0][mask].numpy() for part, mask in zip(parts, inside, strict=True)])

    def sharpness(parts: list[Slices]) -> float:
        return float(torch.cat([variance_of_laplacian(part.image, part.valid) for part in parts]).mean())

    return {**segmentability(segmenter, slices.iterate(True, NUM_REAL_SLICES), synthetic),
            "lesion_intensity_kl": lesion_histogram_kl(lesions(real), lesions(synthetic)),
            "sharpness_ratio": sharpness(synthetic) / sharpness(real), "drawable": drawable / num_images}


def draw_for_labels(synthesizer: Synthesizer, slices: SliceSource, num_images: int, batch_size: int,
                    seed: int) -> Iterable[tuple[Slices, Tensor, Tensor]]:
    """(augmented training crops, images drawn for their labels, ok) batch by batch, on the CPU.

    The pool must have been fitted. Only the labels, layouts and valid areas shape the images; the real images serve
    classes without any style in the pool, and stand where nothing was scanned.
    """
    device = next(synthesizer.parameters()).device
    rng = np.random.default_rng([seed, 17])
    generator = torch.Generator(device).manual_seed(seed)
    patch_size = tuple(synthesizer.meta.patch_size)
    for start in range(0, num_images, batch_size):
        part = slices.sample(min(batch_size, num_images - start), patch_size, rng)
        here = part.to(device)
        synthesizer.begin_step(generator)
        result = synthesizer.synthesize(here.request(generator))
        yield part, result.image.cpu(), result.ok.cpu()
