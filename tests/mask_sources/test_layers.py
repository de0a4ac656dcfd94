"""StyleGAN's layers against NumPy twins."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d

from nnunet_synth.mask_sources.layers import (
    AdaIN,
    EqualisedConv2d,
    EqualisedLinear,
    StyledLayer,
    append_deviation,
    pixel_norm,
    smooth,
)
from nnunet_synth.mask_sources.style_generator import Mapping
from tests.reference import style_gan


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_equalised_learning_rate_linear():
    layer = EqualisedLinear(5, 3, gain=1.7, learning_rate=0.01, bias=0.5)
    x = torch.randn(4, 5)
    expected = style_gan.equalised_linear(x.numpy(), *(part.detach().numpy() for part in (layer.weight, layer.bias)),
                                          gain=1.7, learning_rate=0.01)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(expected.mean(), 0.5, atol=2)        # the bias starts at its value


@pytest.mark.parametrize("make, fan_in", [(lambda: EqualisedLinear(400, 300), 400),
                                          (lambda: EqualisedLinear(400, 300, learning_rate=0.01), 400),
                                          (lambda: EqualisedConv2d(40, 60, 3), 360)])
def test_weights_are_stored_alike_and_used_with_hes_constant(make, fan_in):
    layer = make()
    rate = getattr(layer, "learning_rate", 1.0)
    assert layer.weight.std().item() == pytest.approx(1 / rate, rel=0.02)
    assert layer.scale == pytest.approx(style_gan.equalised_scale(fan_in) * rate)
    x = torch.randn(8, 400) if fan_in == 400 else torch.randn(8, 40, 12, 12)
    # He: a LeakyReLU layer's output keeps the variance, gain² = 2 times that of the input before the activation.
    inside = layer(x) if fan_in == 400 else layer(x)[..., 1:-1, 1:-1]
    assert inside.var().item() == pytest.approx(2, rel=0.1)


def test_adam_moves_a_layer_by_its_learning_rate():
    """What `learning_rate` is for: the function changes by as much less with the same optimizer."""
    moves = []
    for rate in (1.0, 0.01):
        layer = EqualisedLinear(3, 1, learning_rate=rate)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        x = torch.ones(1, 3)
        before = layer(x).item()
        layer(x).sum().backward()
        optimizer.step()
        moves.append(layer(x).item() - before)
    assert moves[1] / moves[0] == pytest.approx(0.01, rel=1e-3)


def test_mapping():
    network = Mapping(6, num_layers=3, learning_rate=0.01)
    z = torch.randn(4, 6) * 5
    layers = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in network.layers]
    np.testing.assert_allclose(network(z).detach().numpy(), style_gan.mapping(z.numpy(), layers), rtol=1e-4, atol=1e-5)
    # The length of z does not matter, its direction does.
    torch.testing.assert_close(network(z), network(z * 3), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(z), network(-z), atol=0.1)


def test_pixel_norm():
    x = torch.randn(3, 7)
    np.testing.assert_allclose(pixel_norm(x).numpy(), style_gan.pixel_norm(x.numpy()), rtol=1e-5)


def test_adain():
    layer = AdaIN(4, style_size=3)
    x, style = torch.randn(2, 4, 5, 6) * 3 + 1, torch.randn(2, 3)
    scale, shift = layer.style(style).detach().numpy().reshape(2, 2, 4).transpose(1, 0, 2)
    expected = style_gan.adain(x.numpy(), 1 + scale, shift)
    np.testing.assert_allclose(layer(x, style).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    # An affine change of the content is undone; each image has its own statistics.
    changed = torch.stack([x[0] * 5 - 2, x[1]])
    torch.testing.assert_close(layer(changed, style), layer(x, style), rtol=1e-4, atol=1e-5)


def test_noise_is_one_map_for_all_channels_times_their_strengths():
    layer = StyledLayer(None, 3, style_size=2)
    seen = []
    layer.adain.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x, style = torch.zeros(2, 3, 4, 4), torch.randn(2, 2)
    layer(x, style)
    assert not seen[0].any()                                    # strength 0 at the start
    with torch.no_grad():
        layer.noise_strength[:, 0, 0] = torch.tensor([1.0, 2.0, 0.0])
    layer(x, style, torch.Generator().manual_seed(1))
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    for channel, strength in enumerate((1.0, 2.0, 0.0)):
        expected = style_gan.leaky(noise.numpy()[:, 0] * strength)
        np.testing.assert_allclose(seen[1][:, channel].detach().numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("number, group_size", [(8, 4), (4, 4), (6, 3), (3, 3), (5, 1), (1, 1)])
def test_minibatch_deviation(number, group_size):
    """A group of 4 where 4 divides the batch, else the largest divisor below (6 → 3, 5 → 1)."""
    x = torch.randn(number, 3, 2, 5)
    out = append_deviation(x, group_size=4)
    expected = style_gan.minibatch_deviation(x.double().numpy(), group_size)
    assert torch.equal(out[:, :3], x)
    np.testing.assert_allclose(out[:, 3].numpy(), np.broadcast_to(expected[:, None, None], (number, 2, 5)), rtol=1e-5,
                               atol=1e-6)


def test_a_batch_of_one_mask_repeated_has_no_deviation():
    assert append_deviation(torch.randn(1, 3, 4, 4).expand(4, -1, -1, -1))[:, 3].max() < 1e-3


def test_smooth_repeats_the_border():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = x.numpy()
    for axis in (-2, -1):
        expected = convolve1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    np.testing.assert_allclose(smooth(x).numpy(), expected, rtol=1e-12)
