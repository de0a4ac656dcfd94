"""Training a mask source in the one loop, and drawing from it."""

import json
import os
import signal
from dataclasses import replace
from types import MethodType

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_synth.errors import UserError
from nnunet_synth.losses.logistic import logistic_discriminator_loss, r1_penalty
from nnunet_synth.mask_sources import find_mask_source, load_mask_source
from nnunet_synth.mask_sources.source import NUM_LATENTS, MaskSourceConfig, draw_mask_gallery, truncated
from nnunet_synth.synthesizers.checkpoint import check_synthesizer_fits
from nnunet_synth.synthesizers.pretrain import pretrain
from nnunet_synth.synthesizers.semantic import SemanticClasses
from tests.mask_sources.toy import Discs, build

NAMES = ("v2um", "v2m")


def train(source, folder, **settings):
    return pretrain(source, Discs(has_unlabelled=True), folder, gallery=draw_mask_gallery, **settings)


def equal_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# In the loop


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_run_and_its_folder(name, tmp_path):
    source = train(build(name), tmp_path)
    assert source.meta.steps == 16 and source.progress.tolist() == [3, 1]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["stage"] for entry in log] == ["4x4", "8x8", "16x16"]
    assert {"adversarial", "discriminator_logistic", "discriminator_r1", "discriminator_accuracy"} <= set(log[0])
    picture = np.asarray(Image.open(tmp_path / "samples" / "step_000016.png"))
    assert picture.shape == (14 + 6 * 20, 2 * 20, 3) and picture.std() > 5

    loaded = load_mask_source(tmp_path)
    assert loaded.discriminator is None and loaded.config == source.config and not loaded.training
    assert loaded.meta.to_json() == json.loads(json.dumps(source.meta.to_json()))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    seeds = [torch.Generator().manual_seed(seed) for seed in (4, 4, 5)]
    first, again, other = loaded.draw(3, seeds[0]), source.draw(3, seeds[1]), loaded.draw(3, seeds[2])
    assert torch.equal(first, again) and not torch.equal(first, other)


# 16 steps: 4 at 4x4, 6 at 8x8 (faded in over 3), 6 at 16x16. Stopped inside the fade-in of the last two depths, between
# depths, and after a fade-in.
@pytest.mark.parametrize("name, stop_after", [("v2um", 5), ("v2m", 12), ("v2m", 10), ("v2m", 15)])
def test_a_run_resumed_in_a_fade_in_is_bit_identical(name, stop_after, tmp_path):
    train(build(name), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(interrupted_after(build(name), stop_after), tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "meta.json").read_text())["steps"] == stop_after
    load_mask_source(tmp_path / "cut").draw(1, torch.Generator())           # usable as it is
    torch.rand(3)
    train(build(name, seed=99), tmp_path / "cut", resume=True)
    for file in ("model.safetensors", "meta.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()


def interrupted_after(source, step):
    """Sends SIGINT in the discriminator's part of that step, as Ctrl-C would."""
    original, done = source.stages, []

    def stages(self, steps=None, perceptual=None):
        made = original(steps, perceptual)
        for stage in made:
            def loss(batch, compute=stage.discriminator_loss):
                done.append(1)
                if len(done) == step:
                    os.kill(os.getpid(), signal.SIGINT)
                return compute(batch)
            stage.discriminator_loss = loss
        return made

    source.stages = MethodType(stages, source)
    return source


def test_a_finished_run_resumed_is_at_full_size(tmp_path):
    done = train(build("v2m"), tmp_path)
    again = train(build("v2m", seed=3), tmp_path, resume=True)
    assert equal_weights(done, again) and again.progress.tolist() == [3, 1]


def test_the_discriminator_goes_on_from_depth_to_depth_and_is_not_exported(tmp_path):
    source = build("v2m")
    stages = source.stages()
    assert len({id(stage.discriminator) for stage in stages}) == len({id(stage.generator) for stage in stages}) == 1
    state = source.export_state()
    assert state and not any(name.startswith("discriminator") for name in state)
    assert any(name.startswith("discriminator") for name in source.state_dict())


def test_stages_steps_and_batches():
    source = build("v2m", steps_per_depth=(10, 20), batch_sizes=(8, 4))
    stages = source.stages()
    assert [(stage.name, stage.num_steps, stage.batch_size) for stage in stages] == [("4x4", 10, 8), ("8x8", 20, 4),
                                                                                    ("16x16", 20, 4)]
    for steps in (3, 4, 7, 100):
        numbers = [stage.num_steps for stage in source.stages(steps)]
        assert sum(numbers) == steps and min(numbers) >= 1
    assert [stage.num_steps for stage in source.stages(503)] == [101, 201, 201]
    with pytest.raises(UserError, match="--steps 2.*one step for each of its 3 depths"):
        source.stages(2)


# ----------------------------------------------------------------------------------------------------------------------
# Losses


def make_stage(name="v2m", depth=2, step=0, **options):
    source = build(name, **options)
    stage = source.stages()[depth - 1]
    stage.begin_step(step)
    batch = stage.sample(Discs(), np.random.default_rng(0))
    torch.manual_seed(1)
    stage.generator_loss(batch)
    return stage, batch


def test_r1_comes_every_few_steps_with_as_much_weight():
    for step, regularised in ((0, True), (1, False), (3, False), (4, True)):
        stage, batch = make_stage(step=step, r1_every=4, r1_weight=6.0, steps_per_depth=(9,))
        loss, terms = stage.discriminator_loss(batch)
        real = stage.real_masks(batch).requires_grad_()
        logits = stage.discriminator(real, 2, stage.alpha)
        plain = logistic_discriminator_loss(logits, stage.discriminator(batch["fake"], 2, stage.alpha))
        assert terms["discriminator_logistic"].item() == pytest.approx(plain.item(), rel=1e-5)
        assert ("discriminator_r1" in terms) == regularised
        expected = plain + regularised * 4 * 6.0 / 2 * r1_penalty(real, logits)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        loss.backward()
        assert stage.discriminator.from_mask[0].weight.grad.any()


def test_real_masks_are_halved_to_the_depth_and_faded():
    stage, batch = make_stage("v2m", depth=2, step=0)
    whole = stage.source.encode(batch)
    assert stage.alpha == 0 and stage.real_masks(batch).shape[2:] == (8, 8)
    four = torch.nn.functional.avg_pool2d(whole, 4)
    torch.testing.assert_close(stage.real_masks(batch), four.repeat_interleave(2, -1).repeat_interleave(2, -2))
    stage.begin_step(5)
    assert stage.alpha == 1
    torch.testing.assert_close(stage.real_masks(batch), torch.nn.functional.avg_pool2d(whole, 2))


def test_large_images_have_smaller_masks_without_mixed_values():
    source = build("v2m", patch_size=(32, 32), max_size=16)
    assert source.growth.magnification == 2
    stage = source.stages()[-1]
    stage.begin_step(10 ** 6)
    batch = stage.sample(Discs(size=32), np.random.default_rng(0))
    real = stage.real_masks(batch)
    assert torch.equal(real, source.encode(batch)[..., ::2, ::2]) and set(real.unique().tolist()) == {-1, 1}
    drawn = source.draw(2, torch.Generator())
    assert drawn.shape == (2, 4, 32, 32)
    blocks = drawn.unfold(2, 2, 2).unfold(3, 2, 2)
    assert bool((blocks == blocks[..., :1, :1]).all())      # enlarged, nearest


# ----------------------------------------------------------------------------------------------------------------------
# Drawing


def test_truncation():
    style, mean = torch.randn(3, 5), torch.randn(1, 5)
    assert torch.equal(truncated(style, mean, 0.0), mean.expand(3, -1))
    torch.testing.assert_close(truncated(style, mean, 1.0), style)
    np.testing.assert_allclose(truncated(style, mean, 0.7).numpy(), mean.numpy() + 0.7 * (style - mean).numpy(),
                               rtol=1e-6)


def test_the_mean_style_is_that_of_many_latents_and_always_the_same():
    source = build("v2m")
    latents = torch.randn(NUM_LATENTS, 8, generator=torch.Generator().manual_seed(77))
    expected = source.generator.mapping(latents).mean(0, keepdim=True)
    assert torch.equal(source.mean_style(), source.mean_style())
    spread = source.generator.mapping(latents).std(0).mean()
    assert (source.mean_style() - expected).abs().max() < 0.15 * spread


def test_at_psi_zero_all_masks_have_one_style_and_at_one_their_own():
    def varied(psi):
        source = build("v2m", truncation=psi)
        seen = []
        source.generator.to_mask[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        source.draw(4, torch.Generator().manual_seed(1))        # noise strengths are 0 still: style is all there is
        return float(seen[0].std(0).mean())

    assert varied(0.0) < 1e-6 < varied(0.5) < varied(1.0)


def test_one_generator_decides_everything_and_torchs_own_is_left_alone():
    source = build("v2um")
    with torch.no_grad():
        for layer in source.generator.first:
            layer.noise_strength.fill_(0.5)
    state = torch.get_rng_state()
    batches = [source.endless(seed, 3) for seed in (1, 1, 2)]
    first, again, other = (torch.cat([next(stream), next(stream)]) for stream in batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({one.numpy().tobytes() for one in first}) == 6


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("options, match", [
    ({"truncation": 1.2}, "truncation must be at least 0 and at most 1, got 1.2"),
    ({"fade_in": -1.0}, "fade_in must be at least 0 .*, got -1"),
    ({"r1_every": 0}, "r1_every must be at least 1 .*, got 0"),
    ({"steps_per_depth": ()}, "steps_per_depth must be a list with at least one value"),
    ({"batch_sizes": (4, 0)}, "batch_sizes must be at least 1 .*, got 0"),
])
def test_bad_options(options, match):
    with pytest.raises(UserError, match=match):
        replace(MaskSourceConfig(), **options)


def test_bad_names_sizes_and_labels():
    with pytest.raises(UserError, match="unknown mask source 'v2x'; known: v2um, v2m"):
        find_mask_source("v2x")
    with pytest.raises(UserError, match="250 × 250"):
        build("v2m", patch_size=(250, 250))
    meta = build("v2m").meta
    with pytest.raises(UserError, match="mask source v2m was trained with classes.*'lesion'.*'tumour'") as error:
        check_synthesizer_fits(meta, semantic=SemanticClasses.from_labels({"tumour": 1}, {"lung": 1}),
                               channel_names=["CT"], plans_sha256=meta.plans_sha256, val_ids=[], patch_size=[16, 16],
                               spacing=[1, 1], kind="mask source")
    assert "\n" not in str(error.value)
