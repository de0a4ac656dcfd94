"""The oracle is batchgeneratorsv2 itself, sample by sample, with nnU-Net's own composition of transforms."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.stats import ks_2samp, kstest

from nnunet_synth.data import intensity_augmentation as ours
from nnunet_synth.data.intensity_augmentation import augment_intensity, draw_steps

SHAPES = [(20, 27), (9, 16, 13)]                # odd and even sizes
TRANSFORMS = [ours.gaussian_noise, ours.gaussian_blur, ours.brightness, ours.contrast, ours.low_resolution,
              ours.gamma_inverted, ours.gamma]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scans(*shape, seed=0):
    """Skewed intensities around 0, so that mean, median and middle of the range differ."""
    return torch.randn(shape, generator=seeded(seed)).exp() - 1.2


def nnunet_transforms(ignore_axes=None):
    """The intensity transforms that nnU-Net trains with."""
    patch_size = (16, 16, 16) if ignore_axes else (16, 16)
    composed = nnUNetTrainer.get_training_transforms(patch_size, (-0.1, 0.1), None, (0, 1), bool(ignore_axes))
    return [t for t in composed.transforms if isinstance(t, RandomTransform)]


def library(transform, x, strength):
    """What batchgeneratorsv2 makes of one sample x [R, *sp], each of its channels being one of our rows."""
    x, everywhere, yes = x.clone(), torch.arange(len(x)), torch.ones(len(x), dtype=torch.bool)
    match transform.__name__:
        case "gaussian_blur":
            return GaussianBlurTransform((0.5, 1), benchmark=False)._apply_to_image(
                x, apply_to_channel=yes, sigmas=strength.tolist())
        case "brightness":
            return MultiplicativeBrightnessTransform((0.75, 1.25), False)._apply_to_image(
                x, apply_to_channel=everywhere, multipliers=strength)
        case "contrast":
            return ContrastTransform((0.75, 1.25), preserve_range=True, synchronize_channels=False)._apply_to_image(
                x, apply_to_channel=everywhere, multipliers=strength)
        case "low_resolution":
            return SimulateLowResolutionTransform((0.5, 1), False, True, None)._apply_to_image(
                x, apply_to_channel=everywhere, scales=strength)
        case "gamma" | "gamma_inverted":
            invert = yes if transform is ours.gamma_inverted else ~yes
            return GammaTransform((0.7, 1.5), 0, False, 1, 1)._apply_to_image(
                x, apply_to_channel=everywhere, retain_stats=yes, invert_image=invert, gamma=strength)


# ----------------------------------------------------------------------------------------------------------------------
# Each transform


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transform", TRANSFORMS[1:])
def test_transform_equals_batchgeneratorsv2(transform, shape):
    x = scans(40, *shape)
    strength = draw_steps(40, 1, len(shape), seeded(1))[TRANSFORMS.index(transform)].strength
    before = x.clone()
    mine, theirs = transform(x, strength), library(transform, x, strength)
    assert torch.equal(x, before)
    assert not torch.allclose(theirs, x, atol=1e-2)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_equals_batchgeneratorsv2(shape):
    x = scans(3, *shape)
    torch.manual_seed(5)
    theirs = GaussianNoiseTransform((0, 0.1), 1, synchronize_channels=True)._apply_to_image(
        x.clone(), num_apply=3, apply_idx=torch.arange(3), sigmas=0.07)
    mine = ours.gaussian_noise(x, torch.full((3,), 0.07), seeded(5))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_noise_is_normal_and_independent_between_channels():
    noise = ours.gaussian_noise(torch.zeros(2, 100, 100), torch.tensor([0.1, 0.02]), seeded())
    assert kstest((noise[0] / 0.1).flatten(), "norm").pvalue > 0.01
    assert kstest((noise[1] / 0.02).flatten(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(noise.flatten(1))[0, 1]) < 0.04          # 4 sigma of 10⁴ pairs


def test_blur_has_nnunets_kernel_for_every_sigma():
    """Radius 1, 2 and 3 voxels in the range of sigma; an impulse shows the kernel."""
    sigma = torch.linspace(0.5, 1, 201)[:, None].repeat(1, 2)
    impulse = torch.zeros(201, 9, 9)
    impulse[:, 4, 4] = 1
    mine = ours.gaussian_blur(impulse, sigma)
    torch.testing.assert_close(mine, library(ours.gaussian_blur, impulse, sigma), rtol=1e-5, atol=1e-7)
    assert {int((row[4] > 0).sum()) for row in mine} == {3, 5, 7}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_blur_reflects_as_often_as_thin_patches_need(size):
    """batchgeneratorsv2 fails on patches thinner than its kernel. NumPy's padding is the oracle."""
    x = scans(1, size, 8)
    sigma = torch.tensor([[1.0, 0.5]])
    padded = np.pad(x[0].numpy(), ((3, 3), (1, 1)), mode="reflect")
    along = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    across = np.exp(-0.5 * np.arange(-1, 2) ** 2 / 0.25)
    kernel = np.outer(along / along.sum(), across / across.sum())
    expected = [[(padded[i:i + 7, j:j + 3] * kernel).sum() for j in range(8)] for i in range(size)]
    np.testing.assert_allclose(ours.gaussian_blur(x, sigma)[0], expected, rtol=1e-5, atol=1e-5)


def test_low_resolution_keeps_the_voxels_that_interpolate_keeps():
    """All sizes up to 100 and every coarse size from a quarter on: rounding decides which voxel is taken."""
    for size in range(2, 101):
        coarse = torch.arange((size + 3) // 4, size)
        x = torch.arange(size, dtype=torch.float32).repeat(len(coarse), 1)
        scale = coarse[:, None] / size
        expected = [F.interpolate(F.interpolate(row[None, None], int(m), mode="nearest-exact"), size, mode="linear")
                    for row, m in zip(x, coarse, strict=True)]
        torch.testing.assert_close(ours.low_resolution(x, scale), torch.cat(expected)[:, 0], rtol=1e-5, atol=1e-4)


def test_low_resolution_leaves_an_axis_of_scale_one_alone():
    x = scans(2, 6, 10, 10)
    y = ours.low_resolution(x, torch.tensor([[1, 0.5, 0.5], [1, 0.7, 0.7]]))
    for d in range(6):
        expected = ours.low_resolution(x[:, d], torch.tensor([[0.5, 0.5], [0.7, 0.7]]))
        # PyTorch rounds trilinear and bilinear interpolation differently; a neighbouring slice would weigh far more
        torch.testing.assert_close(y[:, d], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS[1:])
def test_constant_image_stays_finite(transform):
    strength = draw_steps(4, 1, 2, seeded())[TRANSFORMS.index(transform)].strength
    y = transform(torch.full((4, 8, 8), 0.3), strength)
    expected = 0.3 * strength if transform is ours.brightness else torch.full((4,), 0.3)
    torch.testing.assert_close(y, expected[:, None, None].expand(4, 8, 8))


# ----------------------------------------------------------------------------------------------------------------------
# What is drawn


def library_draws(transform, shape, num_images):
    """chosen [N, C] and the strengths of chosen rows, as drawn by batchgeneratorsv2."""
    image, chosen, strengths = torch.zeros(shape), [], []
    for _ in range(num_images):
        parameters = transform.get_parameters(image=image)
        applied = parameters.get("apply_mask", parameters.get("apply_to_channel"))
        mask = torch.zeros(shape[0], dtype=torch.bool)
        mask[applied] = True
        chosen.append(mask)
        key = next(k for k in ("sigmas", "multipliers", "scales", "gamma") if k in parameters)
        strengths.extend(np.asarray(parameters[key]).reshape(-1))
    return torch.stack(chosen), np.array(strengths)


@pytest.mark.parametrize("C, ignore_axes", [(1, None), (3, None), (3, (0,))])
def test_draws_are_distributed_as_in_nnunet(C, ignore_axes):
    num_axes = 3 if ignore_axes else 2
    N, num_library = 20000, 1500
    classes = [GaussianNoiseTransform, GaussianBlurTransform, MultiplicativeBrightnessTransform, ContrastTransform,
               SimulateLowResolutionTransform, GammaTransform, GammaTransform]
    library_steps = nnunet_transforms(ignore_axes)
    assert [type(t.transform) for t in library_steps] == classes
    assert [t.transform.p_invert_image for t in library_steps[-2:]] == [1, 0]
    assert [t.transform.p_retain_stats for t in library_steps[-2:]] == [1, 1]
    assert library_steps[3].transform.preserve_range

    steps = draw_steps(N, C, num_axes, seeded(), ignore_axes)
    assert [step.transform for step in steps] == TRANSFORMS
    torch.manual_seed(0)
    np.random.seed(0)
    for step, theirs in zip(steps, library_steps, strict=True):
        p, p_per_channel = theirs.apply_probability, theirs.transform.p_per_channel
        chosen = step.chosen.view(N, C)

        # an image's chance (none of its channels may be taken), and each channel's
        for drawn, expected in [(chosen.any(1), p * (1 - (1 - p_per_channel) ** C)),
                                *((chosen[:, c], p * p_per_channel) for c in range(C))]:
            assert abs(drawn.float().mean() - expected) < 4 * (expected * (1 - expected) / N) ** 0.5

        mask, strengths = library_draws(theirs.transform, (C, *[4] * num_axes), num_library)
        assert abs(mask.float().mean() - p_per_channel) < 4 * 0.5 * num_library ** -0.5
        mine = step.strength[step.chosen].flatten().numpy()
        if step.transform is ours.low_resolution and ignore_axes:
            mine, strengths = (s.reshape(-1, 3) for s in (mine, strengths))
            assert (mine[:, 0] == 1).all() and (strengths[:, 0] == 1).all()
            assert (mine[:, 1] == mine[:, 2]).all() and (strengths[:, 1] == strengths[:, 2]).all()
            mine, strengths = mine[:, 1], strengths[:, 1]
        if step.transform is ours.gaussian_noise:
            mine = mine[::C]                    # one a sample; see below
        assert ks_2samp(mine, strengths).pvalue > 0.001
        assert mine.min() >= strengths.min() - 0.02 and mine.max() <= strengths.max() + 0.02


def test_what_is_shared_and_what_is_not():
    """As in nnU-Net: one noise level for all channels, one scale for all axes, everything else is drawn anew."""
    N, C = 50, 3
    noise, blur, bright, contrast, low, inverted, gamma = (
        step.strength.unflatten(0, (N, C)) for step in draw_steps(N, C, 3, seeded()))
    assert torch.equal(noise, noise[:, :1].expand(N, C)) and len(noise[:, 0].unique()) == N
    assert len(blur.unique()) > 0.99 * N * C * 3
    assert torch.equal(low, low[..., :1].expand(N, C, 3))
    for values in (bright, contrast, low[..., 0], inverted, gamma):
        assert len(values.unique()) > 0.99 * N * C
        assert np.abs(np.corrcoef(values.T) - np.eye(C)).max() < 0.5
    chosen = draw_steps(2000, C, 3, seeded())
    together = [(s.chosen.view(-1, C)[:, 0] == s.chosen.view(-1, C)[:, 1]).all().item() for s in chosen]
    assert together == [True, False, True, True, False, True, True]


def test_steps_are_drawn_independently():
    chosen = torch.stack([step.chosen for step in draw_steps(20000, 1, 2, seeded())]).float()
    assert np.abs(np.corrcoef(chosen) - np.eye(7)).max() < 0.03


# ----------------------------------------------------------------------------------------------------------------------
# The whole


@pytest.mark.parametrize("shape, ignore_axes", [((24, 1, 18, 23), None), ((24, 3, 18, 23), None),
                                                ((24, 2, 8, 12, 10), None), ((24, 2, 6, 20, 17), (0,))])
def test_batch_equals_batchgeneratorsv2_sample_by_sample(shape, ignore_axes):
    N, C, spatial = shape[0], shape[1], shape[2:]
    images = scans(*shape)
    mine = augment_intensity(images, seeded(3), ignore_axes)

    generator = seeded(3)
    steps = draw_steps(N, C, len(spatial), generator, ignore_axes)
    noisy = steps[0].chosen.nonzero().flatten()
    noise = torch.zeros(N * C, *spatial)
    noise[noisy] = torch.randn(len(noisy), *spatial, generator=generator)
    for n in range(N):
        expected = images[n].clone()
        for step in steps:
            for c in range(C):
                row = n * C + c
                if step.chosen[row]:
                    expected[c] = (expected[c] + step.strength[row] * noise[row]
                                   if step.transform is ours.gaussian_noise
                                   else library(step.transform, expected[c:c + 1], step.strength[row:row + 1])[0])
        torch.testing.assert_close(mine[n], expected, rtol=1e-4, atol=1e-4)
    assert all(step.chosen.any() for step in steps)


def test_augmented_images_have_the_statistics_of_nnunets():
    """Means and deviations of many augmented copies of one image, against nnU-Net's composition itself."""
    image, num_copies = scans(1, 12, 12), 1500
    mine = augment_intensity(image.expand(num_copies, 1, 12, 12), seeded())
    torch.manual_seed(0)
    np.random.seed(0)
    transforms, theirs = nnunet_transforms(), []
    for transform in transforms:
        transform.transform.benchmark = False               # would time two ways to convolve
    for _ in range(num_copies):
        sample = {"image": image.clone()}
        for transform in transforms:
            sample = transform(**sample)
        theirs.append(sample["image"])
    theirs = torch.stack(theirs)
    untouched = [(copies == image).flatten(1).all(1).float().mean().item() for copies in (mine, theirs)]
    assert abs(untouched[0] - untouched[1]) < 0.06          # 4 sigma of the difference, p ≈ 0.3
    for statistic in (torch.mean, torch.std, torch.amax, torch.amin, torch.median):
        # gamma retains the mean but for its last digits, which are no part of the comparison
        one, other = ([round(float(statistic(copy)), 4) for copy in copies] for copies in (mine, theirs))
        assert ks_2samp(one, other).pvalue > 0.001


def test_generator_decides_everything_and_global_state_is_left_alone():
    images = scans(16, 2, 12, 12)
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, again, other = (augment_intensity(images, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all() and random.getstate() == state[2]

    generator = seeded(1)
    assert torch.equal(augment_intensity(images, generator), first)
    assert not torch.equal(augment_intensity(images, generator), first)         # the stream moves on


def test_copies_of_one_image_come_out_different():
    image = scans(1, 1, 4, 4000)                # long, for a short axis has few lower resolutions
    copies = augment_intensity(image.repeat(200, 1, 1, 1), seeded())
    changed = copies[(copies != image).flatten(1).any(1)]
    assert len(changed) > 100 and len(changed.unique(dim=0)) == len(changed)


def test_companions_do_not_matter():
    images = scans(32, 2, 12, 12)
    others = scans(32, 2, 12, 12, seed=9) * 40 + 7
    for keep in (0, 5, 31):
        mixed = others.clone()
        mixed[keep] = images[keep]
        assert torch.equal(augment_intensity(mixed, seeded())[keep], augment_intensity(images, seeded())[keep])


@pytest.mark.parametrize("shape", [(6, 1, 10, 11), (6, 3, 10, 11), (6, 1, 5, 10, 11), (6, 3, 5, 10, 11)])
def test_new_float32_storage_without_gradient(shape):
    images = scans(*shape).requires_grad_()
    before = images.detach().clone()
    for seed in range(5):
        augmented = augment_intensity(images * 1, seeded(seed))
        assert augmented.shape == images.shape and augmented.dtype == torch.float32 and augmented.is_contiguous()
        assert not augmented.requires_grad and torch.isfinite(augmented).all()
        assert augmented.data_ptr() != images.data_ptr()
        augment_intensity(images, seeded(seed)).fill_(0)
    assert torch.equal(images, before)


def test_memory_format_and_precision_of_the_input_do_not_matter():
    images = scans(16, 3, 12, 12).to(torch.bfloat16)
    expected = augment_intensity(images.float(), seeded())
    assert torch.equal(augment_intensity(images, seeded()), expected)
    channels_last = images.float().to(memory_format=torch.channels_last)
    assert torch.equal(augment_intensity(channels_last, seeded()), expected)
    assert torch.equal(augment_intensity(images.float().transpose(2, 3).contiguous().transpose(2, 3), seeded()),
                       expected)


def test_autocast_does_not_lower_the_precision():
    images = scans(32, 1, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        inside = augment_intensity(images, seeded())
    assert torch.equal(inside, augment_intensity(images, seeded()))


@pytest.mark.parametrize("shape", [(12, 12), (1, 12, 12), (1, 1, 4, 4, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        augment_intensity(torch.zeros(shape), seeded())


def test_needs_torch_alone():
    code = ("import sys, nnunet_synth.data.intensity_augmentation; "
            "print([m for m in ('nnunetv2', 'batchgeneratorsv2') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(32, 2, 24, 31), (32, 2, 8, 24, 31)])
def test_gpu_equals_cpu_but_for_the_noise(shape):
    images = scans(*shape)
    noisy = draw_steps(32, 2, len(shape) - 2, seeded())[0].chosen.view(32, 2).any(1)
    on_gpu = augment_intensity(images.cuda(), seeded())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu()[~noisy], augment_intensity(images, seeded())[~noisy], rtol=1e-4, atol=1e-4)
    assert torch.equal(on_gpu, augment_intensity(images.cuda(), seeded()))
    first, again = (augment_intensity(images.cuda(), torch.Generator("cuda").manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, on_gpu)
