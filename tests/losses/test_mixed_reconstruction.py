"""CoSinGAN's reconstruction loss: WPPL by hand, MS-SSIM at every scale against NumPy, and no kornia."""

import sys

import numpy as np
import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.losses.mixed_reconstruction import (
    MultiScaleSSIMLoss,
    equal_weights,
    wang_exponents,
    weighted_pixel_loss,
    zhao_sigmas,
)
from nnunet_synth.losses.reconstruction import perceptual_loss
from tests.reference import cosingan as reference

WEIGHTS = {0: 0.1, 1: 0.5, 2: 1.0}


def test_weighted_pixels_by_hand():
    """Three pixels, one of each class, off by 1, 2 and 3: (0.1 · 1 + 0.5 · 2 + 1 · 3) / 3."""
    semantic = torch.tensor([[[0, 1, 2]]])
    fake, real = torch.tensor([[[[1.0, -2.0, 4.0]]]]), torch.tensor([[[[0.0, 0.0, 1.0]]]])
    loss = weighted_pixel_loss(fake, real, semantic, torch.tensor(list(WEIGHTS.values())))
    assert loss.item() == pytest.approx((0.1 + 1.0 + 3.0) / 3)


def test_weighted_pixels_against_numpy_over_batch_and_channels():
    rng = np.random.default_rng(0)
    semantic, fake, real = rng.integers(0, 3, (2, 5, 4)), rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 5, 4))
    expected = np.mean([[reference.weighted_pixel_loss(semantic[n], fake[n, c], real[n, c], WEIGHTS)
                         for c in range(3)] for n in range(2)])
    loss = weighted_pixel_loss(torch.tensor(fake), torch.tensor(real), torch.tensor(semantic),
                               torch.tensor(list(WEIGHTS.values())))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# MS-SSIM


def pair(size, channels=1):
    """Two images that look alike, in [−1, 1], [1, C, size, size] float32."""
    rng = np.random.default_rng(size)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(channels, size, size)), 1), 2)
    x = np.tanh(smooth / np.abs(smooth).max() * 2)
    y = np.clip(x + rng.normal(0, 0.1, x.shape), -1, 1)
    return torch.tensor(x[None], dtype=torch.float32), torch.tensor(y[None], dtype=torch.float32)


def test_as_many_gaussians_as_the_scale_can_hold():
    assert [len(zhao_sigmas(size)) for size in reference.SCALES] == [3, 4, 4, 5, 5, 5, 5, 5, 5]
    assert zhao_sigmas(512) == (0.5, 1, 2, 4, 8) and zhao_sigmas(16)


def test_as_many_levels_as_torchmetrics_allows():
    assert [len(wang_exponents(size)) for size in reference.SCALES] == [2, 3, 3, 3, 4, 5, 5, 5, 5]
    assert all(sum(wang_exponents(size)) == pytest.approx(1) for size in reference.SCALES)


@pytest.mark.parametrize("size", [32, 48, 64, 96, 128])
@pytest.mark.parametrize("form", ["zhao", "wang"])
def test_ms_ssim_against_numpy(form, size):
    pytest.importorskip("kornia" if form == "zhao" else "torchmetrics")
    fake, real = pair(size)
    x, y = (image[0, 0].double().numpy() for image in (fake, real))
    expected = reference.zhao_ms_ssim_loss(x, y, zhao_sigmas(size)) if form == "zhao" else \
        reference.wang_ms_ssim_loss(x, y, wang_exponents(size))
    assert 0.01 < expected < 1
    assert MultiScaleSSIMLoss(size, form)(fake, real).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [32, 48, 64, 96])
@pytest.mark.parametrize("form", ["zhao", "wang"])
def test_the_same_image_costs_nothing_and_another_one_has_a_gradient(form, size):
    pytest.importorskip("kornia" if form == "zhao" else "torchmetrics")
    loss = MultiScaleSSIMLoss(size, form)
    fake, real = pair(size)
    assert loss(real, real).item() == pytest.approx(0, abs=1e-6)
    assert loss(fake.requires_grad_(), real) > 0.01
    gradient, = torch.autograd.grad(loss(fake, real), fake)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_from_96_on_the_loss_is_the_same_at_every_scale():
    pytest.importorskip("kornia")
    masks = [MultiScaleSSIMLoss(size).zhao._g_masks for size in reference.SCALES[3:]]
    assert all(torch.equal(mask, masks[0]) for mask in masks) and masks[0].shape[-2:] == (33, 33)


def test_channels_count_alike():
    pytest.importorskip("kornia")
    fake, real = pair(32, channels=2)
    loss = MultiScaleSSIMLoss(32)
    each = [loss(fake[:, index:index + 1], real[:, index:index + 1]).item() for index in range(2)]
    assert each[0] != pytest.approx(each[1], rel=1e-3) and loss(fake, real).item() == pytest.approx(np.mean(each))


def test_opposed_images_still_have_a_gradient_in_the_form_that_is_the_default():
    pytest.importorskip("kornia")
    _, real = pair(32)
    fake = (-real).requires_grad_()
    gradient, = torch.autograd.grad(MultiScaleSSIMLoss(32)(fake, real), fake)
    assert gradient.abs().sum() > 0


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(UserError, match="ms_ssim 'mine' is unknown; known: zhao, wang"):
        MultiScaleSSIMLoss(32, "mine")
    monkeypatch.setitem(sys.modules, "kornia.losses", None)
    with pytest.raises(UserError, match=r"needs kornia.*pip install 'nnunet_synth\[cosingan\]', or leave it out"):
        MultiScaleSSIMLoss(32)


# ----------------------------------------------------------------------------------------------------------------------
# Features


def test_the_segmentation_networks_features_count_alike():
    """Eq. 9: Σ_k γ_k / P_k ‖F_k(X) − F_k(O)‖₁ with γ_k = 1 / K."""
    rng = np.random.default_rng(1)
    real = [torch.tensor(rng.normal(size=(1, 2 ** k, 8 >> k, 8 >> k))) for k in range(3)]
    fake = [torch.tensor(rng.normal(size=tap.shape)) for tap in real]
    expected = sum(np.abs(x.numpy() - y.numpy()).sum() / x.numel() / 3 for x, y in zip(real, fake, strict=True))
    assert perceptual_loss(real, fake, equal_weights(real)).item() == pytest.approx(expected, rel=1e-5)
