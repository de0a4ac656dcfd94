"""Intensities of whole images and of lesions, as histograms and as a divergence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunet_synth.quality.image_set import ImageSet
from nnunet_synth.quality.window import Window

NUM_BINS = 80
BATCH_SIZE = 16
MAX_VALUES = 2_000_000      # lesion pixels of a set that are kept


def intensity_histogram(images: ImageSet, edges: np.ndarray) -> np.ndarray:
    """The share of the pixels (first channel) in each bin; what lies outside counts in the outermost."""
    counts = np.zeros(len(edges) - 1)
    for part in images.batches(BATCH_SIZE):
        counts += np.histogram(np.clip(images.images[part, 0], edges[0], edges[-1]), edges)[0]
    return counts / counts.sum()


def lesion_values(images: ImageSet, seed: int = 0) -> np.ndarray:
    """Intensities of lesion pixels (first channel), in the unit of the files; of very many, a random part."""
    if images.labels is None:
        return np.array([], np.float32)
    total = sum(int((images.labels[part] > 0).sum()) for part in images.batches(BATCH_SIZE))
    share = min(1.0, MAX_VALUES / max(total, 1))
    rng = np.random.default_rng([seed, 3])
    found = []
    for part in images.batches(BATCH_SIZE):
        values = images.images[part, 0][images.labels[part] > 0]
        found.append(values[rng.random(len(values)) < share] if share < 1 else values)
    return np.concatenate(found)


def histogram_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Shares of the values in each bin; what lies outside counts in the outermost."""
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return counts / max(counts.sum(), 1)


def window_edges(window: Window) -> np.ndarray:
    return np.linspace(window.low, window.high, NUM_BINS + 1)


def lesion_edges(values: Sequence[np.ndarray]) -> np.ndarray:
    """Equal bins over nearly all lesion intensities of all sets."""
    together = np.concatenate(list(values))
    low, high = np.percentile(together, (0.1, 99.9))
    return np.linspace(low, max(high, low + 1e-6), NUM_BINS + 1)
