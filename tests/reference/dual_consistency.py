"""UDC as docs/methods.md has it: uncertainty by decomposition, and squared differences weighted by exp(−u)."""

import math

import numpy as np


def entropy(p: np.ndarray) -> float:
    """Of one pixel's probabilities."""
    return -sum(value * math.log(value) for value in p)


def uncertainties(predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[K, B, C, H, W] → epistemic and aleatoric, [B, H, W] each."""
    num_samples, height, width = predictions.shape[1], *predictions.shape[3:]
    epistemic, aleatoric = np.zeros((2, num_samples, height, width))
    for b, y, x in np.ndindex(num_samples, height, width):
        each = [prediction[b, :, y, x] for prediction in predictions]
        aleatoric[b, y, x] = sum(entropy(p) for p in each) / len(each)
        epistemic[b, y, x] = entropy(sum(each) / len(each)) - aleatoric[b, y, x]
    return epistemic, aleatoric


def weighted_difference(p: np.ndarray, q: np.ndarray, weight: np.ndarray) -> float:
    """Mean over all values of w (p − q)²."""
    total = 0.0
    for b, c, y, x in np.ndindex(*p.shape):
        total += weight[b, y, x] * (p[b, c, y, x] - q[b, c, y, x]) ** 2
    return total / p.size


def unlabelled_loss(main, transformed, auxiliary, transform) -> float:
    """L_T + L_F for f(x), f(T x), the f_k(z̃_k) and T of an array [B, …, H, W]."""
    epistemic, aleatoric = uncertainties(np.stack([main, *auxiliary]))
    weight = np.exp(-(epistemic + aleatoric))
    transformation = weighted_difference(transformed, transform(main), transform(weight))
    return transformation + sum(weighted_difference(answer, main, weight) for answer in auxiliary) / len(auxiliary)
