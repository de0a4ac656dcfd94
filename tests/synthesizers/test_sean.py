"""SEAN against the published form (`tests/reference/sean.py`), its style pool against planted data, and what must not
happen when it draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import ace
from nnunet_synth.synthesizers.ace import FoldedLabels, PatternLabels
from nnunet_synth.synthesizers.base import Slices, StyleOptions, SynthMeta, SynthRequest
from nnunet_synth.synthesizers.blocks import add_spectral_norm, fold_spectral_norm
from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator
from nnunet_synth.synthesizers.pretrain import pretrain
from nnunet_synth.synthesizers.sean import SEAN, Decoder, SEANConfig
from nnunet_synth.synthesizers.semantic import SemanticClasses
from tests.reference import sean as published
from tests.synthesizers.test_pretrain import interrupted_after

NUM_CLASSES = 4
SMALL = SEANConfig(ngf=2, num_upsamplings=3, style_dim=8, spade_hidden=6, encoder_width=2, ndf=4, batch_size=2)


def build(config: SEANConfig = SMALL, seed: int = 0, **meta: Any) -> SEAN:
    """A SEAN in eval mode whose every weight, blend, noise strength and running statistic is random."""
    semantic = SemanticClasses.from_labels({"infection": 1}, {"left_lung": 1, "right_lung": 2})
    defaults = {"synthesizer": "sean", "config": {}, "dataset": "Dataset001_Test", "channel_names": ["CT"],
                "semantic": semantic, "target_labels": [1], "intensity_range": [[-3.0, 2.0]], "patch_size": [32, 32],
                "divisor": 8, "fold": 0, "train_case_ids": ["case"]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sean = SEAN.build(SynthMeta(**{**defaults, **meta}), config)
        randomise(sean)
    return sean.eval()


def randomise(sean: nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in sean.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 16
                # Small enough that no tanh saturates: a saturated output would hide any difference.
                tensor.normal_(0, 0.7 * fan_in ** -0.5)


def labels(number: int, height: int, width: int, seed: int = 0, num_classes: int = NUM_CLASSES) -> Tensor:
    """[N, H, W] regions with straight, ragged and one-pixel borders, some of them at the image's edge."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((number, height, width), np.int64)
    for one in maps:
        for _ in range(6):
            top, left = rng.integers(height), rng.integers(width)
            one[top:top + rng.integers(1, height), left:left + rng.integers(1, width)] = rng.integers(num_classes)
        speckle = rng.random((height, width)) < 0.02
        one[speckle] = rng.integers(num_classes, size=speckle.sum())
    return torch.from_numpy(maps)


def weights_of(sean: SEAN) -> dict[str, Tensor]:
    return {name.removeprefix("generator."): tensor for name, tensor in sean.export_state().items()}


def noise_maps(decoder: Decoder, noise: Tensor, height: int, width: int) -> list[Tensor]:
    """Noise cut by hand: levels coarse to fine; 2, 4, then 3 maps a level."""
    maps, start = [], 0
    for level in range(decoder.num_upsamplings + 1):
        rows, columns = (size // 2 ** (decoder.num_upsamplings - level) for size in (height, width))
        for _ in range({0: 2, 1: 4}.get(level, 3)):
            maps.append(noise[:, start:start + rows * columns].reshape(-1, 1, rows, columns))
            start += rows * columns
    assert start <= noise.shape[1]
    return maps


# ----------------------------------------------------------------------------------------------------------------------
# The three forms of the decoder


@pytest.mark.parametrize("config", [
    SMALL,
    replace(SMALL, num_upsamplings=5, ngf=1),
    replace(SMALL, num_upsamplings=2),
    replace(SMALL, style_fc="shared"),
], ids=["3 upsamplings", "5 upsamplings", "2 upsamplings", "shared fc"])
@pytest.mark.parametrize("form", [FoldedLabels, PatternLabels])
def test_decoder_equals_the_published_one(config: SEANConfig, form: type) -> None:
    sean = build(config).double()
    decoder, semantic = sean.generator.decoder, labels(2, 64, 96)
    codes = torch.randn(1, NUM_CLASSES, config.style_dim, dtype=torch.float64)
    noise = torch.randn(2, decoder.noise_size(64, 96), dtype=torch.float64)
    with torch.no_grad():
        drawn = decoder.decode(semantic, codes, noise, form.of)
        expected = published.draw(weights_of(sean), config.num_upsamplings, semantic, codes.expand(2, -1, -1),
                                  noise_maps(decoder, noise, 64, 96))
    assert expected.std() > 0.02
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-10)


def test_labels_of_noise_are_not_tabulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their table would be larger than the image; the answer is the same."""
    decoder = build().double().generator.decoder
    semantic, codes = torch.randint(NUM_CLASSES, (1, 32, 32)), torch.randn(1, NUM_CLASSES, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = decoder(semantic, codes, None)
        monkeypatch.setattr(ace, "MAX_PATTERNS", 200)
        forms = [type(ace.labels_for(level, NUM_CLASSES, codes.dtype, is_shared=True))
                 for level in decoder.levels_of(semantic)]
        assert forms == [PatternLabels, PatternLabels, FoldedLabels, FoldedLabels]
        torch.testing.assert_close(decoder(semantic, codes, None), expected, rtol=0, atol=1e-10)


def test_each_image_can_have_codes_of_its_own() -> None:
    sean = build().double()
    semantic, codes = labels(3, 32, 32), torch.randn(3, NUM_CLASSES, 8, dtype=torch.float64)
    with torch.no_grad():
        drawn = sean.generator.decoder(semantic, codes, None)
        expected = published.draw(weights_of(sean), 3, semantic, codes)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-10)


def test_float32_stays_within_1e_5_of_the_published_form() -> None:
    sean = build(replace(SMALL, ngf=8, style_dim=32, spade_hidden=16))
    semantic, codes = labels(1, 128, 128), torch.randn(1, NUM_CLASSES, 32)
    weights = {name: tensor.double() for name, tensor in weights_of(sean).items()}
    with torch.no_grad():
        exact = published.draw(weights, 3, semantic, codes.double())
        for form in (FoldedLabels, PatternLabels):
            drawn = sean.generator.decoder.decode(semantic, codes, None, form.of)
            torch.testing.assert_close(drawn.double(), exact, rtol=0, atol=1e-5)


def test_bfloat16_autocast_stays_close() -> None:
    sean = build(replace(SMALL, ngf=8, style_dim=32, spade_hidden=16))
    semantic, codes = labels(2, 64, 64), torch.randn(1, NUM_CLASSES, 32)
    with torch.no_grad():
        exact = sean.generator.decoder(semantic, codes, None)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drawn = sean.generator.decoder(semantic, codes, None)
            own_codes = sean.generator.encoder(exact, sean.meta.semantic.one_hot(semantic), semantic >= 0)
    assert drawn.dtype == torch.bfloat16 and own_codes.dtype == torch.float32
    assert (drawn.float() - exact).square().mean().sqrt() < 0.05 * exact.std()


def test_the_training_form_has_the_published_gradients() -> None:
    sean = build().double()
    semantic, codes = labels(2, 32, 32), torch.randn(2, NUM_CLASSES, 8, dtype=torch.float64)
    weighting = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    ours, theirs = codes.clone().requires_grad_(), codes.clone().requires_grad_()
    (sean.generator.decoder(semantic, ours, None) * weighting).sum().backward()
    weights = {name: tensor.requires_grad_(tensor.is_floating_point()) for name, tensor in weights_of(sean).items()}
    (published.draw(weights, 3, semantic, theirs) * weighting).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)
    for name, parameter in sean.generator.decoder.named_parameters():
        expected = weights[f"decoder.{name}"].grad
        if expected is not None:            # noise strengths have none here
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-10)


def test_renumbering_the_classes_changes_nothing() -> None:
    sean, permuted = build().double(), build().double()
    order = torch.tensor([2, 0, 3, 1])      # new class k is old class order[k]
    with torch.no_grad():
        for name, tensor in permuted.generator.decoder.named_parameters():
            if name.endswith(("seed.weight", "spade_hidden.weight")):
                tensor.copy_(tensor[:, order].clone())
        for module in permuted.modules():
            if hasattr(module, "style_fc"):
                module.style_fc.layers = nn.ModuleList(module.style_fc.layers[k] for k in order)
        semantic, codes = labels(2, 32, 32), torch.randn(1, NUM_CLASSES, 8, dtype=torch.float64)
        drawn = sean.generator.decoder(semantic, codes, None)
        again = permuted.generator.decoder(torch.argsort(order)[semantic], codes[:, order], None)
    torch.testing.assert_close(again, drawn, rtol=0, atol=1e-10)


# ----------------------------------------------------------------------------------------------------------------------
# Where a style reaches


def reach(semantic: Tensor, index: int, num_upsamplings: int) -> Tensor:
    """[H, W] bool: the pixels that class `index`'s style can touch, by spreading marks through the architecture with
    every weight taken as positive."""
    def spread(marks: Tensor) -> Tensor:
        return F.max_pool2d(marks.double()[None, None], 3, stride=1, padding=1)[0, 0] > 0

    marks = None
    for level in range(num_upsamplings + 1):
        every = 2 ** (num_upsamplings - level)
        is_styled = level < num_upsamplings
        touched = spread(semantic[::every, ::every] == index) & is_styled
        if marks is None:
            marks = torch.zeros_like(touched)
        else:
            marks = marks.repeat_interleave(2, 0).repeat_interleave(2, 1)
        for _ in range(2 if level == 1 else 1):
            branch = spread(spread(marks | touched) | touched)
            marks = branch | (marks if level <= 1 else marks | touched)     # a learned shortcut has an ACE too
    return spread(marks)


@pytest.mark.parametrize("form", [FoldedLabels, PatternLabels])
def test_a_style_stays_near_its_class(form: type) -> None:
    config = replace(SMALL, ngf=1, num_upsamplings=5)
    decoder = build(config).double().generator.decoder
    semantic = torch.zeros(1, 64, 1024, dtype=torch.int64)
    semantic[:, :, 512:] = 1
    semantic[:, 20:44, 30:60] = 3
    codes = torch.randn(1, NUM_CLASSES, 8, dtype=torch.float64)
    changed_codes = codes.clone()
    changed_codes[:, 3] += 1
    with torch.no_grad():
        before, after = (decoder.decode(semantic, which, None, form.of)[0, 0] for which in (codes, changed_codes))
    changed, support = before != after, reach(semantic[0], 3, 5)
    assert 200 < support.any(0).sum() < 400         # the probe is no tautology: the strip is 1024 wide
    assert changed[20:44, 30:60].any()
    assert not (changed & ~support).any()


def test_batch_statistics_would_carry_a_style_everywhere() -> None:
    """The negative control: what the test above would see if someone forgot eval()."""
    decoder = build(replace(SMALL, ngf=1, num_upsamplings=5)).double().generator.decoder.train()
    semantic = torch.zeros(1, 64, 1024, dtype=torch.int64)
    semantic[:, 20:44, 30:60] = 3
    codes = torch.randn(1, NUM_CLASSES, 8, dtype=torch.float64)
    changed_codes = codes.clone()
    changed_codes[:, 3] += 1
    with torch.no_grad():
        before, after = (decoder(semantic, which, None)[0, 0] for which in (codes, changed_codes))
    assert ((before != after) & ~reach(semantic[0], 3, 5)).any()


def test_the_style_of_an_absent_class_changes_nothing() -> None:
    decoder = build().generator.decoder
    semantic = labels(2, 32, 32, num_classes=3)
    codes = torch.randn(1, NUM_CLASSES, 8)
    changed_codes = codes.clone()
    changed_codes[:, 3] = 100
    with torch.no_grad():
        for form in (FoldedLabels, PatternLabels):
            before, after = (decoder.decode(semantic, which, None, form.of) for which in (codes, changed_codes))
            assert (before - after).abs().max() == 0.0


def test_uniform_maps_of_different_classes_differ() -> None:
    """What instance norm would wash out (SPADE §3.1): far from the border a uniform map has uniform features."""
    decoder = build().generator.decoder
    codes = torch.randn(1, NUM_CLASSES, 8)
    with torch.no_grad():
        images = decoder(torch.arange(NUM_CLASSES)[:, None, None].expand(-1, 128, 128), codes, None)[:, 0, 56:72, 56:72]
    for one in range(NUM_CLASSES):
        for other in range(one):
            assert (images[one] - images[other]).abs().min() > 1e-3


# ----------------------------------------------------------------------------------------------------------------------
# The style encoder


def test_encoder_equals_a_loop_over_regions() -> None:
    sean = build().double()
    semantic, image = labels(3, 32, 48), torch.rand(3, 1, 32, 48, dtype=torch.float64) * 2 - 1
    semantic[0][semantic[0] == 3] = 0
    valid = torch.rand(3, 32, 48) > 0.2
    with torch.no_grad():
        codes = sean.generator.encoder(image, sean.meta.semantic.one_hot(semantic, torch.float64), valid)
    expected = published.style_codes(weights_of(sean), image, semantic, valid, NUM_CLASSES)
    torch.testing.assert_close(codes, expected, rtol=0, atol=1e-12)
    assert (codes[0, 3] == 0).all() and (codes[1:].abs().sum(-1) > 0).any()


def test_pixels_that_are_not_valid_have_no_say() -> None:
    sean = build()
    semantic, image = labels(1, 32, 32), torch.rand(1, 1, 32, 32) * 2 - 1
    valid = torch.ones(1, 32, 32, dtype=torch.bool)
    valid[:, :, 20:] = False
    one_hot = sean.meta.semantic.one_hot(semantic)
    scribbled_image = torch.where(valid[:, None], image, torch.rand_like(image))
    scribbled_labels = sean.meta.semantic.one_hot(torch.where(valid, semantic, 3 - semantic))
    with torch.no_grad():
        codes = sean.generator.encoder(image, one_hot, valid)
        again = sean.generator.encoder(scribbled_image, scribbled_labels, valid)
    assert torch.equal(codes, again)


# ----------------------------------------------------------------------------------------------------------------------
# The pool


class PlantedSlices:
    """Slice i shows a lesion of intensity i / 100 and of side `sides[i]`; records what it is asked."""

    def __init__(self, sides: list[int], height: int = 40, width: int = 56) -> None:
        self.asked: list[tuple[bool, int | None]] = []
        self.slices = []
        for number, side in enumerate(sides):
            label = torch.zeros(1, height, width, dtype=torch.int64)
            label[:, 8:8 + side, 8:8 + side] = 1
            layout = torch.zeros_like(label)
            layout[:, :, :width // 2] = 1
            image = torch.where(label > 0, number / 100, -0.7)[:, None] + 0.01 * torch.arange(width)
            self.slices.append(Slices(image, label, layout, torch.ones_like(label, dtype=torch.bool),
                                      [("case", number)]))

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        raise AssertionError("the pool is made of whole slices, not of random crops")

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        self.asked.append((only_targets, max_slices))
        yield from (one for one in self.slices if one.label.any() or not only_targets)


# Half-resolution pixels: side 8 → 16, just enough; side 7 → 16 (from 8 on, every other pixel); side 6 → 9.
SIDES = [0, 8, 0, 6, 12, 2, 20, 1, 7, 0]
INFECTED_ENOUGH = [1, 4, 6, 8]


def test_pool_holds_the_slices_with_enough_of_a_target() -> None:
    sean = build()
    source = PlantedSlices(SIDES)
    sean.fit_pool(source)
    assert [index for _, index in sean.pool.origins] == INFECTED_ENOUGH
    assert source.asked == [(True, 4096)]
    for row, number in enumerate(INFECTED_ENOUGH):
        one = source.slices[number]
        alone = sean._prepare(SynthRequest(one.label, one.image, one.layout, valid=one.valid))
        expected = published.style_codes(weights_of(sean), alone.image, alone.semantic, alone.valid, NUM_CLASSES)
        torch.testing.assert_close(sean.pool.codes[row], expected[0])
        assert sean.pool.presence[row].tolist() == [True, True, False, True]        # no right lung anywhere


def test_pool_of_all_labelled_slices() -> None:
    sean = build()
    sean.style = StyleOptions(source="pool")
    source = PlantedSlices(SIDES)
    sean.fit_pool(source)
    assert [index for _, index in sean.pool.origins] == list(range(len(SIDES)))
    assert source.asked == [(False, 4096)]


def test_a_fold_without_infection_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="fold 0"):
        build().fit_pool(PlantedSlices([0, 6, 2]))


def test_reference_is_the_mean_of_k_different_codes_of_the_pool() -> None:
    sean = build()
    sean.style = StyleOptions(num_styles=3)
    sean.fit_pool(PlantedSlices([12] * 7))
    codes = sean.pool.codes.numpy()
    seen = set()
    for seed in range(20):
        indices = sean.pool.draw(3, torch.Generator().manual_seed(seed)).tolist()
        assert len(set(indices)) == 3
        seen |= set(indices)
        sean.begin_step(torch.Generator().manual_seed(seed))
        np.testing.assert_allclose(sean.reference.numpy(), codes[indices].mean(0), atol=1e-6)
    assert seen == set(range(7))


def test_a_small_pool_is_used_whole() -> None:
    sean = build()
    sean.style = StyleOptions(num_styles=10)
    sean.fit_pool(PlantedSlices([12] * 4))
    sean.begin_step(torch.Generator().manual_seed(0))
    np.testing.assert_allclose(sean.reference.numpy(), sean.pool.codes.numpy().mean(0), atol=1e-6)


def test_classes_absent_from_some_or_all_of_the_k_codes() -> None:
    pool = build().pool
    codes = torch.arange(1.0, 4 * NUM_CLASSES * 8 + 1).view(4, NUM_CLASSES, 8)
    pool.codes = codes
    pool.presence = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0]]).bool()
    pool.codes = codes * pool.presence[..., None]
    pool.origins = [("case", number) for number in range(4)]
    drawn = torch.tensor([0, 1])

    average, has_style = pool.average(drawn, "present_only")
    torch.testing.assert_close(average[0], (codes[0, 0] + codes[1, 0]) / 2)
    torch.testing.assert_close(average[1], codes[0, 1])                             # one of the two has it
    torch.testing.assert_close(average[2], (codes[2, 2] + codes[3, 2]) / 2)         # none of them: the whole pool's
    assert (average[3] == 0).all()                                                  # nobody has it
    assert has_style.tolist() == [True, True, True, False]

    average, has_style = pool.average(drawn, "paper")
    torch.testing.assert_close(average[1], codes[0, 1] / 2)                         # zeros diluted in
    assert (average[2:] == 0).all() and has_style.tolist() == [True, True, False, False]


def test_pool_definition_tells_pools_apart() -> None:
    definitions = []
    for sides in ([12, 12, 12], [12, 12, 0], [12, 0, 12]):
        sean = build()
        sean.fit_pool(PlantedSlices(sides))
        definitions.append(sean.pool_definition())
    again = build(seed=1)
    again.fit_pool(PlantedSlices([12, 12, 12]))
    assert again.pool_definition() == definitions[0]
    assert len({definition["sha256"] for definition in definitions}) == 3
    assert [definition["number"] for definition in definitions] == [3, 2, 2]
    assert definitions[0]["source"] == "pool_positive"


# ----------------------------------------------------------------------------------------------------------------------
# Drawing


def ready(config: SEANConfig = SMALL, sides: tuple[int, ...] = (12, 12, 16), **meta: Any) -> SEAN:
    """With a fitted pool and a reference code; its classes are background, left lung and infection."""
    sean = build(config, **meta)
    sean.fit_pool(PlantedSlices(list(sides)))
    sean.begin_step(torch.Generator().manual_seed(0))
    return sean


def request(number: int, *shape: int, seed: int = 0, **parts: Any) -> SynthRequest:
    """Labels 0/1 over a layout of left lung."""
    rng = np.random.default_rng(seed)
    label = torch.from_numpy(rng.integers(2, size=(number, *(size // 4 + 1 for size in shape))))
    for axis, size in enumerate(shape, start=1):
        label = label.repeat_interleave(4, axis).narrow(axis, 0, size)
    return SynthRequest(label=label.contiguous(), layout=torch.ones_like(label), **parts)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_same_seed_same_image_other_seed_other_image() -> None:
    sean, asked = ready(), request(2, 32, 32)
    one, same, other = (sean.synthesize(replace(asked, generator=seeded(seed))).image for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_without_noise_no_seed_matters() -> None:
    sean, asked = ready(replace(SMALL, noise=False)), request(2, 32, 32)
    one, other = (sean.synthesize(replace(asked, generator=seeded(seed))).image for seed in (1, 2))
    assert torch.equal(one, other)


def test_companions_in_the_batch_do_not_matter() -> None:
    sean, asked = ready(), request(5, 32, 32)
    together = sean.synthesize(asked).image
    for number in range(5):
        alone = sean.synthesize(SynthRequest(asked.label[number:number + 1], layout=asked.layout[number:number + 1]))
        torch.testing.assert_close(alone.image[0], together[number], rtol=0, atol=1e-5)


def test_the_first_images_noise_does_not_depend_on_its_companions() -> None:
    sean, asked = ready(), request(3, 24, 40)
    together = sean.synthesize(replace(asked, generator=seeded(0))).image
    alone = sean.synthesize(SynthRequest(asked.label[:1], layout=asked.layout[:1], generator=seeded(0))).image
    torch.testing.assert_close(alone[0], together[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["pool_positive", "self"])
def test_drawing_leaves_no_trace(source: str) -> None:
    sean = ready()
    sean.style = StyleOptions(source=source)
    before = {name: tensor.clone() for name, tensor in sean.state_dict().items()}
    asked = request(2, 32, 32, image=torch.randn(2, 1, 32, 32), generator=seeded(0))
    label = asked.label.clone()
    rng_state = torch.get_rng_state()
    result = sean.synthesize(asked)
    assert torch.equal(torch.get_rng_state(), rng_state)

    assert not result.image.requires_grad and not result.image.is_inference()
    network = nn.Conv2d(1, 1, 1)
    network(result.image).sum().backward()
    assert all(parameter.grad is None for parameter in sean.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in sean.state_dict().items())
    result.image.zero_()
    result.label.add_(1)
    assert torch.equal(asked.label, label)


def test_train_mode_is_refused() -> None:
    with pytest.raises(AssertionError, match="eval"):
        ready().train().synthesize(request(1, 32, 32))


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (5, 90), (8, 8)])
def test_any_size_and_the_intensity_range(shape: tuple[int, int]) -> None:
    result = ready(patch_size=[32, 32]).synthesize(request(2, *shape))
    assert result.image.shape == (2, 1, *shape) and result.image.dtype == torch.float32
    assert -3.0 <= result.image.min() and result.image.max() <= 2.0 and result.image.std() > 0.01
    assert result.ok.all()


def test_channels_last_images_and_two_channels() -> None:
    sean = build(channel_names=["T1", "T2"], intensity_range=[[0.0, 1.0], [-5.0, 5.0]])
    sean.style = StyleOptions(source="self")
    asked = request(3, 32, 32, image=torch.randn(3, 2, 32, 32))
    plain = sean.synthesize(asked).image
    strided = sean.synthesize(replace(asked, image=asked.image.contiguous(memory_format=torch.channels_last))).image
    torch.testing.assert_close(plain, strided, rtol=0, atol=1e-5)
    assert 0 <= plain[:, 0].min() and plain[:, 0].max() <= 1 and plain[:, 1].abs().max() > 1


def test_a_volume_is_drawn_slice_by_slice() -> None:
    sean, volume = ready(), request(2, 5, 16, 24)
    drawn = sean.synthesize(volume)
    assert drawn.image.shape == (2, 1, 5, 16, 24) and drawn.ok.shape == (2,)
    for sample in range(2):
        for depth in range(5):
            one = sean.synthesize(SynthRequest(volume.label[sample:sample + 1, depth],
                                               layout=volume.layout[sample:sample + 1, depth]))
            torch.testing.assert_close(drawn.image[sample, :, depth], one.image[0], rtol=0, atol=1e-5)


def test_large_batches_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sean, asked = ready(), request(5, 16, 16)
    whole = sean.synthesize(asked).image
    monkeypatch.setattr(SEAN, "max_slices_per_call", 2)
    torch.testing.assert_close(sean.synthesize(asked).image, whole, rtol=0, atol=1e-5)


def test_intensities_go_to_the_unit_range_and_back() -> None:
    sean = build(channel_names=["a", "b"], intensity_range=[[-3.0, 2.0], [0.0, 7.0]])
    image = torch.rand(2, 2, 8, 8) * torch.tensor([5.0, 7.0]).view(2, 1, 1) + torch.tensor([-3.0, 0.0]).view(2, 1, 1)
    torch.testing.assert_close(sean.from_unit(sean.to_unit(image)), image)
    assert sean.to_unit(image * 100).abs().max() == 1


def test_outside_the_scan_the_image_stays_what_it_is() -> None:
    asked = request(1, 16, 16, image=torch.full((1, 1, 16, 16), 0.25), valid=torch.ones(1, 16, 16, dtype=torch.bool))
    asked.valid[..., 10:] = False
    drawn = ready().synthesize(asked).image
    assert (drawn[..., 10:] == 0.25).all() and (drawn[..., :10] != 0.25).all()


def test_needs_the_image_only_for_its_own_style() -> None:
    sean = ready()
    assert sean.needs == frozenset()
    sean.style = StyleOptions(source="self")
    assert sean.needs == {"image"}
    with pytest.raises(UserError, match="image"):
        sean.synthesize(request(1, 32, 32))


def test_own_style_is_the_encoders() -> None:
    sean = build(replace(SMALL, noise=False)).double()
    sean.style = StyleOptions(source="self")
    asked = request(2, 32, 32, image=torch.randn(2, 1, 32, 32, dtype=torch.float64))
    prepared = sean._prepare(asked)
    weights = weights_of(sean)
    codes = published.style_codes(weights, prepared.image, prepared.semantic, prepared.valid, NUM_CLASSES)
    expected = published.draw(weights, 3, prepared.semantic, codes)
    torch.testing.assert_close(sean._decode(prepared), expected, rtol=0, atol=1e-10)


def test_a_lesion_of_one_pixel_has_no_style_of_its_own() -> None:
    label = torch.zeros(2, 32, 32, dtype=torch.int64)
    label[0, 9, 9] = 1                                          # odd coordinates: vanishes at half resolution
    label[1, 8:16, 8:16] = 1
    asked = SynthRequest(label, layout=torch.ones_like(label), image=torch.randn(2, 1, 32, 32))

    sean = ready()
    codes = sean._encode(sean._prepare(asked))
    assert (codes[0, 3] == 0).all() and (codes[1, 3] != 0).any()
    drawn = sean.synthesize(asked)
    assert drawn.ok.tolist() == [True, True] and drawn.image.isfinite().all()           # the pool's style

    sean.style = StyleOptions(source="self")
    drawn = sean.synthesize(asked)
    assert drawn.ok.tolist() == [False, True] and drawn.image.isfinite().all()


def test_a_class_that_no_labelled_slice_has() -> None:
    sean = ready()                                              # the planted slices have no right lung (layout 2)
    asked = request(2, 32, 32)
    asked.layout[1] = 2
    assert sean.synthesize(asked).ok.tolist() == [True, False]

    with_image = replace(asked, image=torch.randn(2, 1, 32, 32))
    drawn = sean.synthesize(with_image)
    assert drawn.ok.tolist() == [True, True]
    prepared = sean._prepare(with_image)
    codes = sean._codes_for(prepared)
    own = sean._encode(prepared)
    torch.testing.assert_close(codes[1, 2], own[1, 2])
    torch.testing.assert_close(codes[:, [0, 1, 3]], sean.reference[[0, 1, 3]].expand(2, 3, 8))
    # The sample that lacks nothing is drawn as before.
    torch.testing.assert_close(drawn.image[0], sean.synthesize(asked).image[0], rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Weights


def test_discriminator_is_the_published_one() -> None:
    discriminator = MultiScaleDiscriminator(NUM_CLASSES + 1, spectral=True, widened=False)
    features = discriminator(torch.randn(1, NUM_CLASSES + 1, 64, 64))
    assert [[tuple(layer.shape[1:]) for layer in scale] for scale in features] == [
        [(64, 33, 33), (128, 17, 17), (256, 9, 9), (1, 10, 10)], [(64, 17, 17), (128, 9, 9), (256, 5, 5), (1, 6, 6)]]
    num_parameters = sum(parameter.numel() for parameter in discriminator.scales[0].parameters())
    assert num_parameters == pytest.approx(0.66e6, rel=0.02)


def test_published_number_of_parameters() -> None:
    with torch.device("meta"):
        sean = SEAN(build().meta, SEAN.PRESETS["paper"])
    count = {name: sum(parameter.numel() for parameter in part.parameters())
             for name, part in sean.generator.named_children()}
    assert count["encoder"] == pytest.approx(1.57e6, rel=0.01)
    assert count["decoder"] == pytest.approx(207.4e6, rel=0.01)


def test_exported_weights_draw_the_same_and_hold_no_training_state() -> None:
    sean = ready()
    stage, = sean.stages(steps=4)
    stage.discriminator(torch.randn(1, 5, 32, 32))
    asked = request(2, 32, 32)
    expected = sean.synthesize(asked).image
    state = sean.export_state()
    assert not any(word in name for name in state for word in ("parametrizations", "pool", "reference", "discrim"))
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert torch.equal(sean.synthesize(asked).image, expected) and len(sean.state_dict()) > len(state)   # still trains

    for trained_before in (False, True):
        other = build(seed=7)
        if trained_before:
            other.stages(steps=4)
        other.load_exported(state)
        other.fit_pool(PlantedSlices([12, 12, 16]))
        other.begin_step(torch.Generator().manual_seed(0))
        torch.testing.assert_close(other.synthesize(asked).image, expected, rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError):
        build().load_exported({name: tensor for name, tensor in state.items() if "seed" not in name})


def test_spectral_norm_of_the_trunk_is_one_and_folds_exactly() -> None:
    sean = build().double()
    trunk = sean.generator.decoder.trunk()
    assert len(trunk) == 2 + 4 + 3 + 3
    add_spectral_norm(trunk)
    add_spectral_norm(trunk)                                    # a second call changes nothing
    sean.train()
    for _ in range(200):
        largest = [torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() for layer in trunk]
    assert largest == pytest.approx([1] * len(trunk), abs=1e-3)
    sean.eval()
    before = [layer.weight.clone() for layer in trunk]
    fold_spectral_norm(sean)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(trunk, before, strict=True))
    assert not any("parametrizations" in name for name in sean.state_dict())


def test_unknown_options_are_a_users_mistake() -> None:
    with pytest.raises(UserError, match="style_fc"):
        SEANConfig(style_fc="each")
    with pytest.raises(UserError, match="num_upsamplings"):
        SEANConfig(num_upsamplings=1)
    with pytest.raises(UserError, match="patch size"):
        build(patch_size=[32, 36]).stages()


# ----------------------------------------------------------------------------------------------------------------------
# Training


class RandomSlices:
    """White noise; from column `valid_columns` on it is not valid and is multiplied by `scribble`."""

    def __init__(self, valid_columns: int = 32, scribble: float = 1.0) -> None:
        self.valid_columns, self.scribble = valid_columns, scribble

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        label = torch.from_numpy(rng.integers(2, size=(num_slices, *patch_size)))
        image = torch.from_numpy(rng.normal(size=(num_slices, 1, *patch_size))).float()
        valid = torch.ones_like(label, dtype=torch.bool)
        valid[..., self.valid_columns:] = False
        image[..., self.valid_columns:] *= self.scribble
        return Slices(image, label, torch.ones_like(label), valid, [("case", number) for number in range(num_slices)])


def perceptual(image: Tensor) -> list[Tensor]:
    return [F.avg_pool2d(image, 2 ** level) for level in range(5)]


def test_each_step_trains_its_own_network_only() -> None:
    sean = build().train()
    stage, = sean.stages(steps=10, perceptual=perceptual)
    batch = stage.sample(RandomSlices(), np.random.default_rng(0))
    stage.generator_loss(batch)[0].backward()
    assert all(parameter.grad is None for parameter in stage.discriminator.parameters())
    missing = [name for name, parameter in stage.generator.named_parameters() if parameter.grad is None]
    assert missing == []
    assert sum(parameter.grad.abs().sum() for parameter in stage.generator.encoder.parameters()) > 0
    stage.generator.zero_grad(set_to_none=True)
    stage.discriminator_loss(batch)[0].backward()
    assert all(parameter.grad is None for parameter in stage.generator.parameters())
    assert all(parameter.grad is not None for parameter in stage.discriminator.parameters())
    assert not batch["fake"].requires_grad


def test_the_loss_is_its_named_terms_with_the_published_weights() -> None:
    for features, config, names in [
        (perceptual, SMALL, {"adversarial", "feature_matching", "perceptual"}),
        (None, SMALL, {"adversarial", "feature_matching", "l1"}),
        (None, replace(SMALL, l1_weight=0.0), {"adversarial", "feature_matching"}),
        (perceptual, replace(SMALL, l1_weight=3.0), {"adversarial", "feature_matching", "perceptual", "l1"}),
    ]:
        stage, = build(config).train().stages(steps=10, perceptual=features)
        batch = stage.sample(RandomSlices(), np.random.default_rng(0))
        loss, terms = stage.generator_loss(batch)
        assert set(terms) == names
        assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-5)
        difference = (batch["fake"] - batch["image"]).abs().mean().item()
        if "l1" in names:
            assert terms["l1"].item() == pytest.approx((config.l1_weight or 10) * difference, rel=1e-5)


def test_no_loss_sees_what_nobody_annotated() -> None:
    losses = []
    for scribble in (0.0, 5.0):
        torch.manual_seed(0)
        stage, = build().train().stages(steps=10)
        batch = stage.sample(RandomSlices(valid_columns=20, scribble=scribble), np.random.default_rng(0))
        loss, _ = stage.generator_loss(batch)
        assert (batch["image"][..., 20:] == -1).all() and (batch["fake"][..., 20:] == -1).all()
        losses.append((loss.item(), stage.discriminator_loss(batch)[0].item()))
    assert losses[0] == losses[1]


def test_learning_rates_fall_over_the_second_half() -> None:
    stage, = build(replace(SMALL, generator_lr=1e-4, discriminator_lr=4e-4)).stages(steps=100)
    assert stage.learning_rates(0) == stage.learning_rates(50) == (1e-4, 4e-4)
    assert stage.learning_rates(75) == pytest.approx((0.5e-4, 2e-4))
    assert stage.learning_rates(100) == (0, 0)
    assert stage.betas == (0.0, 0.9)


def test_a_batch_of_one_trains() -> None:
    stage, = build(replace(SMALL, batch_size=1)).train().stages(steps=2)
    batch = stage.sample(RandomSlices(), np.random.default_rng(0))
    assert stage.generator_loss(batch)[0].isfinite() and stage.discriminator_loss(batch)[0].isfinite()


def test_an_interrupted_pretraining_ends_as_if_never_stopped(tmp_path: Path) -> None:
    """With spectral norm's vectors, batch statistics and noise among what has to be restored."""
    def fresh(seed: int) -> SEAN:
        torch.manual_seed(seed)
        return SEAN.build(build().meta, SMALL)

    whole = pretrain(fresh(0), RandomSlices(), tmp_path / "whole", steps=5)
    with pytest.raises(KeyboardInterrupt):
        pretrain(interrupted_after(fresh(0), 3), RandomSlices(), tmp_path / "cut", steps=5)
    resumed = pretrain(fresh(1), RandomSlices(), tmp_path / "cut", steps=5, resume=True)
    expected = whole.export_state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.export_state().items())


# ----------------------------------------------------------------------------------------------------------------------
# Does it learn?


class TexturedDiscs:
    """Discs of mean 0.4 (label 1) on a background of mean −0.4, both with correlated noise of deviation 0.15."""

    def __init__(self, number: int, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:size, :size]
        label = np.zeros((number, size, size), np.int64)
        for one in label:
            for _ in range(rng.integers(1, 3)):
                (down, right), radius = rng.uniform(0.15 * size, 0.85 * size, 2), rng.uniform(3, 7)
                one[(y - down) ** 2 + (x - right) ** 2 < radius ** 2] = 1
        noise = gaussian_filter(rng.standard_normal(label.shape), (0, 0.7, 0.7))
        self.label = torch.from_numpy(label)
        self.image = torch.from_numpy(np.where(label > 0, 0.4, -0.4) + 0.15 * noise / noise.std()).float()[:, None]

    def _slices(self, indices: list[int]) -> Slices:
        label = self.label[indices]
        return Slices(self.image[indices], label, torch.zeros_like(label), torch.ones_like(label, dtype=torch.bool),
                      [("case", index) for index in indices])

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        return self._slices(rng.integers(len(self.label), size=num_slices).tolist())

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        yield from (self._slices([index]) for index in range(len(self.label)))


@pytest.mark.slow
def test_tiny_learns_to_draw_what_the_label_says(tmp_path: Path) -> None:
    """A threshold finds the label, never seen in training, in the image drawn for it, and no other image's label."""
    torch.manual_seed(0)
    meta = replace(build().meta, semantic=SemanticClasses.from_labels({"disc": 1}, {}),
                   intensity_range=[[-1.0, 1.0]], patch_size=[48, 48])
    sean = pretrain(SEAN.build(meta, SEAN.PRESETS["tiny"]), TexturedDiscs(24, 48, seed=0), tmp_path, steps=200)
    sean.fit_pool(TexturedDiscs(24, 48, seed=0))
    sean.begin_step(seeded(0))

    unseen = TexturedDiscs(24, 48, seed=1).label
    drawn = sean.synthesize(SynthRequest(unseen, generator=seeded(0)))
    found = drawn.image[:, 0] > 0
    assert dice(found, unseen > 0) > 0.9
    assert dice(found, unseen.roll(1, 0) > 0) < 0.3
    assert drawn.ok.all()


def dice(one: Tensor, other: Tensor) -> float:
    return (2 * (one & other).sum() / (one.sum() + other.sum())).item()
