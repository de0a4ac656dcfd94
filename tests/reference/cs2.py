"""CS2 (Xing et al., MICCAI 2022) in plain NumPy, pixel by pixel: slow, obvious, written from the paper.

Where the paper is silent (batch norm, tanh, sizes) the published architecture stands in `synthesizers.md` §3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def refined(labels: np.ndarray, superpixels: np.ndarray) -> np.ndarray:
    """§2.1: C′, all pixels of a superpixel m get the class that appears most in C^(m); the lowest of equals."""
    answer = np.zeros_like(labels)
    for m in np.unique(superpixels):
        counts = Counter(labels[superpixels == m].tolist())
        most = max(counts.values())
        answer[superpixels == m] = min(label for label, number in counts.items() if number == most)
    return answer


def mean_assignment(image: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """§2.1: every pixel of [H, W] gets the mean of its cluster."""
    answer = np.zeros(image.shape)
    for cluster in np.unique(clusters):
        inside = clusters == cluster
        answer[inside] = sum(image[inside].tolist()) / inside.sum()
    return answer


def mean_and_deviation(channel: np.ndarray, epsilon: float = 1e-5) -> tuple[float, float]:
    """Of the pixels of [H, W], with the unbiased variance (the released code's)."""
    values = channel.ravel().tolist()
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, (variance + epsilon) ** 0.5


def adain(content: np.ndarray, style: np.ndarray) -> np.ndarray:
    """Huang and Belongie, Eq. 8: every channel of [C, H, W] gets the mean and deviation of the style's channel, or of
    its only one."""
    answer = np.zeros_like(content)
    for number, channel in enumerate(content):
        mean, deviation = mean_and_deviation(channel)
        wanted_mean, wanted_deviation = mean_and_deviation(style[number if len(style) > 1 else 0])
        answer[number] = wanted_deviation * (channel - mean) / deviation + wanted_mean
    return answer


def convolved_1x1(features: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[C, H, W] → [1, H, W]."""
    return sum(w * channel for w, channel in zip(weight.ravel(), features, strict=True))[None] + bias.item()


def upsampled(features: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest: [C, h, w] → [C, H, W]."""
    down, right = size[0] // features.shape[1], size[1] // features.shape[2]
    return features.repeat(down, axis=1).repeat(right, axis=2)


def classifier_logits(weights: dict[str, np.ndarray], features: Sequence[np.ndarray]) -> np.ndarray:
    """§2.3, one MLP on all features of a pixel at the size of the image: [H, W, outputs].

    Args:
        weights: as `PixelClassifier` names them; its first layer is cut into one part a map.
        features: [C, h, w] each, not squashed, the last one of the size of the image.
    """
    size = features[-1].shape[1:]
    everything = np.concatenate([upsampled(np.tanh(part), size) for part in features])
    first = np.concatenate([weights[f"first.{number}.weight"][:, :, 0, 0] for number in range(len(features))], axis=1)

    def relu_norm(x: np.ndarray, name: str) -> np.ndarray:
        x = np.maximum(x, 0)
        x = (x - weights[f"{name}.running_mean"]) / np.sqrt(weights[f"{name}.running_var"] + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    logits = np.zeros((*size, len(weights["rest.5.bias"])))
    for row in range(size[0]):
        for column in range(size[1]):
            x = relu_norm(first @ everything[:, row, column] + weights["bias"], "rest.1")
            x = relu_norm(weights["rest.2.weight"] @ x + weights["rest.2.bias"], "rest.4")
            logits[row, column] = weights["rest.5.weight"] @ x + weights["rest.5.bias"]
    return logits


def majority(votes: Sequence[int]) -> int:
    """§2.3: the label that most classifiers see; the lowest of equals."""
    counts = {label: 0 for label in votes}
    for label in votes:
        counts[label] += 1
    return min(label for label in counts if counts[label] == max(counts.values()))
