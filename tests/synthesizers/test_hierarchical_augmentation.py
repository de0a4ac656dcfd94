"""Views of a slice: image and labels see the same at every resolution; strong and weak ones are what the paper says."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_synth.synthesizers.hierarchical_augmentation import (
    View,
    draw_focus,
    frame_of,
    look_at_image,
    look_at_map,
    strong,
    weak,
)


def test_strong_falls_with_the_scale_and_weak_never_bends():
    elastic = [strong(level, 9, 20, 0.05).elastic for level in range(9)]
    assert elastic[0] == 0.05 and elastic[-1] == 0 and np.allclose(np.diff(elastic), -0.05 / 8)
    assert all(strong(level, 9, 20, 0.05).smallest_crop == 0.5 for level in range(9))
    assert strong(0, 1, 20, 0.05).elastic == 0.05
    assert weak(20).elastic == 0 and weak(20).smallest_crop == 0.75
    rng = np.random.default_rng(0)
    assert all(View.draw(weak(20), rng).bend is None for _ in range(20))
    assert all(View.draw(strong(0, 9, 20, 0.05), rng).bend is not None for _ in range(20))
    assert all(View.draw(strong(8, 9, 20, 0.05), rng).bend is None for _ in range(20))


@pytest.mark.parametrize("smallest", [0.5, 0.75])
def test_what_is_drawn_fills_its_ranges(smallest):
    rng = np.random.default_rng(1)
    augmentation = strong(0, 2, 20, 0.05) if smallest == 0.5 else weak(20)
    views = [View.draw(augmentation, rng) for _ in range(400)]
    crops = np.array([view.crop for view in views])
    assert smallest <= crops.min() < smallest + 0.02 and 0.98 < crops.max() <= 1
    angles = np.degrees([view.angle for view in views])
    assert -20 <= angles.min() < -19 and 19 < angles.max() <= 20
    assert {view.flips for view in views} == {(x, y) for x in (1, -1) for y in (1, -1)}
    centres = np.array([view.centre for view in views])
    assert (np.abs(centres) + crops[:, None] <= 1 + 1e-9).all(), "a crop leaves the frame"
    assert np.abs(centres).max() > 0.8 * (1 - smallest)


def random_map(size, num_classes=4, seed=0):
    coarse = torch.from_numpy(np.random.default_rng(seed).integers(0, num_classes, (1, 1, 6, 6))).float()
    return F.interpolate(coarse, size, mode="nearest")[:, 0].long()


def test_the_plain_view_is_the_slice_resized():
    semantic = random_map((48, 48))
    for size in ((48, 48), (32, 32), (96, 96)):
        expected = F.interpolate(semantic[:, None].float(), size, mode="nearest-exact")[:, 0].long()
        assert torch.equal(look_at_map(semantic, View(), size, (48, 48)), expected)
    image = torch.rand(1, 2, 48, 48) * 2 - 1
    torch.testing.assert_close(look_at_image(image, View(), (48, 48), (48, 48)), image)
    small = F.interpolate(image, (24, 24), mode="bilinear", antialias=True)
    torch.testing.assert_close(look_at_image(image, View(), (24, 24), (48, 48)), small)


def test_flips_and_crops_by_hand():
    semantic = torch.arange(16).view(1, 4, 4)
    assert torch.equal(look_at_map(semantic, View(flips=(-1, 1)), (4, 4), (4, 4)), semantic.flip(2))
    assert torch.equal(look_at_map(semantic, View(flips=(1, -1)), (4, 4), (4, 4)), semantic.flip(1))
    corner = View(crop=0.5, centre=(0.5, -0.5))         # right, above
    assert torch.equal(look_at_map(semantic, corner, (2, 2), (4, 4)), semantic[:, :2, 2:])
    quarter = View(angle=math.pi / 2)
    turned = look_at_map(semantic, quarter, (4, 4), (4, 4))
    assert torch.equal(turned, semantic.rot90(1, (1, 2))) or torch.equal(turned, semantic.rot90(-1, (1, 2)))


@pytest.mark.parametrize("seed", range(6))
def test_image_and_labels_are_bent_alike(seed):
    """An image that shows its own labels still shows them afterwards, at every scale."""
    semantic = random_map((96, 96), num_classes=2, seed=seed)
    image = semantic[:, None].float() * 2 - 1
    view = View.draw(strong(0, 4, 30, 0.05), np.random.default_rng(seed))
    for size in ((96, 96), (48, 48), (32, 32)):
        labels = look_at_map(semantic, view, size, (96, 96))[0]
        seen = look_at_image(image, view, size, (96, 96))[0, 0]
        inside = look_at_map(torch.ones(1, 96, 96, dtype=torch.bool), view, size, (96, 96))[0]
        agree = ((seen > 0) == (labels == 1))[inside]
        assert agree.float().mean() > 0.9, "edges may differ by a pixel, not more"
        # Away from any edge they agree exactly.
        far = (F.max_pool2d(labels[None].float(), 5, 1, 2) == -F.max_pool2d(-labels[None].float(), 5, 1, 2))[0] & inside
        far &= -F.max_pool2d(-inside[None].float(), 5, 1, 2)[0] == 1
        assert far.sum() > 50 and agree.numel() and bool((((seen > 0) == (labels == 1)) | ~far).all())


def test_the_bend_is_the_same_at_every_resolution():
    semantic = random_map((64, 64), seed=3)
    view = View.draw(strong(0, 2, 0, 0.05), np.random.default_rng(2))
    fine = look_at_map(semantic, view, (256, 256), (64, 64))
    coarse = look_at_map(semantic, view, (64, 64), (64, 64))
    again = F.interpolate(fine[:, None].float(), (64, 64), mode="nearest-exact")[:, 0].long()
    assert (again == coarse).float().mean() > 0.93
    plain = look_at_map(semantic, View(view.crop, view.centre, view.angle, view.flips), (64, 64), (64, 64))
    assert (plain == coarse).float().mean() < 0.95, "the elastic transform does nothing"


def test_shapes_of_slices_that_are_no_patches():
    """The frame is as large as the patch, in pixels of the slice."""
    assert frame_of((512, 512), (256, 256)).tolist() == [0.5, 0.5]
    assert frame_of((100, 50), (100, 100)).tolist() == [2, 1]               # x, y
    assert frame_of((64, 64), (128, 128)).tolist() == [2, 2]
    image = torch.ones(1, 1, 100, 50)
    seen = look_at_image(image, View(), (100, 100), (100, 100))
    assert seen.shape == (1, 1, 100, 100)
    assert torch.allclose(seen[..., 26:74], torch.ones(())) and (seen[..., :24] == -1).all()
    assert (seen[..., 76:] == -1).all()
    inside = look_at_map(torch.ones(1, 100, 50, dtype=torch.bool), View(), (100, 100), (100, 100))
    assert inside.dtype == torch.bool and inside.sum() == 5000 and inside[..., 25:75].all()


NOWHERE = torch.zeros(0, 2, dtype=torch.int64)


def test_a_large_slice_is_seen_part_by_part_at_its_own_resolution():
    semantic = torch.arange(24 * 32).view(1, 24, 32)
    part = View(focus=(2 * 14 / 32 - 1, 2 * 9 / 24 - 1))       # the middle is x = 14, y = 9
    assert torch.equal(look_at_map(semantic, part, (12, 8), (12, 8)), semantic[:, 3:15, 10:18])
    image = semantic[:, None] / 400 - 1
    torch.testing.assert_close(look_at_image(image, part, (12, 8), (12, 8)), image[..., 3:15, 10:18])
    # What a turned part shows beyond the frame is the slice, not nothing.
    turned = View(focus=(0.0, 0.0), angle=math.radians(30))
    assert look_at_map(torch.ones_like(semantic), turned, (12, 8), (12, 8)).all()


def test_parts_lie_within_the_slice_and_half_of_them_about_a_lesion():
    size, patch, rng = (100, 80), (32, 48), np.random.default_rng(0)

    def middles(wanted):
        drawn = np.array([draw_focus(size, patch, wanted, rng) for _ in range(2000)])
        return (drawn[:, 1] + 1) / 2 * size[0], (drawn[:, 0] + 1) / 2 * size[1]

    y, x = middles(NOWHERE)
    assert np.isclose([y.min(), y.max()], [16, 84]).all() and np.isclose([x.min(), x.max()], [24, 56]).all()
    assert 0.1 < np.mean(y < 33) < 0.9 and np.mean((abs(y - 70.5) < 0.01) & (abs(x - 30.5) < 0.01)) == 0
    y, x = middles(torch.tensor([[70, 30]]))
    assert np.mean((abs(y - 70.5) < 0.01) & (abs(x - 30.5) < 0.01)) == pytest.approx(0.5, abs=0.04)
    y, x = middles(torch.tensor([[2, 79]]))         # in a corner: the part is moved inwards
    assert np.mean((abs(y - 16) < 0.01) & (abs(x - 56) < 0.01)) > 0.46
    assert y.min() >= 16 and x.max() <= 56


def test_a_slice_no_larger_than_the_patch_is_seen_whole():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert draw_focus((64, 100), (64, 128), torch.tensor([[2, 2]]), rng) == (0, 0)
    assert rng.bit_generator.state == before
    x, y = draw_focus((64, 100), (32, 128), NOWHERE, rng)
    assert x == 0 != y, "only the longer direction moves"


def test_fine_texture_is_averaged_before_it_is_sampled_thinly():
    checkers = (torch.arange(128)[:, None] + torch.arange(128)) % 2 * 2.0 - 1
    view = View(crop=0.9, centre=(0.05, 0.0))
    assert look_at_image(checkers[None, None], view, (32, 32), (128, 128)).abs().max() < 0.2
