"""nnU-Net's spatial augmentation for a whole batch at once, on the device where the batch is.

A loader worker has cut out more than the network will see; here each patch is rotated and scaled about its centre, or
merely cropped, and mirrored. Probabilities, parameters and interpolation are those of `SpatialTransform` and
`MirrorTransform` of batchgeneratorsv2 (0.3.6) as `nnUNetTrainer.get_training_transforms` (nnU-Net 2.8.1) sets them; a
test reads them off there. Coordinates are made without a matrix product: inside a trainer's autocast region that would
silently run in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

OUTSIDE = -1                # nnU-Net's label of what is no part of the scan
PROBABILITY = 0.2           # of a rotation, and independently of a change of scale
SCALING = (0.7, 1.4)        # above 1, things become smaller
SCORE = 1000                # batchgeneratorsv2's scores are rounded to float16 at this scale: nearly equal is equal


@dataclass(frozen=True)
class Geometry:
    """What nnU-Net derives from a plan (`configure_rotation_dummyDA_mirroring_and_inital_patch_size`).

    Attributes:
        patch_size: what the network sees, 2 or 3 axes.
        rotation: lowest and highest angle, radians.
        mirror_axes: of the patch, from 0 on.
        dummy_2d: 3D patches are rotated and scaled in their slices, all of a patch alike.
    """

    patch_size: tuple[int, ...]
    rotation: tuple[float, float]
    mirror_axes: tuple[int, ...] = ()
    dummy_2d: bool = False


@torch.no_grad()
def rotate_scale_crop(image: Tensor, labels: Tensor, geometry: Geometry,
                      generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotate and scale some of the patches, crop the others; what lies beyond a patch is 0, its label -1.

    Args:
        image: [N, C, *size] float32, no smaller than `patch_size` along any axis (in dummy 2D as deep as it).
        labels: [N, L, *size] int16, transformed as the image is.
        generator: on the CPU.

    Returns:
        [N, C, *patch_size] float32 and [N, L, *patch_size] int16, in new storage.
    """
    if geometry.dummy_2d:
        slices = Geometry(geometry.patch_size[1:], geometry.rotation)
        moved = rotate_scale_crop(image.flatten(1, 2), labels.flatten(1, 2), slices, generator)
        image, labels = (after.unflatten(1, before.shape[1:3]) for after, before in zip(moved, (image, labels),
                                                                                       strict=True))
        return image, labels
    patch_size = geometry.patch_size
    matrix, chosen = draw_matrices(len(image), len(patch_size), geometry.rotation, generator)
    cropped = [crop_centre(part, patch_size).clone(memory_format=torch.contiguous_format) for part in (image, labels)]
    index = chosen.nonzero().flatten()
    if len(index) > 0:
        where = _beside(index, image)
        grid = sampling_grid(_beside(matrix[index], image), image.shape[2:], patch_size)
        for part, sample, result in zip((image, labels), (sample_image, sample_labels), cropped, strict=True):
            result.index_copy_(0, where, sample(part.index_select(0, where), grid))
    return tuple(cropped)


@torch.no_grad()
def mirror(image: Tensor, labels: Tensor, geometry: Geometry, generator: torch.Generator) -> None:
    """Flip each patch along each of the mirror axes with probability 1/2, image [N, C, …] and labels [N, L, …] alike
    and in place. `generator` is on the CPU."""
    flipped = torch.rand(len(image), len(geometry.mirror_axes), generator=generator) < 0.5
    for axis, flips in zip(geometry.mirror_axes, flipped.unbind(1), strict=True):
        where = _beside(flips.nonzero().flatten(), image)
        for part in (image, labels):
            part.index_copy_(0, where, part.index_select(0, where).flip(axis + 2))


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """`values` on the device of `x`; CUDA takes a copy of them at once and the CPU goes on."""
    return values.to(x.device, non_blocking=x.is_cuda)


# ----------------------------------------------------------------------------------------------------------------------
# Draw


def draw_matrices(num_patches: int, num_axes: int, rotation: tuple[float, float],
                  generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of each patch the matrix [N, axes, axes] float32 that takes a voxel after augmentation to where it is fetched
    from, both counted from the centre of the patch; and whether it changes anything, [N] bool.

    Angles are drawn for the rotation about each axis (in 2D there is one), one scale for all axes. What one patch gets
    does not depend on the luck of the others.
    """
    num_angles = 1 if num_axes == 2 else 3
    luck = torch.rand(num_patches, 3 + num_angles, generator=generator, dtype=torch.float64)
    rotated, scaled = (luck[:, :2] < PROBABILITY).unbind(1)
    low, high = SCALING
    scale = torch.where(scaled, low + (high - low) * luck[:, 2], 1)
    low, high = rotation
    angles = torch.where(rotated[:, None], low + (high - low) * luck[:, 3:], 0)
    return (rotation_matrices(angles, num_axes) * scale[:, None, None]).float(), rotated | scaled


def rotation_matrices(angles: Tensor, num_axes: int) -> Tensor:
    """[N, 1] or [N, 3] radians → [N, axes, axes]; in 3D about the first axis first, about the last one last."""
    if num_axes == 2:
        return _turn(angles[:, 0], 0, 1, 2)
    return _turn(angles[:, 2], 0, 1, 3) @ _turn(angles[:, 1], 2, 0, 3) @ _turn(angles[:, 0], 1, 2, 3)


def _turn(angle: Tensor, one: int, other: int, num_axes: int) -> Tensor:
    """Rotations in the plane of two axes, from `one` to `other`."""
    matrix = torch.eye(num_axes, dtype=angle.dtype).repeat(len(angle), 1, 1)
    matrix[:, one, one] = matrix[:, other, other] = angle.cos()
    matrix[:, other, one] = angle.sin()
    matrix[:, one, other] = -angle.sin()
    return matrix


# ----------------------------------------------------------------------------------------------------------------------
# Apply


def crop_centre(x: Tensor, patch_size: Sequence[int]) -> Tensor:
    """The middle of [N, C, *size], a view; where it cannot be central, as batchgeneratorsv2 has it.

    Raises:
        ValueError: `x` is smaller than the patch.
    """
    for axis, (size, length) in enumerate(zip(x.shape[2:], patch_size, strict=True), start=2):
        if size < length:
            raise ValueError(f"a patch of {list(patch_size)} cannot be cut out of {list(x.shape[2:])}")
        x = x.narrow(axis, size // 2 - length // 2, length)
    return x


def sampling_grid(matrix: Tensor, size: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """`grid_sample`'s grid [N, *patch_size, axes] for patches of `size` and their matrices [N, axes, axes]."""
    num_axes = len(patch_size)
    offsets = [torch.linspace((1 - length) / 2, (length - 1) / 2, length, device=matrix.device)
               .view([-1 if other == axis else 1 for other in range(num_axes)])
               for axis, length in enumerate(patch_size)]          # voxels from the centre of the patch

    def coordinate(axis: int) -> Tensor:
        parts = (matrix[:, axis, other].view(-1, *[1] * num_axes) * offset for other, offset in enumerate(offsets))
        return sum(parts) / (size[axis] / 2)

    return torch.stack([coordinate(axis) for axis in reversed(range(num_axes))], -1)


def sample_image(image: Tensor, grid: Tensor) -> Tensor:
    """Linear interpolation of [N, C, *size] at `grid`; 0 beyond the patch."""
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def sample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """The label that weighs most in the linear interpolation of [N, L, *size] int16 at `grid`, -1 beyond the patch.

    Every voxel is between 2ᵃ others, a the number of axes, so no label but theirs need be looked at: the time does not
    depend on how many labels there are, and nothing but the voxels between different labels is voted on. Where two
    labels weigh the same, the nearest voxel decides if its label is one of the two, else the lower label wins.
    """
    size = labels.shape[2:]
    padded = F.pad(labels, (2, 2) * len(size), value=OUTSIDE)       # two, so that a whole cell may lie beyond
    strides = [math.prod(padded.shape[axis + 1:]) for axis in range(2, padded.ndim)]
    corners = list(product((0, 1), repeat=len(size)))
    ahead = [sum(step * stride for step, stride in zip(corner, strides, strict=True)) for corner in corners]

    # Of each voxel to be filled: where it lies among the others, counted as grid_sample does it, and its cell's begin.
    at = [(((grid[..., -1 - axis] + 1) * length - 1) / 2).flatten(1) for axis, length in enumerate(size)]
    cell = sum((coordinate.floor().clamp(-2, length) + 2).long() * stride
               for coordinate, length, stride in zip(at, size, strides, strict=True))

    values = padded.flatten(2)                                      # [N, L, V]
    everywhere = cell[:, None].expand(-1, labels.shape[1], -1)
    result, *others = (values[..., skipped:].gather(2, everywhere) for skipped in ahead)
    contested = torch.zeros_like(result, dtype=torch.bool)
    for other in others:
        contested |= other != result

    sample, channel, voxel = contested.nonzero(as_tuple=True)
    cell = cell[sample, voxel] + (sample * labels.shape[1] + channel) * values.shape[2]
    at = [coordinate[sample, voxel] for coordinate in at]
    beyond = [coordinate - coordinate.floor() for coordinate in at]
    weights = torch.stack([math.prod(part if step else 1 - part for part, step in zip(beyond, corner, strict=True))
                           for corner in corners])
    candidates = torch.stack([values.flatten()[skipped:][cell] for skipped in ahead])
    to_nearest = sum((coordinate.round() - coordinate.floor()).long() * stride
                     for coordinate, stride in zip(at, strides, strict=True))
    result[sample, channel, voxel] = most_weight(candidates, weights, nearest=values.flatten()[cell + to_nearest])
    return result.unflatten(2, grid.shape[1:-1])


def most_weight(candidates: Tensor, weights: Tensor, nearest: Tensor) -> Tensor:
    """Of candidates [K, M] int16 with weights [K, M], which add up to 1, the label with the largest sum, [M].

    Args:
        nearest: [M], the label that settles a tie that it has part in; the lower label settles the others.
    """
    winner = nearest.clone()
    own = _score(nearest, candidates, weights)
    open_ = (own < SCORE / 2).nonzero()[:, 0]       # with half of the weight nobody has more
    candidates, weights, nearest, own = candidates[:, open_], weights[:, open_], nearest[open_], own[open_]
    scores = torch.stack([_score(candidate, candidates, weights) for candidate in candidates])
    highest = scores.amax(0)
    lowest_label = torch.where(scores == highest, candidates, torch.iinfo(candidates.dtype).max).amin(0)
    winner[open_] = torch.where(own == highest, nearest, lowest_label)
    return winner


def _score(label: Tensor, candidates: Tensor, weights: Tensor) -> Tensor:
    """What a label [M] has of the weights, [M] float32, rounded."""
    return (SCORE * (weights * (candidates == label)).sum(0)).half().float()
