"""The whole of nnU-Net's training transforms in a batch; the oracle is nnU-Net's own composition, patch by patch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.ndimage import binary_fill_holes
from scipy.stats import ks_2samp

from nnunet_synth.data import device_augmentation_spatial, intensity_augmentation
from nnunet_synth.data.device_augmentation import DeviceAugmentation
from nnunet_synth.data.device_augmentation_spatial import OUTSIDE, Geometry
from nnunet_synth.data.layouts import CLUSTER_FACTOR
from nnunet_synth.data.loaders import (
    HOLE,
    AugmentedOnDevice,
    MarkHoles,
    fill_holes,
    split_channels,
    with_layout_channels,
    without_benchmarks,
)

ROTATION = (-3.1, 3.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nnunets(patch_size: tuple, scales: list | None = None, mirror_axes: tuple = (0, 1), dummy_2d: bool = False,
            **options: object) -> ComposeTransforms:
    """What the workers do with `augmentation: cpu`."""
    return without_benchmarks(with_layout_channels(nnUNetTrainer.get_training_transforms(
        patch_size, ROTATION, scales, mirror_axes, dummy_2d, **options)))


def patches(num: int, size: tuple, num_channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Scans with a margin that is outside, a black hole amid them, labels 0…3, two lungs and clusters."""
    generator = seeded(5)
    image = torch.randn(num, num_channels, *size, generator=generator).exp() - 1.2
    labels = torch.randint(0, 4, (num, 2, *size), generator=generator, dtype=torch.int16)
    labels[:, 1] = labels[:, 1] % 3 + CLUSTER_FACTOR * torch.randint(0, 9, (num, *size), generator=generator).short()
    height, width = size[-2:]
    labels[..., :3, :] = OUTSIDE
    labels[:, 0, ..., height // 2:height // 2 + 2, width // 2] = OUTSIDE
    return image, labels


def as_workers_hand_over(image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """With `augmentation: device`."""
    marked = [MarkHoles()(image=x.clone(), segmentation=y.clone()) for x, y in zip(image, labels, strict=True)]
    return torch.stack([each["image"] for each in marked]), torch.stack([each["segmentation"] for each in marked])


# ----------------------------------------------------------------------------------------------------------------------
# All that is not random


@pytest.fixture
def no_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_augmentation_spatial, "PROBABILITY", 0.0)
    monkeypatch.setattr(intensity_augmentation, "draw_steps", lambda *_: [])


def without_luck(transforms: ComposeTransforms) -> ComposeTransforms:
    for transform in transforms.transforms:
        if isinstance(transform, RandomTransform):
            transform.apply_probability = 0
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = transform.p_scaling = 0
    return transforms


PLANS = {
    "2d": ((17, 22), (12, 14), False, [[1, 1], [0.5, 0.5], [0.25, 0.25]]),
    "without deep supervision": ((17, 22), (12, 14), False, None),
    "3d": ((9, 17, 22), (6, 12, 14), False, [[1, 1, 1], [1, 0.5, 0.5]]),
    "dummy 2d": ((4, 17, 22), (4, 12, 14), True, [[1, 1, 1], [0.5, 0.5, 0.5]]),
}
LABELS = {
    "classes": {"regions": None, "ignore_label": None},
    "regions": {"regions": [(1, 2, 3), (2,), 3], "ignore_label": None},
    "regions and ignore label": {"regions": [(1, 2), 2], "ignore_label": 3},
}


@pytest.mark.usefixtures("no_luck")
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("plan", PLANS)
def test_without_luck_it_is_nnunets(plan: str, labels: str) -> None:
    """Cropping, masking, layout channels, labels, regions and levels: equal to the last bit, types included."""
    size, patch_size, dummy_2d, scales = PLANS[plan]
    image, segmentation = patches(3, size, num_channels=2)
    expected = []
    for x, y in zip(image, segmentation, strict=True):
        transforms = without_luck(nnunets(patch_size, scales, (), dummy_2d, use_mask_for_norm=[False, True],
                                          **LABELS[labels]))
        expected.append(transforms(image=x.clone(), segmentation=y.clone()))

    regions, ignore_label = LABELS[labels]["regions"], LABELS[labels]["ignore_label"]
    if ignore_label is not None:
        regions = [*regions, ignore_label]
    augment = DeviceAugmentation(Geometry(patch_size, ROTATION, (), dummy_2d), masked_channels=(1,), regions=regions,
                                 deep_supervision_scales=scales)
    data, target = augment(*as_workers_hand_over(image, segmentation), seeded())
    assert torch.equal(data, torch.stack([each["image"] for each in expected])) and data.dtype == torch.float32
    assert isinstance(target, list) == (scales is not None)
    levels = target if scales is not None else [target]
    for number, level in enumerate(levels):
        theirs = [each["segmentation"] for each in expected]
        theirs = torch.stack([each[number] if scales is not None else each for each in theirs])
        assert torch.equal(level, theirs) and level.dtype == theirs.dtype

    # what the comparison would not be worth much without
    valid = split_channels(data)[3]
    assert not valid.all() and (data[:, 1][~valid] == 0).all() and (data[:, 0][~valid] != 0).any()


@pytest.mark.usefixtures("no_luck")
def test_a_hole_is_valid_but_has_no_label() -> None:
    image, labels = as_workers_hand_over(*patches(1, (17, 22)))
    assert set(labels[0, 0].unique().tolist()) == {HOLE, OUTSIDE, 0, 1, 2, 3}
    augment = DeviceAugmentation(Geometry((17, 22), ROTATION), masked_channels=(0,))
    data, target = augment(image, labels, seeded())
    image, _, _, valid = split_channels(data)
    assert valid[0, 8:10, 11].all() and not target[0, 0, 8:10, 11].any()
    assert not image[0, 0, 8:10, 11].any(), "nnU-Net masks where its mask has a hole"


def test_an_unlabelled_stream_has_no_target() -> None:
    augment = DeviceAugmentation(Geometry((12, 14), ROTATION), has_target=False)
    assert augment(*as_workers_hand_over(*patches(2, (17, 22))), seeded())[1] is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(20, 24), (3, 16, 18)])
def test_holes_are_scipys(shape: tuple, seed: int) -> None:
    """Of sparse and of dense pictures; slices do not fill each other's holes."""
    rng = np.random.default_rng(seed)
    valid = rng.random(shape) < (0.5, 0.7, 0.9, 1.0)[seed]
    expected = np.stack([binary_fill_holes(each) for each in valid.reshape(-1, *shape[-2:])]).reshape(shape)
    assert np.array_equal(fill_holes(torch.from_numpy(valid)).numpy(), expected)


# ----------------------------------------------------------------------------------------------------------------------
# Luck


def test_patches_have_the_statistics_of_nnunets() -> None:
    """Many augmented copies of one patch: image, scan and labels."""
    num_copies, size, patch_size = 900, (15, 18), (10, 12)
    image, labels = patches(1, size)
    scales = [[1, 1], [0.5, 0.5]]
    augment = DeviceAugmentation(Geometry(patch_size, ROTATION, (0, 1)), deep_supervision_scales=scales)
    data, (target, _) = augment(*(part.expand(num_copies, *part.shape[1:])
                                  for part in as_workers_hand_over(image, labels)), seeded())
    torch.manual_seed(0)
    np.random.seed(0)
    transforms = nnunets(patch_size, scales)
    theirs = [transforms(image=image[0].clone(), segmentation=labels[0].clone()) for _ in range(num_copies)]
    crop = transforms.transforms[0]._apply_to_image(image[0], grid=None, center_location_in_pixels=[7.5, 9])
    untouched = [np.mean([torch.equal(copy[:1], crop) for copy in copies])
                 for copies in (data, [each["image"] for each in theirs])]
    # 4 sigma of the difference; p = (1/2)² · 0.8² · what no intensity transform touches
    assert abs(untouched[0] - untouched[1]) < 4 * np.sqrt(2 * 0.06 * 0.94 / num_copies) and untouched[1] > 0
    mine = [(sample[0], sample[1:], level[0].float()) for sample, level in zip(data, target, strict=True)]
    theirs = [(each["image"][0], each["image"][1:], each["segmentation"][0][0].float()) for each in theirs]
    statistics = {
        "mean": lambda x, extra, y: x.mean(), "std": lambda x, extra, y: x.std(), "max": lambda x, extra, y: x.max(),
        "min": lambda x, extra, y: x.min(), "gradient": lambda x, extra, y: x.diff(dim=0).abs().mean(),
        "valid": lambda x, extra, y: extra[2].mean(), "layout": lambda x, extra, y: (extra[0] == 2).float().mean(),
        "cluster": lambda x, extra, y: extra[1].mean(), "label": lambda x, extra, y: (y == 1).float().mean(),
        "where": lambda x, extra, y: (y * torch.arange(10)[:, None]).mean(),
    }
    for name, statistic in statistics.items():
        one, other = ([round(float(statistic(*copy)), 4) for copy in copies] for copies in (mine, theirs))
        assert ks_2samp(one, other).pvalue > 0.001, name


@pytest.mark.parametrize(("size", "patch_size", "dummy_2d"), [((26, 30), (18, 20), False),
                                                              ((10, 22, 24), (6, 14, 16), False),
                                                              ((4, 26, 30), (4, 18, 20), True)])
def test_everything_moves_together(size: tuple, patch_size: tuple, dummy_2d: bool) -> None:
    """Layout, clusters and target are made of one map and must agree after everything that is random."""
    N = 30
    labels = torch.zeros(N, 2, *size, dtype=torch.int16)
    labels[..., 4:16, 3:14], labels[..., 10:24, 15:27] = 1, 2
    labels[:, 1] += CLUSTER_FACTOR * (labels[:, 1] + 4)
    image = 10 * labels[:, :1].float()
    mirror_axes = tuple(range(len(size)))
    augment = DeviceAugmentation(Geometry(patch_size, (-0.5, 0.5), mirror_axes, dummy_2d))
    data, target = augment(image, labels, seeded())
    image, layout, cluster, valid = split_channels(data)
    assert torch.equal(layout, target[:, 0].long())
    assert torch.equal(cluster, torch.where(valid, layout + 4, 0))
    crop = DeviceAugmentation(Geometry(patch_size, (0, 0)))(image=torch.zeros(N, 1, *size), labels=labels,
                                                            generator=seeded())[1]
    assert sum(not torch.equal(one, other) for one, other in zip(target, crop, strict=True)) > N // 2
    # the brightest is where label 2 is, if it is in the patch and the image was not turned inside out
    for x, y in zip(image[:, 0], layout, strict=True):
        if (y == 2).sum() > 20 and (y == 0).sum() > 20:
            assert x[y == 2].mean() > x[y == 0].mean() + 5


def test_generator_decides_everything() -> None:
    image, labels = as_workers_hand_over(*patches(12, (17, 22)))
    augment = DeviceAugmentation(Geometry((12, 14), ROTATION, (0, 1)), deep_supervision_scales=[[1, 1], [0.5, 0.5]])
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    generator = seeded(1)
    one, again, other = (augment(image, labels, each) for each in (generator, seeded(1), seeded(2)))
    assert torch.equal(one[0], again[0]) and all(map(torch.equal, one[1], again[1]))
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[1][0], other[1][0])
    assert not torch.equal(one[0], augment(image, labels, generator)[0]), "the stream moves on"
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all() and random.getstate() == state[2]


def test_autocast_does_not_lower_the_precision() -> None:
    image, labels = as_workers_hand_over(*patches(12, (17, 22)))
    augment = DeviceAugmentation(Geometry((12, 14), ROTATION, (0, 1)))
    with torch.autocast("cpu", torch.bfloat16):
        inside = augment(image, labels, seeded())
    outside = augment(image, labels, seeded())
    assert torch.equal(inside[0], outside[0]) and torch.equal(inside[1], outside[1])


def test_every_stream_of_a_batch() -> None:
    image, labels = as_workers_hand_over(*patches(4, (17, 22)))
    geometry = Geometry((12, 14), ROTATION, (0, 1))
    streams = {"": DeviceAugmentation(geometry), "_u": DeviceAugmentation(geometry, has_target=False)}
    batch = {"data": image, "target": labels, "keys": ["a"], "data_u": image, "target_u": labels, "keys_u": ["b"]}
    augmented = next(AugmentedOnDevice(iter([batch]), streams, torch.device("cpu"), seeded(3)))
    assert set(augmented) == {"data", "target", "keys", "data_u", "keys_u"}
    assert augmented["keys"] == ["a"] and augmented["keys_u"] == ["b"]
    generator = seeded(3)
    assert torch.equal(augmented["data"], streams[""](image, labels, generator)[0])
    assert torch.equal(augmented["data_u"], streams["_u"](image, labels, generator)[0])
    assert not torch.equal(augmented["data"], augmented["data_u"]), "each stream has luck of its own"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu_but_for_the_noise() -> None:
    image, labels = as_workers_hand_over(*patches(32, (17, 22)))
    augment = DeviceAugmentation(Geometry((12, 14), ROTATION, (0, 1)))
    data, target = augment(image, labels, seeded())
    on_gpu, target_on_gpu = augment(image.cuda(), labels.cuda(), seeded())
    assert on_gpu.is_cuda and target_on_gpu.is_cuda
    assert float((target_on_gpu.cpu() != target).float().mean()) < 1e-3         # where rounding settles a tie
    same = [torch.allclose(one, other, atol=1e-3) for one, other in zip(on_gpu.cpu()[:, 0], data[:, 0], strict=True)]
    assert np.mean(same) > 0.8              # a tenth has noise
