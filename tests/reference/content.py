"""The fine structure of an image, voxel by voxel."""

from __future__ import annotations

from itertools import product

import numpy as np


def fine_structure(image: np.ndarray, cells: tuple[int, ...]) -> np.ndarray:
    between = np.sort(image[(image > image.min()) & (image < image.max())])
    low, high = np.quantile(between, [0.02, 0.98])
    clipped = np.minimum(np.maximum(image.astype(np.float64), low), high)
    means = np.empty(cells)
    for cell in product(*map(range, cells)):
        total = weight = 0.0
        spans = [(index * length / number, (index + 1) * length / number)
                 for index, length, number in zip(cell, image.shape, cells, strict=True)]
        for voxel in product(*(range(int(low), int(np.ceil(high - 1e-9))) for low, high in spans)):
            share = np.prod([max(0.0, min(high, at + 1) - max(low, at))
                             for at, (low, high) in zip(voxel, spans, strict=True)])
            total, weight = total + share * clipped[voxel], weight + share
        means[cell] = total / weight
    structure = np.empty(cells)
    for cell in product(*map(range, cells)):
        around = [means[tuple(np.clip(np.add(cell, step), 0, np.subtract(cells, 1)))]
                  for step in product((-1, 0, 1), repeat=3)]
        structure[cell] = means[cell] - np.mean(around)
    structure -= structure.mean()
    return structure / np.sqrt((structure ** 2).sum())
