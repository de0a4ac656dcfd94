"""Growing: sizes, fade-in, and that generator and discriminator agree on it; the size of the papers' networks."""

import numpy as np
import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.mask_sources.growth import Growth, fade_in, faded
from nnunet_synth.mask_sources.progressive_discriminator import ProgressiveDiscriminator
from nnunet_synth.mask_sources.style_generator import StyleGenerator
from tests.reference.style_gan import average_halved, leaky, nearest_doubled

WIDTHS = (8, 6, 4)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    made = StyleGenerator(2, (4, 5), WIDTHS, latent_size=7, num_mapping_layers=2, mapping_learning_rate=0.01)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)
    return made


@pytest.fixture
def discriminator():
    torch.manual_seed(1)
    return ProgressiveDiscriminator(2, (4, 5), WIDTHS, group_size=2)


def draw(generator, depth, alpha, seed=3):
    style = generator.mapping(torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)))
    return generator(style, depth, alpha, torch.Generator().manual_seed(5))


# ----------------------------------------------------------------------------------------------------------------------
# Depth by image size


@pytest.mark.parametrize("size, max_size, sizes, magnification", [
    ((256, 256), 256, [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (256, 256)], 1),     # the paper
    ((1024, 1024), 256, [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (256, 256)], 4),   # its montages
    ((512, 384), 256, [(8, 6), (16, 12), (32, 24), (64, 48), (128, 96), (256, 192)], 2),    # (4, 3) is too small
    ((64, 96), 256, [(4, 6), (8, 12), (16, 24), (32, 48), (64, 96)], 1),
    ((16, 16), 256, [(4, 4), (8, 8), (16, 16)], 1),
    ((20, 20), 256, [(5, 5), (10, 10), (20, 20)], 1),
    ((320, 320), 256, [(5, 5), (10, 10), (20, 20), (40, 40), (80, 80), (160, 160)], 2),
    ((4, 4), 256, [(4, 4)], 1),
    ((64, 64), 16, [(4, 4), (8, 8), (16, 16)], 4),
])
def test_depth_by_image_size(size, max_size, sizes, magnification):
    growth = Growth.to(size, max_size)
    assert list(growth.sizes) == sizes and growth.magnification == magnification
    assert len(growth) == len(sizes)
    assert tuple(side * magnification for side in growth.sizes[-1]) == size


@pytest.mark.parametrize("size", [(250, 250), (257, 257), (3, 16), (66, 8)])
def test_a_size_that_cannot_grow_is_refused(size):
    with pytest.raises(UserError, match=f"{size[0]} × {size[1]}.*--patch-size") as error:
        Growth.to(size, 256)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------------
# Fade-in


def test_alpha_rises_linearly_over_its_share_of_the_steps():
    assert [fade_in(step, 10, 0.5) for step in (0, 1, 4, 5, 9)] == [0, 0.2, 0.8, 1, 1]
    assert fade_in(0, 10, 0) == 1


@pytest.mark.parametrize("depth", [2, 3])
def test_the_generators_fade_in_is_continuous(generator, depth):
    before, after = draw(generator, depth - 1, 1.0), draw(generator, depth, 1.0)
    start, end, middle = (draw(generator, depth, alpha) for alpha in (0.0, 1.0, 0.25))
    assert before.shape[2:] == tuple(side // 2 for side in after.shape[2:])
    np.testing.assert_array_equal(start.detach().numpy(), nearest_doubled(before.detach().numpy()))
    assert torch.equal(end, after)
    np.testing.assert_allclose(middle.detach().numpy(), (0.75 * start + 0.25 * end).detach().numpy(), atol=1e-6)
    assert not torch.allclose(start, end, atol=1e-2)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_discriminators_fade_in_is_continuous(discriminator, depth):
    """α = 0: it sees the halved mask as the depth before did. α = 1: the old input layer no longer counts."""
    size = {2: (8, 10), 3: (16, 20)}[depth]
    mask = torch.randn(4, 2, *size)
    halved = torch.from_numpy(average_halved(mask.numpy()))
    torch.testing.assert_close(discriminator(mask, depth, 0.0), discriminator(halved, depth - 1, 1.0))
    before = [discriminator(mask, depth, alpha).detach() for alpha in (0.0, 0.5, 1.0)]
    with torch.no_grad():
        discriminator.from_mask[depth - 2].weight.add_(1)
    after = [discriminator(mask, depth, alpha).detach() for alpha in (0.0, 0.5, 1.0)]
    assert torch.equal(before[2], after[2])
    assert not torch.allclose(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_at_depth_one_the_discriminator_is_its_last_layers(discriminator):
    mask = torch.randn(1, 2, 4, 5)
    features = leaky(torch.einsum("oi,nihw->nohw", discriminator.from_mask[0].weight[..., 0, 0]
                                  * discriminator.from_mask[0].scale, mask).detach().numpy())
    seen = []
    discriminator.convolution.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert discriminator(mask, 1).shape == (1,)
    np.testing.assert_allclose(seen[0][:, :8].detach().numpy(), features, rtol=1e-4, atol=1e-5)


def test_real_masks_are_as_blurred_as_a_half_grown_generators():
    real = torch.randn(2, 1, 8, 8)
    assert torch.equal(faded(real, 1.0), real)
    blurred = nearest_doubled(average_halved(real.numpy()))
    np.testing.assert_allclose(faded(real, 0.0).numpy(), blurred, atol=1e-6)
    np.testing.assert_allclose(faded(real, 0.25).numpy(), 0.75 * blurred + 0.25 * real.numpy(), atol=1e-6)


def test_only_the_layers_of_the_present_depth_are_trained(generator, discriminator):
    discriminator(draw(generator, 2, 0.5), 2, 0.5).sum().backward()
    trained = {name for network in (generator, discriminator) for name, parameter in network.named_parameters()
               if parameter.grad is not None and parameter.grad.any()}
    assert {"first.1.convolution.weight", "to_mask.0.weight", "to_mask.1.weight", "from_mask.0.weight", "blocks.0.first"
            ".weight", "constant", "mapping.layers.0.weight", "first.1.noise_strength"} <= trained
    assert not {name for name in trained if name.startswith(("first.2", "second.2", "to_mask.2", "from_mask.2",
                                                             "blocks.1"))}


def test_each_image_has_its_own_style_and_noise(generator):
    drawn = draw(generator, 3, 1.0)
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-2)
    style = generator.mapping(torch.randn(1, 7)).expand(2, -1)
    same_style = generator(style, 3, 1.0, torch.Generator().manual_seed(0))
    assert not torch.allclose(same_style[0], same_style[1], atol=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# The papers' networks


def test_the_paper_presets_networks_have_their_published_size():
    """synthesizers.md §2.3, from StyleGAN's own tables: G 24.0 M + mapping 2.1 M, D 23.0 M at 256²."""
    widths = [min(512, 8192 // 2 ** (depth + 1)) for depth in range(7)]
    assert widths == [512, 512, 512, 512, 256, 128, 64]
    with torch.device("meta"):
        generator = StyleGenerator(1, (4, 4), widths, 512, 8, 0.01)
        discriminator = ProgressiveDiscriminator(1, (4, 4), widths, 4)

    def millions(module):
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    mapping = millions(generator.mapping)
    assert mapping == pytest.approx(2.1, abs=0.05)
    assert millions(generator) - mapping == pytest.approx(24.0, rel=0.05)
    assert millions(discriminator) == pytest.approx(23.0, rel=0.05)
