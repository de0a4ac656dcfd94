"""The hard-thresholding stage of BM3D (Dabov et al. 2007, Section III.B), one reference block after another."""

import numpy as np


def denoise_bm3d(image: np.ndarray, sigma: float, block: int, group: int, search: int, step: int,
                 threshold: float) -> np.ndarray:
    height, width = image.shape
    total, weights = np.zeros((height, width)), np.zeros((height, width))
    for row in starts(height, block, step):
        for column in starts(width, block, step):
            here = image[row:row + block, column:column + block]
            found = []
            for y in range(max(row - search, 0), min(row + search, height - block) + 1):
                for x in range(max(column - search, 0), min(column + search, width - block) + 1):
                    distance = ((here - image[y:y + block, x:x + block]) ** 2).mean()
                    found.append((-1 if (y, x) == (row, column) else distance, y, x))
            places = [(y, x) for _, y, x in sorted(found)[:group]]
            spectrum = haar([cosines(image[y:y + block, x:x + block]) for y, x in places])
            kept = [np.where(np.abs(plane) >= threshold * sigma, plane, 0) for plane in spectrum]
            weight = 1 / max(sum(int((plane != 0).sum()) for plane in kept), 1)
            for (y, x), plane in zip(places, haar(kept, backward=True), strict=True):
                total[y:y + block, x:x + block] += weight * cosines(plane, backward=True)
                weights[y:y + block, x:x + block] += weight
    return total / weights


def starts(length: int, block: int, step: int) -> list[int]:
    return sorted({*range(0, length - block + 1, step), length - block})


def cosines(plane: np.ndarray, backward: bool = False) -> np.ndarray:
    """The orthonormal DCT of a square, by its definition."""
    size = len(plane)
    basis = np.array([[np.sqrt((1 if k == 0 else 2) / size) * np.cos(np.pi * (n + 0.5) * k / size)
                       for n in range(size)] for k in range(size)])
    return basis.T @ plane @ basis if backward else basis @ plane @ basis.T


def haar(planes: list[np.ndarray], backward: bool = False) -> list[np.ndarray]:
    """Along the list: sums first, then differences, again and again on the sums."""
    if len(planes) == 1:
        return list(planes)
    half = len(planes) // 2
    if backward:
        sums, differences = haar(planes[:half], backward=True), planes[half:]
        return [plane for a, b in zip(sums, differences, strict=True)
                for plane in ((a + b) / np.sqrt(2), (a - b) / np.sqrt(2))]
    sums = [(a + b) / np.sqrt(2) for a, b in zip(planes[::2], planes[1::2], strict=True)]
    return haar(sums) + [(a - b) / np.sqrt(2) for a, b in zip(planes[::2], planes[1::2], strict=True)]
