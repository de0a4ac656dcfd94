"""pix2pix's U-Net: sizes as published, skips at every level, dropout where and when it belongs."""

import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.unet_generator import UNetGenerator


def number_of_parameters(**options):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNetGenerator(**options).parameters())


@pytest.mark.parametrize(("num_down", "millions"), [(4, 6.2), (5, 16.7), (6, 29.2), (7, 41.8), (8, 54.4)])
def test_as_many_parameters_as_published(num_down, millions):
    """pix2pix has 8 levels, CoSinGAN's stages 4 to 7 (synthesizers.md §4, §5)."""
    number = number_of_parameters(in_channels=1, out_channels=1, width=64, num_down=num_down)
    assert number / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_it_draws_every_multiple_of_its_divisor(norm):
    network = UNetGenerator(2, 3, width=4, num_down=4, norm=norm)
    assert network.divisor == 16
    for height, width in ((16, 16), (32, 48)):
        assert network(torch.randn(2, 2, height, width)).shape == (2, 3, height, width)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_has_a_skip(level):
    """Cut off all that lies deeper: the image still depends on the features of this level, by its skip alone."""
    torch.manual_seed(0)
    network = UNetGenerator(1, 1, width=4, num_down=4, norm="batch").eval()
    # Levels 0 to 2 enter the decoder beside what comes from below; the first layer sees the bottleneck alone.
    assert [layer[0].in_channels for layer in network.up] == [32, 32, 16]
    assert network.to_image.in_channels == 8
    network.down[level + 1].register_forward_hook(lambda module, given, result: result.detach() * 0)
    features = []
    network.down[level].register_forward_hook(lambda module, given, result: features.append(result))
    image = network(torch.randn(1, 1, 32, 32))
    gradient, = torch.autograd.grad(image.sum(), features[0])
    assert features[0].shape[2:] == (16 >> level, 16 >> level) and gradient.abs().sum() > 0


def test_dropout_is_in_the_first_three_decoder_layers_and_only_on_demand():
    torch.manual_seed(0)
    network = UNetGenerator(1, 1, width=4, num_down=6, dropout=0.5).eval()
    without = UNetGenerator(1, 1, width=4, num_down=6).eval()
    without.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(network(x), without(x))
    assert torch.equal(without(x, torch.Generator().manual_seed(0)), without(x))

    state = torch.get_rng_state()
    first, second = (network(x, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(first, network(x, torch.Generator().manual_seed(0))) and not torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())

    outputs = {}
    for number, layer in enumerate(network.up):
        layer.register_forward_pre_hook(lambda module, given, number=number: outputs.__setitem__(number, given[0]))
    network(x, torch.Generator().manual_seed(0))
    # What comes from below is the first half of the channels; ReLU alone would leave about half of it positive.
    shares = [float((outputs[number][:, :outputs[number].shape[1] // 2] == 0).float().mean()) for number in (1, 2, 3)]
    assert all(share > 0.6 for share in shares)
    assert float((outputs[4][:, :outputs[4].shape[1] // 2] == 0).float().mean()) < 0.6


def test_dropout_in_training_can_be_left_out():
    x = torch.randn(1, 1, 32, 32)
    for drops in (True, False):
        network = UNetGenerator(1, 1, width=4, num_down=4, norm="instance", dropout=0.5, drops_in_training=drops)
        assert torch.equal(network(x), network(x)) is not drops


def test_a_bottleneck_of_one_pixel_trains():
    """Instance norm refuses maps of one pixel in train mode: the bottleneck has none."""
    network = UNetGenerator(1, 1, width=4, num_down=4, norm="instance").train()
    assert network(torch.randn(1, 1, 16, 16)).isfinite().all()


def test_an_unknown_norm():
    with pytest.raises(UserError, match="norm 'layer' is unknown"):
        UNetGenerator(1, 1, norm="layer")
