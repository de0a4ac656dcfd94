"""Lesion-wise F1, written as a flood fill over the voxels."""

import itertools
import math


def components(mask):
    """Sets of voxels that touch at faces, edges or corners."""
    left = {tuple(voxel) for voxel in zip(*mask.nonzero(), strict=True)}
    found = []
    while left:
        component, edge = set(), [left.pop()]
        while edge:
            voxel = edge.pop()
            component.add(voxel)
            for step in itertools.product((-1, 0, 1), repeat=mask.ndim):
                neighbour = tuple(v + s for v, s in zip(voxel, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    edge.append(neighbour)
        found.append(component)
    return found


def large_components(mask, spacing, min_volume):
    return [component for component in components(mask) if len(component) * math.prod(spacing) >= min_volume - 1e-9]


def num_covered(lesions, others, min_overlap):
    other_voxels = set().union(*others)
    return sum(len(lesion & other_voxels) >= min_overlap * len(lesion) - 1e-9 for lesion in lesions)


def lesion_f1(prediction, truth, spacing, min_overlap, min_volume):
    true, predicted = (large_components(mask, spacing, min_volume) for mask in (truth, prediction))
    if not true and not predicted:
        return math.nan
    if not true or not predicted:
        return 0.0
    recall = num_covered(true, predicted, min_overlap) / len(true)
    precision = num_covered(predicted, true, min_overlap) / len(predicted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
