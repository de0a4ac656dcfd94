"""AdaIN against the slow reference, and the row of numbers that a reference image leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.adain import StyleStatistics, adain, statistics
from tests.reference import cs2 as published

WIDTHS = [3, 4, 6]


def features(number: int, seed: int = 0) -> list[Tensor]:
    """Float64 maps of three levels, each with means and deviations of its own."""
    generator = torch.Generator().manual_seed(seed)

    def level(width: int, size: int) -> Tensor:
        scale = 1 + 3 * torch.rand(number, width, 1, 1, generator=generator, dtype=torch.float64)
        shift = 5 * torch.randn(number, width, 1, 1, generator=generator, dtype=torch.float64)
        return shift + scale * torch.randn(number, width, size, size, generator=generator, dtype=torch.float64)

    return [level(width, 16 // 2 ** number) for number, width in enumerate(WIDTHS)]


def test_it_is_that_of_the_reference() -> None:
    content, style = features(2, seed=0)[0], features(2, seed=1)[0][:, :, :9]      # of another size
    drawn = adain(content, *statistics(style))
    for number in range(2):
        expected = published.adain(content[number].numpy(), style[number].numpy())
        np.testing.assert_allclose(drawn[number].numpy(), expected, atol=1e-10)


def test_the_result_has_the_styles_mean_and_deviation() -> None:
    content, style = features(2, seed=0)[0], features(2, seed=1)[0]
    drawn = adain(content, *statistics(style))
    torch.testing.assert_close(drawn.mean((2, 3)), style.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.std((2, 3)), style.std((2, 3)), rtol=0, atol=1e-5)
    one = adain(content, *statistics(style[:, :1]))                                 # one channel for all
    torch.testing.assert_close(one.mean((2, 3)), style.mean((2, 3))[:, :1].expand(-1, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(one.std((2, 3)), style.std((2, 3))[:, :1].expand(-1, 3), rtol=0, atol=1e-5)


def test_the_contents_own_brightness_and_contrast_do_not_matter() -> None:
    content, style = features(2, seed=0)[0], statistics(features(2, seed=1)[0])
    expected = adain(content, *style)
    torch.testing.assert_close(adain(7 * content - 40, *style), expected, rtol=0, atol=1e-4)
    assert (adain(-content, *style) - expected).abs().max() > 1     # turned around, it is another content


def test_a_channel_without_any_contrast_takes_the_styles_mean() -> None:
    mean, deviation = torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1)
    content = torch.full((1, 1, 4, 4), 0.7, requires_grad=True)
    drawn = adain(content, mean, deviation)
    assert torch.equal(drawn, torch.full((1, 1, 4, 4), 3.0))
    drawn.square().sum().backward()
    assert content.grad.isfinite().all()


def test_half_precision_keeps_its_type_but_not_its_sums() -> None:
    """The variance of 1,000 ± 1 is lost in bfloat16."""
    content = (1000 + torch.randn(1, 2, 64, 64)).to(torch.bfloat16)
    mean, deviation = statistics(content)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(deviation, content.double().std((2, 3), keepdim=True).float(), rtol=1e-3, atol=0)
    assert adain(content, mean, deviation).dtype == torch.bfloat16


# ----------------------------------------------------------------------------------------------------------------------
# What is kept of a reference


def test_every_channel_of_every_level() -> None:
    styles, reference = StyleStatistics(WIDTHS), features(2)
    rows = styles(reference)
    assert rows.shape == (2, styles.num_values) == (2, 2 * sum(WIDTHS))
    for level, part in enumerate(reference):
        mean, deviation = styles.at(rows, level)
        torch.testing.assert_close(mean, part.mean((2, 3), keepdim=True))
        expected = [[published.mean_and_deviation(channel.numpy())[1] for channel in one] for one in part]
        torch.testing.assert_close(deviation[:, :, 0, 0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("only_deepest", [False, True])
def test_one_mixed_channel(only_deepest: bool) -> None:
    styles, reference = StyleStatistics(WIDTHS, "scalar", only_deepest).double(), features(2)
    rows = styles(reference)
    assert rows.shape == (2, styles.num_values) == (2, 2 if only_deepest else 6)
    assert len(list(styles.parameters())) == (2 if only_deepest else 6)
    for level in range(3):
        source = 2 if only_deepest else level
        layer = styles.mix[str(source)]
        for number in range(2):
            mixed = published.convolved_1x1(reference[source][number].numpy(), layer.weight.detach().numpy(),
                                            layer.bias.detach().numpy())
            expected = published.mean_and_deviation(mixed[0])
            found = [part[number].item() for part in styles.at(rows, level)]
            np.testing.assert_allclose(found, expected, atol=1e-10)


def test_an_unknown_pool_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="channel, scalar"):
        StyleStatistics(WIDTHS, "max")
