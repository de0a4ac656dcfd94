"""Noise levels: BM3D against its slow twin, and both denoisers on images whose noise is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_synth.quality import noise
from nnunet_synth.quality.noise import denoise_bm3d, guess_sigma, noise_level_bm3d, noise_level_nlm
from tests.reference import noise as reference


@pytest.fixture
def clean():
    """Smooth areas with sharp borders between them, 96 × 96 in 0…1."""
    rng = np.random.default_rng(0)
    areas = gaussian_filter(rng.normal(0, 1, (96, 96)), 8)
    return np.select([areas > 0.02, areas < -0.02], [0.8, 0.2], 0.5) + np.linspace(-0.1, 0.1, 96)


def test_bm3d_equals_the_slow_one(clean):
    image = clean[:21, :25] + np.random.default_rng(1).normal(0, 0.05, (21, 25))
    expected = reference.denoise_bm3d(image, 0.05, noise.BLOCK, noise.GROUP, noise.SEARCH, noise.STEP,
                                      noise.THRESHOLD)
    assert abs(expected - image).max() > 0.03
    np.testing.assert_allclose(denoise_bm3d(image, 0.05), expected, rtol=0, atol=1e-10)


def test_bm3d_in_parts_is_the_same(clean, monkeypatch):
    whole = denoise_bm3d(clean[:40, :40], 0.05)
    monkeypatch.setattr(noise, "CHUNK", 7)
    np.testing.assert_allclose(denoise_bm3d(clean[:40, :40], 0.05), whole, atol=1e-12)


def test_bm3d_brings_the_image_nearer_to_the_clean_one(clean):
    noisy = clean + np.random.default_rng(1).normal(0, 0.1, clean.shape)
    assert ((denoise_bm3d(noisy, 0.1) - clean) ** 2).mean() < 0.2 * ((noisy - clean) ** 2).mean()


@pytest.mark.parametrize("level, least", [(noise_level_nlm, 0.75), (noise_level_bm3d, 0.75), (guess_sigma, 0.9)])
@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_the_level_is_that_of_the_noise(clean, level, least, sigma):
    """Along borders the denoisers leave some of it."""
    noisy = clean + np.random.default_rng(2).normal(0, sigma, clean.shape)
    assert least * sigma < level(noisy) < 1.1 * sigma


@pytest.mark.parametrize("level", [noise_level_nlm, noise_level_bm3d])
def test_borders_between_areas_are_no_noise(clean, level):
    assert clean.std() > 0.2 and level(clean) < 0.002
    assert level(np.full((16, 16), 3.0)) == 0


def test_what_a_window_cut_off_does_not_hide_the_noise(clean):
    noisy = clean + np.random.default_rng(2).normal(0, 0.05, clean.shape)
    noisy[:, :60] = 0
    assert guess_sigma(noisy) == pytest.approx(0.05, rel=0.15)


def test_flat_areas_have_a_value_and_no_noise(clean):
    """Air, cut off by a window: more equal blocks than a group takes."""
    noisy = clean + np.random.default_rng(0).normal(0, 0.05, clean.shape)
    noisy[:, :30] = 0
    found = denoise_bm3d(noisy, guess_sigma(noisy))
    assert np.isfinite(found).all() and np.abs(found[:, :20]).max() < 1e-9
    assert 0.02 < noise_level_bm3d(noisy) < 0.05
