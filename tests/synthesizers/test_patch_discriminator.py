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


@pytest.mark.parametrize("options", [{}, {"widened": False, "num_layers": 2}, {"padding": 1, "num_layers": 2}])
def test_a_patchs_value_goes_to_the_pixel_in_its_middle(options: dict[str, int]) -> None:
    """The centre of what each logit sees, found by its gradient under equal weights, against `to_pixels`."""
    plain = torch.nn.ModuleList()
    discriminator = PatchDiscriminator(1, width=2, **options).double().eval()
    for layer in discriminator.layers:      # equal weights and no norm: each logit is a mean over what it sees
        convolution = layer[0] if isinstance(layer, torch.nn.Sequential) else layer
        torch.nn.init.constant_(convolution.weight, 1 / convolution.weight[0].numel())
        plain.append(convolution)
    image = torch.zeros(1, 1, 96, 96, dtype=torch.float64, requires_grad=True)
    x = image
    for convolution in plain:
        x = convolution(x)
    rows = range(x.shape[2] // 2 - 1, x.shape[2] // 2 + 2)          # away from the border
    centres = []
    for row in rows:
        gradient, = torch.autograd.grad(x[0, 0, row, x.shape[3] // 2], image, retain_graph=True)
        mass = gradient[0, 0].sum(1)
        centres.append(float((mass * torch.arange(96)).sum() / mass.sum()))
    # A ramp of patch numbers must read, at a pixel, the number of the patch that is centred there.
    ramp = torch.arange(x.shape[2], dtype=torch.float32)[:, None].expand(-1, x.shape[3])[None, None]
    at_pixels = discriminator.to_pixels(ramp, 96, 96)[0, 0, :, 48]
    for row, centre in zip(rows, centres, strict=True):
        below = int(centre)
        read = at_pixels[below] + (centre - below) * (at_pixels[below + 1] - at_pixels[below])
        assert float(read) == pytest.approx(row, abs=1e-4)
    assert discriminator.first_centre + rows[0] * discriminator.stride == pytest.approx(centres[0], abs=1e-6)


def test_confidence_of_both_scales_lies_where_the_answers_do() -> None:
    discriminator = MultiScaleDiscriminator(1, width=2)
    features = discriminator(torch.randn(2, 1, 64, 64))
    for number, layers in enumerate(features):      # high on the left of the first image, in both scales
        layers[-1].fill_(-5)
        middle = (32 / 2 ** number - discriminator.scales[number].first_centre) / discriminator.scales[number].stride
        layers[-1][0, :, :, :round(middle)] = 5
    confidence = discriminator.confidence(features, 64, 64, torch.sigmoid)
    assert confidence.shape == (2, 64, 64)
    # Last high and first low patch: of the image, at columns 20.5 and 28.5; of its half, at 9 and 25.
    assert (confidence[0, :, :9] > 0.9).all() and (confidence[0, :, 29:] < 0.1).all()
    assert (confidence[0, :, 9:20].diff(dim=1) < 0).all() and (confidence[0, :, 12] > 0.5).all()
    assert (confidence[1] - torch.tensor(-5.0).sigmoid()).abs().max() < 1e-5
