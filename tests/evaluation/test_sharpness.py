"""Sharpness against slow references, and on images whose sharpness is known."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from nnunet_synth.evaluation.sharpness import high_frequency_share, variance_of_laplacian
from tests.reference import sharpness


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return torch.from_numpy(scipy.ndimage.gaussian_filter(rng.normal(0, 1, (3, 1, 12, 15)), (0, 0, 0.6, 0.6)))


def test_variance_of_laplacian_equals_the_reference_and_scipy(images):
    found = variance_of_laplacian(images).numpy()
    for image, value in zip(images[:, 0].numpy(), found, strict=True):
        assert value == pytest.approx(sharpness.variance_of_laplacian(image), rel=1e-12)
        assert value == pytest.approx(scipy.ndimage.laplace(image, mode="nearest").var(), rel=1e-12)


def test_where_nothing_was_scanned_is_not_judged(images):
    valid = torch.ones(3, 12, 15, dtype=torch.bool)
    valid[0, :4], valid[1, :, 9:], valid[2, 3:7, 5:8] = False, False, False
    found = variance_of_laplacian(images, valid)
    for image, inside, value in zip(images[:, 0].numpy(), valid.numpy(), found, strict=True):
        assert float(value) == pytest.approx(sharpness.variance_of_laplacian(image, inside), rel=1e-12)
    assert float(found[0]) == pytest.approx(variance_of_laplacian(images[:1, :, 4:]).item(), rel=1e-12)
    assert torch.equal(variance_of_laplacian(torch.where(valid[:, None], images, 99.0), valid), found)
    assert variance_of_laplacian(images, torch.zeros_like(valid)).tolist() == [0, 0, 0]


def test_high_frequency_share_equals_the_reference(images):
    found = high_frequency_share(images).numpy()
    for image, value in zip(images[:, 0].numpy(), found, strict=True):
        assert value == pytest.approx(sharpness.high_frequency_share(image, 0.25), rel=1e-9)


def test_each_blur_is_less_sharp_than_the_one_before():
    edges = (np.indices((64, 64)).sum(0) // 16 % 2).astype(float)
    blurred = torch.from_numpy(np.stack([scipy.ndimage.gaussian_filter(edges, sigma) for sigma in (0, 0.5, 1, 2)]))
    for measure in (variance_of_laplacian, high_frequency_share):
        assert (measure(blurred[:, None]).diff() < 0).all()


def test_the_share_depends_on_neither_contrast_nor_brightness(images):
    """What the paper's plain mean of the spectrum would reward."""
    assert torch.allclose(high_frequency_share(images), high_frequency_share(7 * images + 100))
    assert high_frequency_share(torch.full((1, 1, 8, 8), 5.0)).tolist() == [0]


def test_a_wave_is_high_or_low():
    x = torch.arange(64.0)
    for cycles, share in ((0.1, 0.0), (0.4, 1.0)):
        wave = torch.cos(2 * torch.pi * cycles * x).expand(1, 1, 64, 64)
        assert high_frequency_share(wave).item() == pytest.approx(share, abs=0.05)


def test_a_jump_between_opposite_borders_is_no_edge():
    """Without the fading a plain slope would look sharp."""
    slope = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    assert high_frequency_share(slope).item() < 0.02
