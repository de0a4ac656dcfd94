"""SLIC (Achanta et al., TPAMI 2012, Algorithm 1 and Eq. 1–3) on a grid, and UM2I's Algorithm 1, pixel by pixel."""

import math

import numpy as np


def slic(image: np.ndarray, rows: int, columns: int, compactness: float, num_iterations: int,
         valid: np.ndarray | None = None) -> np.ndarray:
    """Ids [H, W] of an image [C, H, W].

    Cells are `rows` × `columns` rectangles; a centre starts as the mean of its cell. In each iteration but the last,
    every s-th pixel in both directions finds its nearest centre among the nine of the cells around it, and the centres
    move to the mean of their pixels; the last assigns all pixels. In iteration i the pattern starts at pixel
    (i mod s_y, (i mod s_y + i div s_y) mod s_x) of each cell. Pixels that are not valid pull at no centre.
    """
    num_channels, height, width = image.shape
    cell_height, cell_width = math.ceil(height / rows), math.ceil(width / columns)
    step_y, step_x = min(max(1, cell_height // 5), 4), min(max(1, cell_width // 5), 4)
    area = cell_height * cell_width
    valid = np.ones((height, width), bool) if valid is None else valid

    members = {(i, j): [] for i in range(rows) for j in range(columns)}
    for y, x in np.argwhere(valid):
        members[y // cell_height, x // cell_width].append((y, x))
    middle = {(i, j): ((i + 0.5) * cell_height - 0.5, (j + 0.5) * cell_width - 0.5) for i, j in members}
    centres = {cell: _mean(image, pixels) if pixels else (np.array(middle[cell]), np.zeros(num_channels))
               for cell, pixels in members.items()}

    def nearest(y: int, x: int) -> tuple[int, int]:
        best, chosen = math.inf, None
        for i in range(y // cell_height - 1, y // cell_height + 2):
            for j in range(x // cell_width - 1, x // cell_width + 2):
                if (i, j) not in centres:
                    continue
                position, colour = centres[i, j]
                d_c = sum((image[c, y, x] - colour[c]) ** 2 for c in range(num_channels)) / num_channels
                d_s = (y - position[0]) ** 2 + (x - position[1]) ** 2
                distance = d_c + d_s / area * compactness ** 2
                if distance < best:
                    best, chosen = distance, (i, j)
        return chosen

    for iteration in range(num_iterations - 1):
        part = iteration % (step_y * step_x)
        start_y, start_x = part % step_y, (part % step_y + part // step_y) % step_x
        members = {cell: [] for cell in centres}
        for y, x in np.argwhere(valid):
            if y % cell_height % step_y == start_y and x % cell_width % step_x == start_x:
                members[nearest(y, x)].append((y, x))
        centres = {cell: _mean(image, pixels) if pixels else centres[cell] for cell, pixels in members.items()}

    ids = np.zeros((height, width), np.int64)
    for y, x in np.ndindex(height, width):
        i, j = nearest(y, x)
        ids[y, x] = i * columns + j
    return ids


def _mean(image: np.ndarray, pixels: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.mean(pixels, axis=0), np.mean([image[:, y, x] for y, x in pixels], axis=0)


def unsupervised_mask(image: np.ndarray, segments: np.ndarray, step: int) -> np.ndarray:
    """Algorithm 1 on whole gray values [H, W] from 0 to 255: H = int(mean / t) · t, in whole numbers."""
    mask = np.zeros(image.shape, np.int64)
    for m in np.unique(segments):
        inside = segments == m
        total, count = int(image[inside].astype(np.int64).sum()), int(inside.sum())
        mask[inside] = total // (count * step) * step
    return mask


def under_segmentation_error(segments: np.ndarray, reference: np.ndarray) -> float:
    """Neubert and Protzel 2012: of each superpixel that touches a region, the smaller part, inside or outside of it."""
    leaking = 0
    for region in np.unique(reference):
        for segment in np.unique(segments[reference == region]):
            inside = int(((segments == segment) & (reference == region)).sum())
            outside = int(((segments == segment) & (reference != region)).sum())
            leaking += min(inside, outside)
    return leaking / segments.size
