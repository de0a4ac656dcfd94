"""The oracle is batchgeneratorsv2 itself, one patch at a time, with nnU-Net's own parameters."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import (
    SpatialTransform,
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.stats import ks_2samp, kstest

from nnunet_synth.data import device_augmentation_spatial as ours
from nnunet_synth.data.device_augmentation_spatial import (
    OUTSIDE,
    Geometry,
    crop_centre,
    draw_matrices,
    mirror,
    most_weight,
    rotate_scale_crop,
    rotation_matrices,
    sample_image,
    sample_labels,
    sampling_grid,
)

SHAPES = [((29, 36), (21, 26)), ((11, 18, 15), (8, 12, 9))]         # of the patch that is cut out, and of the later one
HALF_TURN = (-math.pi, math.pi)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nnunet_transform(kind: type, patch_size: tuple, dummy_2d: bool = False, rotation: tuple = HALF_TURN,
                     mirror_axes: tuple = (0, 1)):
    composed = nnUNetTrainer.get_training_transforms(patch_size, rotation, None, mirror_axes, dummy_2d)
    found, = (transform for transform in composed.transforms if type(transform) is kind)
    return found


def with_parameters(patch_size: tuple, angles: list[float], scale: float) -> SpatialTransform:
    """nnU-Net's transform, its luck replaced by parameters."""
    transform = nnunet_transform(SpatialTransform, patch_size)
    transform.p_rotation = transform.p_scaling = 1
    transform.rotation = lambda image, dim: angles[dim]
    transform.scaling = scale
    return transform


def patches(size: tuple, num_labels: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and two channels of labels in blocks of three voxels; some are outside, some have clusters."""
    rng = np.random.default_rng(seed)
    coarse = tuple(-(-length // 3) for length in size)
    labels = np.stack([rng.integers(-1, num_labels, coarse), 256 * rng.integers(0, num_labels + 1, coarse) + 1])
    for axis in range(1, labels.ndim):
        labels = labels.repeat(3, axis)
    labels = labels[(slice(None), *(slice(length) for length in size))].astype(np.int16)
    return torch.from_numpy(rng.standard_normal((1, *size)).astype(np.float32)), torch.from_numpy(labels)


# ----------------------------------------------------------------------------------------------------------------------
# The same parameters give the same patch


@pytest.mark.parametrize("seed", range(5))
def test_matrices_are_batchgeneratorsv2s(seed: int) -> None:
    angles = np.random.default_rng(seed).uniform(-math.pi, math.pi, 3)
    of_volume = rotation_matrices(torch.tensor(angles)[None], 3)[0]
    np.testing.assert_allclose(of_volume, create_affine_matrix_3d(angles, [1, 1, 1]), atol=1e-12)
    of_slice = rotation_matrices(torch.tensor(angles[-1:])[None], 2)[0]
    np.testing.assert_allclose(of_slice, create_affine_matrix_2d(angles[-1], [1, 1]), atol=1e-12)


def transformed_by_both(size: tuple, patch_size: tuple, angles: list[float], scale: float, num_labels: int = 3,
                        seed: int = 0) -> tuple:
    image, labels = patches(size, num_labels, seed)
    transform = with_parameters(patch_size, angles, scale)
    theirs = transform(image=image.clone(), segmentation=labels.clone())
    num_angles = 1 if len(size) == 2 else 3
    matrix = rotation_matrices(torch.tensor(angles[len(size) - num_angles:], dtype=torch.float64)[None], len(size))
    grid = sampling_grid((matrix * scale).float(), size, patch_size)
    mine = sample_image(image[None], grid)[0], sample_labels(labels[None], grid)[0]
    return mine, (theirs["image"], theirs["segmentation"])


@pytest.mark.parametrize(("size", "patch_size"), SHAPES)
@pytest.mark.parametrize("seed", range(6))
def test_same_parameters_same_patch(size: tuple, patch_size: tuple, seed: int) -> None:
    """Coordinates are computed in another order, so they differ by float32's rounding: at most 10⁻⁵ of a voxel here. As
    neighbouring voxels of this noise differ by less than 10, images may differ by 10⁻⁴; labels only where the rounding
    of coordinates carries a score across a step of float16, which none of these voxels is near."""
    rng = np.random.default_rng(seed)
    angles, scale = rng.uniform(-math.pi, math.pi, len(size)).tolist(), float(rng.uniform(0.7, 1.4))
    mine, theirs = transformed_by_both(size, patch_size, angles, scale, seed=seed)
    torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=1e-4)
    assert torch.equal(mine[1], theirs[1]) and mine[1].dtype == torch.int16
    assert len(mine[1][0].unique()) == 4


@pytest.mark.parametrize(("size", "patch_size"), SHAPES)
def test_any_number_of_labels(size: tuple, patch_size: tuple) -> None:
    """Clusters: about as many labels as blocks."""
    mine, theirs = transformed_by_both(size, patch_size, [0.4] * len(size), 1.1, num_labels=100)
    assert torch.equal(mine[1], theirs[1]) and len(mine[1][1].unique()) > 30


@pytest.mark.parametrize(("size", "patch_size"), SHAPES)
def test_beyond_the_patch(size: tuple, patch_size: tuple) -> None:
    """A patch that was cut out too small: the image fades to 0 and the labels to -1 as nnU-Net's do."""
    mine, theirs = transformed_by_both(patch_size, patch_size, [0.7] * len(size), 1.4)
    torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=1e-4)
    assert torch.equal(mine[1], theirs[1])
    corner = (0, *[0] * len(size))
    assert mine[0][corner] == 0 and mine[1][corner] == OUTSIDE


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_ties(scale: float) -> None:
    """No rotation: at scale 1 and an odd difference of sizes each voxel lies right between others."""
    mine, theirs = transformed_by_both((20, 25), (15, 14), [0.0, 0.0], scale)
    assert torch.equal(mine[1], theirs[1])


@pytest.mark.parametrize(("size", "patch_size"), [*SHAPES, ((7, 8), (4, 5)), ((8, 7), (5, 4)), ((5, 6), (5, 6))])
def test_without_rotation_and_scaling_the_middle_is_cropped(size: tuple, patch_size: tuple) -> None:
    transform = nnunet_transform(SpatialTransform, patch_size)
    transform.p_rotation = transform.p_scaling = 0
    image, labels = patches(size)
    theirs = transform(image=image, segmentation=labels)
    assert torch.equal(crop_centre(image[None], patch_size)[0], theirs["image"])
    assert torch.equal(crop_centre(labels[None], patch_size)[0], theirs["segmentation"])


def test_a_patch_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[8, 9\] cannot be cut out of \[8, 8\]"):
        crop_centre(torch.zeros(1, 1, 8, 8), (8, 9))


def test_ties_between_labels() -> None:
    """Columns: a clear winner; two halves, the nearest is one of them; two labels with more than the nearest's."""
    candidates = torch.tensor([[3, 3, 5], [7, 3, 5], [7, 1, 2], [7, 1, 9]], dtype=torch.int16)
    weights = torch.tensor([[0.4, 0.25, 0.2], [0.2, 0.25, 0.2], [0.2, 0.25, 0.4], [0.2, 0.25, 0.2]])
    nearest = torch.tensor([3, 3, 9], dtype=torch.int16)
    assert most_weight(candidates, weights, nearest).tolist() == [7, 3, 2]
    assert most_weight(candidates, weights, torch.tensor([3, 1, 2], dtype=torch.int16)).tolist() == [7, 1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_dummy_2d_is_nnunets(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All slices alike, channels and slices not mixed up."""
    size, patch_size, angle, scale = (4, 21, 24), (4, 15, 16), 0.3 + seed, 0.8 + seed / 10
    image, labels = patches(size, seed=seed)
    sample = {"image": torch.cat([image, -image]), "segmentation": labels}
    for transform in (Convert3DTo2DTransform(), with_parameters(patch_size[1:], [9, angle], scale),
                      Convert2DTo3DTransform()):
        sample = transform(**sample)
    matrix = rotation_matrices(torch.tensor([[angle]]).double(), 2) * scale
    monkeypatch.setattr(ours, "draw_matrices", lambda *_: (matrix.float(), torch.tensor([True])))
    mine = rotate_scale_crop(torch.cat([image, -image])[None], labels[None],
                             Geometry(patch_size, HALF_TURN, dummy_2d=True), seeded())
    torch.testing.assert_close(mine[0][0], sample["image"], rtol=0, atol=1e-4)
    assert torch.equal(mine[1][0], sample["segmentation"])


# ----------------------------------------------------------------------------------------------------------------------
# What is drawn


@pytest.mark.parametrize("num_axes", [2, 3])
def test_chances_and_parameters_are_nnunets(num_axes: int) -> None:
    rotation = (-0.5, 0.3)
    transform = nnunet_transform(SpatialTransform, (4,) * num_axes, rotation=rotation)
    assert transform.p_rotation == transform.p_scaling == ours.PROBABILITY
    assert (transform.rotation, transform.scaling) == (rotation, ours.SCALING)
    assert (transform.p_rot_per_axis, transform.p_synchronize_scaling_across_axes) == (1, 1)
    assert transform.p_elastic_deform == 0 and not transform.random_crop and not transform.align_corners
    assert (transform.mode_image, transform.padding_mode_image) == ("bilinear", "zeros")
    assert (transform.mode_seg, transform.border_mode_seg) == ("bilinear", "constant")
    assert transform.seg_tiebreak == "nearest"
    assert transform.padding_value_seg == OUTSIDE

    N = 20000
    matrices, chosen = draw_matrices(N, num_axes, rotation, seeded())
    scale = torch.linalg.det(matrices.double()) ** (1 / num_axes)
    turned = matrices.double() / scale[:, None, None]
    scaled = (scale - 1).abs() > 1e-5
    rotated = (turned - torch.eye(num_axes)).abs().amax((1, 2)) > 1e-5
    assert torch.equal(chosen, scaled | rotated)
    p = ours.PROBABILITY
    for happened, expected in ((scaled, p), (rotated, p), (scaled & rotated, p * p)):     # the last: independent
        assert abs(happened.double().mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / N)
    torch.testing.assert_close(turned @ turned.mT, torch.eye(num_axes).double().expand(N, -1, -1), atol=1e-5, rtol=0)
    low, high = ours.SCALING
    assert kstest(scale[scaled], "uniform", args=(low, high - low)).pvalue > 0.001
    if num_axes == 2:
        angle = torch.atan2(turned[rotated, 1, 0], turned[rotated, 0, 0])
        assert kstest(angle, "uniform", args=(rotation[0], rotation[1] - rotation[0])).pvalue > 0.001

    np.random.seed(0)
    theirs = [transform.get_parameters(image=torch.zeros(1, *[4] * num_axes))["affine"] for _ in range(6000)]
    share = np.mean([affine is not None for affine in theirs])
    expected = 1 - (1 - p) ** 2
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(theirs))
    theirs = np.stack([affine for affine in theirs if affine is not None])
    for row in range(num_axes):
        for column in range(num_axes):
            # rounded: what is 0 here and 10⁻¹⁷ there is the same
            mine = matrices[chosen, row, column].double().numpy().round(5)
            assert ks_2samp(mine, theirs[:, row, column].round(5)).pvalue > 0.001


def test_angles_about_three_axes_are_independent() -> None:
    matrices, _ = draw_matrices(20000, 3, (-0.5, 0.5), seeded())
    scale = torch.linalg.det(matrices) ** (1 / 3)
    turned = matrices / scale[:, None, None]
    # R = Rz Ry Rx
    angles = torch.stack([torch.atan2(turned[:, 2, 1], turned[:, 2, 2]), -torch.asin(turned[:, 2, 0].clamp(-1, 1)),
                          torch.atan2(turned[:, 1, 0], turned[:, 0, 0])])
    angles = angles[:, (turned - torch.eye(3)).abs().amax((1, 2)) > 1e-4]
    assert np.abs(np.corrcoef(angles) - np.eye(3)).max() < 4 / math.sqrt(angles.shape[1])
    for values in angles:
        assert kstest(values, "uniform", args=(-0.5, 1)).pvalue > 0.001


def test_each_axis_is_mirrored_for_itself() -> None:
    N, axes = 8000, nnunet_transform(MirrorTransform, (4, 4, 4), mirror_axes=(0, 2)).allowed_axes
    image = torch.arange(8).view(1, 1, 2, 2, 2).repeat(N, 1, 1, 1, 1).float()
    labels = image.short()
    mirror(image, labels, Geometry((2, 2, 2), HALF_TURN, axes), seeded())
    assert torch.equal(image.short(), labels)
    flips = [tuple(first >> bit & 1 for bit in (2, 1, 0)) for first in labels[:, 0, 0, 0, 0].tolist()]
    counts = {flip: flips.count(flip) for flip in set(flips)}
    assert set(counts) == {(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1)}          # never along axis 1
    for count in counts.values():
        assert abs(count / N - 0.25) < 4 * math.sqrt(0.25 * 0.75 / N)
    for patch, flip in zip(labels[:50], flips, strict=False):
        expected = torch.arange(8).view(1, 2, 2, 2).flip([axis + 1 for axis, flipped in enumerate(flip) if flipped])
        assert torch.equal(patch.long(), expected)


def test_no_mirroring_where_nnunet_does_not() -> None:
    image, labels = torch.randn(20, 1, 4, 4), torch.zeros(20, 1, 4, 4, dtype=torch.int16)
    before = image.clone()
    mirror(image, labels, Geometry((4, 4), HALF_TURN), seeded())
    assert torch.equal(image, before)


# ----------------------------------------------------------------------------------------------------------------------
# The batch


def batch(num_patches: int, size: tuple, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    each = [patches(size, seed=seed + number) for number in range(num_patches)]
    return torch.stack([image for image, _ in each]), torch.stack([labels for _, labels in each])


@pytest.mark.parametrize(("size", "patch_size", "dummy_2d"), [(*SHAPES[0], False), (*SHAPES[1], False),
                                                              ((8, 18, 15), (8, 12, 9), True)])
def test_each_patch_of_a_batch_gets_its_own(size: tuple, patch_size: tuple, dummy_2d: bool) -> None:
    """A batch is what its patches would be alone, whoever their companions are; and both kinds occur."""
    N = 12
    image, labels = batch(N, size)
    geometry = Geometry(patch_size, HALF_TURN, dummy_2d=dummy_2d)
    moved = rotate_scale_crop(image, labels, geometry, seeded(1))
    assert moved[0].shape == (N, 1, *patch_size) and moved[1].shape == (N, 2, *patch_size)
    others = batch(N, size, seed=100)
    changed = 0
    for keep in range(N):
        mixed = [other.clone() for other in others]
        mixed[0][keep], mixed[1][keep] = image[keep], labels[keep]
        again = rotate_scale_crop(*mixed, geometry, seeded(1))
        assert torch.equal(again[0][keep], moved[0][keep]) and torch.equal(again[1][keep], moved[1][keep])
        changed += int(not torch.equal(moved[0][keep], crop_centre(image, patch_size)[keep]))
    assert 0 < changed < N


def test_labels_follow_the_image() -> None:
    """An image that is its labels: where the interpolated image is whole, it is the label."""
    labels = torch.zeros(40, 1, 30, 34, dtype=torch.int16)
    labels[..., 6:20, 4:16], labels[..., 12:27, 18:30] = 1, 2
    image = labels.float()
    image, labels = rotate_scale_crop(image, labels, Geometry((22, 24), HALF_TURN), seeded())
    mirror(image, labels, Geometry((22, 24), HALF_TURN, (0, 1)), seeded(1))
    inside = labels != OUTSIDE
    assert float((image[inside].round() == labels[inside]).float().mean()) > 0.97          # interpolated edges
    assert (image[~inside].abs() <= 1).all()


def test_generator_decides_everything() -> None:
    image, labels = batch(16, (16, 18))
    geometry = Geometry((11, 12), HALF_TURN, (0, 1))
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    def augmented(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = seeded(seed)
        moved = rotate_scale_crop(image, labels, geometry, generator)
        mirror(*moved, geometry, generator)
        return moved

    (one, one_l), (again, again_l), (other, _) = augmented(1), augmented(1), augmented(2)
    assert torch.equal(one, again) and torch.equal(one_l, again_l) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all() and random.getstate() == state[2]


def test_the_input_is_left_as_it_was() -> None:
    image, labels = batch(8, (12, 12))
    before = image.clone(), labels.clone()
    geometry = Geometry((12, 12), HALF_TURN, (0, 1))            # a crop of the whole must be a copy, too
    for seed in range(3):
        moved = rotate_scale_crop(image, labels, geometry, seeded(seed))
        mirror(*moved, geometry, seeded(seed))
        moved[0].fill_(0), moved[1].fill_(0)
    assert torch.equal(image, before[0]) and torch.equal(labels, before[1])


def test_autocast_does_not_lower_the_precision() -> None:
    image, labels = batch(12, (16, 18))
    geometry = Geometry((11, 12), HALF_TURN)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rotate_scale_crop(image, labels, geometry, seeded())
    outside = rotate_scale_crop(image, labels, geometry, seeded())
    assert torch.equal(inside[0], outside[0]) and torch.equal(inside[1], outside[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("size", "patch_size"), SHAPES)
def test_gpu_equals_cpu(size: tuple, patch_size: tuple) -> None:
    image, labels = batch(12, size)
    geometry = Geometry(patch_size, HALF_TURN)
    on_cpu = rotate_scale_crop(image, labels, geometry, seeded())
    on_gpu = rotate_scale_crop(image.cuda(), labels.cuda(), geometry, seeded())
    torch.testing.assert_close(on_gpu[0].cpu(), on_cpu[0], rtol=0, atol=1e-4)
    assert float((on_gpu[1].cpu() != on_cpu[1]).float().mean()) < 1e-3          # where rounding settles a tie
