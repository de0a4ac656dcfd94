"""Patch discriminators against the published sizes, and what a patch sees."""

import pytest
import torch

from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator, PatchDiscriminator


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size, outputs", [(256, (35, 19)), (512, (67, 35))])
def test_pix2pixhd(size: int, outputs: tuple[int, int]) -> None:
    """UM + edges + CT in, two scales, 2.76 M parameters each (synthesizers.md §2.2)."""
    with torch.device("meta"):
        discriminator = MultiScaleDiscriminator(3)
        features = discriminator(torch.zeros(1, 3, size, size))
    assert [[layer.shape[1] for layer in scale] for scale in features] == [[64, 128, 256, 512, 1]] * 2
    assert [tuple(scale[-1].shape[2:]) for scale in features] == [(side, side) for side in outputs]
    assert count(discriminator.scales[0]) == pytest.approx(2.76e6, rel=0.002)


def test_pix2pix() -> None:
    """30 × 30 patches of 70 × 70 pixels at 256 × 256 (Isola et al., §3.2)."""
    discriminator = PatchDiscriminator(2, width=4, norm="batch", padding=1).double().eval()
    image = torch.randn(1, 2, 256, 256, dtype=torch.float64, requires_grad=True)
    logits = discriminator(image)[-1]
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    seen = image.grad[0].abs().sum(0) > 0
    assert seen.any(1).sum() == seen.any(0).sum() == 70
    with torch.device("meta"):
        assert count(PatchDiscriminator(2, norm="batch", padding=1)) == pytest.approx(2.76e6, rel=0.002)


def test_cs2() -> None:
    """One scale, four strided layers, the width capped at 8×: 6.96 M (synthesizers.md §3.2)."""
    with torch.device("meta"):
        assert count(PatchDiscriminator(1, num_layers=4)) == pytest.approx(6.96e6, rel=0.002)


def test_the_second_scale_sees_the_averaged_half() -> None:
    discriminator = MultiScaleDiscriminator(1, width=2)
    discriminator.scales[1].load_state_dict(discriminator.scales[0].state_dict())
    image = torch.randn(1, 1, 32, 32)
    half = torch.nn.functional.avg_pool2d(image, 3, stride=2, padding=1, count_include_pad=False)
    assert torch.equal(discriminator(image)[1][-1], discriminator(half)[0][-1])
