"""The shared trunk: published size, resolutions, and what its norms do."""

import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.residual_generator import ResidualTrunk, head


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("width, expected", [(64, 182.4e6), (32, 45.6e6)])
def test_published_number_of_parameters(width: int, expected: float) -> None:
    """pix2pixHD's global generator with 2 channels in, 1 out (synthesizers.md §2.2)."""
    with torch.device("meta"):
        assert count(ResidualTrunk(2, width)) + count(head(width, 1)) == pytest.approx(expected, rel=0.002)


def test_every_stage_halves_or_doubles() -> None:
    trunk = ResidualTrunk(2, width=4, num_down=3, num_blocks=2)
    x = torch.randn(1, 2, 32, 48)
    encoded = trunk.encode(x)
    assert encoded.shape == (1, 32, 4, 6) and trunk.bottleneck_channels == 32
    shapes, y = [], trunk.blocks(encoded)
    for stage in trunk.up:
        y = stage(y)
        shapes.append(tuple(y.shape[1:]))
    assert shapes == [(16, 8, 12), (8, 16, 24), (4, 32, 48)] and trunk.out_channels == 4
    assert torch.equal(trunk(x), y)


@pytest.mark.parametrize("num_down", [1, 2, 4])
def test_the_divisor_is_the_smallest_size_that_works(num_down: int) -> None:
    trunk = ResidualTrunk(1, width=2, num_down=num_down, num_blocks=1)
    assert trunk(torch.randn(1, 1, trunk.divisor, trunk.divisor)).shape[2:] == (trunk.divisor, trunk.divisor)
    with pytest.raises((RuntimeError, ValueError)):
        trunk(torch.randn(1, 1, trunk.divisor // 2, trunk.divisor // 2))


def test_instance_norm_does_not_look_at_companions() -> None:
    trunk = ResidualTrunk(1, width=2, num_down=2, num_blocks=1).train()
    one, other = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    other[0] = one[0]
    torch.testing.assert_close(trunk(one)[0], trunk(other)[0])
    assert (trunk(one)[1] - trunk(other)[1]).abs().max() > 1e-2
    batch = ResidualTrunk(1, width=2, num_down=2, num_blocks=1, norm="batch").train()
    assert (batch(one)[0] - batch(other)[0]).abs().max() > 1e-2
    batch.eval()
    torch.testing.assert_close(batch(one)[0], batch(other)[0])


def test_an_unknown_norm_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="instance, batch"):
        ResidualTrunk(1, norm="layer")
