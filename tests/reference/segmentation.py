"""DSC, NSD and HD95 as DeepMind's surface-distance defines them, written as loops over the voxels.

The lengths of the 2D elements are written out by hand; the areas of the 3D elements are DeepMind's published table,
which MONAI ships (Apache-2.0).
"""

import itertools
import math

import numpy as np


def dice(prediction, truth):
    overlap = size = 0
    for p, t in zip(prediction.ravel(), truth.ravel(), strict=True):
        overlap += bool(p) and bool(t)
        size += bool(p) + bool(t)
    return 2 * overlap / size


def surface_elements(mask, spacing):
    """Positions [N, dims] in mm and areas [N] of the elements at the corners of the voxel grid."""
    area_of = _contour_length_2d if mask.ndim == 2 else _surface_area_3d
    positions, areas = [], []
    for corner in itertools.product(*(range(-1, length) for length in mask.shape)):
        bits = []
        for offset in itertools.product((0, 1), repeat=mask.ndim):
            voxel = tuple(c + o for c, o in zip(corner, offset, strict=True))
            inside = all(0 <= v < length for v, length in zip(voxel, mask.shape, strict=True))
            bits.append(int(inside and mask[voxel]))
        if 0 < sum(bits) < len(bits):
            positions.append([(c + 0.5) * step for c, step in zip(corner, spacing, strict=True)])
            areas.append(area_of(bits, spacing))
    return np.array(positions), np.array(areas)


def _contour_length_2d(bits, spacing):
    row, column = spacing
    slanted = math.sqrt((row / 2) ** 2 + (column / 2) ** 2)
    return {(0, 0, 0, 1): slanted, (0, 0, 1, 0): slanted, (0, 1, 0, 0): slanted, (1, 0, 0, 0): slanted,
            (1, 1, 1, 0): slanted, (1, 1, 0, 1): slanted, (1, 0, 1, 1): slanted, (0, 1, 1, 1): slanted,
            (0, 0, 1, 1): column, (1, 1, 0, 0): column, (0, 1, 0, 1): row, (1, 0, 1, 0): row,
            (0, 1, 1, 0): 2 * slanted, (1, 0, 0, 1): 2 * slanted}[tuple(bits)]


def _surface_area_3d(bits, spacing):
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area
    code = int("".join(map(str, bits)), 2)
    table, _ = create_table_neighbour_code_to_surface_area(spacing)
    return float(table[code])


def nearest_distances(positions, others):
    return np.array([min(math.dist(position, other) for other in others) for position in positions])


def surface_dice(prediction, truth, spacing, tolerance):
    (p, area_p), (t, area_t) = surface_elements(prediction, spacing), surface_elements(truth, spacing)
    near = sum(area for area, distance in zip(area_p, nearest_distances(p, t), strict=True) if distance <= tolerance)
    near += sum(area for area, distance in zip(area_t, nearest_distances(t, p), strict=True) if distance <= tolerance)
    return near / (sum(area_p) + sum(area_t))


def hausdorff(prediction, truth, spacing, percent):
    (p, area_p), (t, area_t) = surface_elements(prediction, spacing), surface_elements(truth, spacing)
    worst = []
    for distances, areas in ((nearest_distances(p, t), area_p), (nearest_distances(t, p), area_t)):
        covered = 0.0
        for index in np.argsort(distances, kind="stable"):
            covered += areas[index]
            if covered >= percent / 100 * areas.sum() - 1e-9:
                worst.append(distances[index])
                break
    return max(worst)
