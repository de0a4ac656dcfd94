"""CoSinGAN: the contract, the pyramid of two-stage GANs, what is trained when, and what it draws with."""

import hashlib
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import find_synthesizer
from nnunet_synth.synthesizers.base import SynthRequest
from nnunet_synth.synthesizers.checkpoint import load_synthesizer
from nnunet_synth.synthesizers.cosingan import CoSinGAN, CoSinGANStage, Pyramid
from nnunet_synth.synthesizers.feature_set import FeatureSet
from nnunet_synth.synthesizers.gray_conditions import gray_ranges
from nnunet_synth.synthesizers.options import make_config
from nnunet_synth.synthesizers.pretrain import pretrain
from nnunet_synth.synthesizers.scales import find_scales
from nnunet_synth.testing import RANGE, ContractSlices, check_synthesizer, contract_meta
from tests.reference import cosingan as reference

pytest.importorskip("kornia")


@pytest.mark.parametrize(("size", "options"), [
    (32, {"condition": "add"}),
    (48, {"num_models": 2, "image_fusion": True, "dropout": True, "num_channels": 2}),
    (32, {"condition": "concat", "ms_ssim_weight": 1.0}),
    (32, {"condition": "onehot", "randomised_condition": False, "reuse_weights": False}),
])
def test_contract(size, options):
    check_synthesizer(CoSinGAN, size=size, width=4, ndf=4, **options)


def test_it_is_registered():
    assert find_synthesizer("cosingan") is CoSinGAN


class OnlyWholeSlices(ContractSlices):
    """Nothing but the chosen slices may reach a CoSinGAN."""

    def sample(self, num_slices, patch_size, rng):
        raise AssertionError("a stage sampled from all slices")


def make(size=48, preset="tiny", source=OnlyWholeSlices, **options):
    """Untrained, with its slices chosen; of the published form unless `options` say otherwise."""
    config = make_config(CoSinGAN, preset, {"width": 4, "ndf": 4, "batch_size": 2, "condition": "add", **options})
    torch.manual_seed(0)
    cosingan = CoSinGAN.build(contract_meta("cosingan", asdict(config), 1, size), config)
    cosingan.prepare_training(source(size))
    return cosingan


def batch_of(stage, seed=0):
    return stage.sample(OnlyWholeSlices(48), np.random.default_rng(seed))


def fingerprint(module):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# The pyramid


def test_the_pyramid_for_512_is_the_published_one():
    with torch.device("meta"):
        cosingan = CoSinGAN.build(contract_meta("cosingan", {}, 1, 512),
                                  replace(CoSinGAN.PRESETS["paper"], num_models=1))
    assert [scale.height for scale in cosingan.scales] == list(reference.SCALES)
    parts = cosingan.pyramids[0].parts
    assert [len(part.down) for part in parts] == [depth for depth in reference.DOWNSAMPLINGS for _ in range(2)]
    assert sum(parameter.numel() for parameter in parts.parameters()) == pytest.approx(459e6, rel=0.005)
    assert cosingan.divisor == 128


@pytest.mark.parametrize("number", range(9))
def test_every_scale_has_a_discriminator_with_an_answer(number):
    side, convolutions = reference.SCALES[number], reference.DISCRIMINATOR_CONVOLUTIONS[number]
    discriminator = make(ndf=1)._make_judge(reference.DOWNSAMPLINGS[number])
    assert sum(isinstance(part, nn.Conv2d) for part in discriminator.modules()) == convolutions
    answer = discriminator.train()(torch.randn(2, 2, side, side))[0][-1]
    assert answer.shape[:2] == (2, 1) and min(answer.shape[2:]) >= 1 and answer.isfinite().all()


def test_conditions_are_added_and_restoring_sees_the_image_alone():
    config = make_config(CoSinGAN, "tiny", {"width": 4, "condition": "add"})
    pyramid = Pyramid(config, find_scales([48, 48]), 1, 0)
    given = []
    for part in pyramid.parts:
        part.forward = lambda x, generator=None, part=part: (given.append(x), type(part).forward(part, x, generator))[1]
    conditions = [torch.full((1, 1, 32, 32), 0.5), torch.full((1, 1, 48, 48), -0.25)]
    drawn = [pyramid.draw(conditions, number) for number in range(1, 5)][-1]
    first, first_restored, second, second_restored = given[-4:]
    assert torch.equal(first, conditions[0]), "G_0 is given C_0 only"
    outputs = [torch.tanh(type(part).forward(part, x)) for part, x in zip(pyramid.parts, given[-4:], strict=True)]
    assert torch.equal(first_restored, outputs[0]) and torch.equal(second_restored, outputs[2])
    enlarged = nn.functional.interpolate(outputs[1], (48, 48), mode="bilinear", align_corners=False)
    assert torch.equal(second, enlarged - 0.25)
    assert torch.equal(drawn, outputs[3])


@pytest.mark.parametrize(("condition", "channels"), [("concat", 1), ("onehot", 3)])
def test_conditions_can_stand_beside_the_image(condition, channels):
    cosingan = make(condition=condition, randomised_condition=False)
    pyramid = cosingan.pyramids[0]
    assert pyramid.parts[0].down[0].in_channels == 1 + channels
    semantic = torch.randint(0, 3, (2, 32, 32))
    shown, = cosingan.conditions([semantic])
    assert shown.shape == (2, channels, 32, 32)
    assert torch.equal(pyramid._fitted(None, shown)[:, 1:], shown)
    assert not pyramid._restored(torch.ones(2, 1, 32, 32), shown)[:, 1:].any(), "G_r is given no condition"


# ----------------------------------------------------------------------------------------------------------------------
# Training


@pytest.fixture
def watched(monkeypatch):
    """(model, part, fingerprints of all parts at the first step, after the last one, of the discriminator at both)."""
    seen, started = [], {}
    begin, end = CoSinGANStage.begin_step, CoSinGANStage.on_end

    def prints(stage):
        return [fingerprint(part) for pyramid in stage.cosingan.pyramids for part in pyramid.parts]

    def begin_step(self, step):
        if step == 0:
            started[self.model, self.part] = prints(self), fingerprint(self.discriminator)
        begin(self, step)

    def on_end(self):
        seen.append((self.model, self.part, started[self.model, self.part][0], prints(self),
                     started[self.model, self.part][1], fingerprint(self.discriminator)))
        end(self)

    monkeypatch.setattr(CoSinGANStage, "begin_step", begin_step)
    monkeypatch.setattr(CoSinGANStage, "on_end", on_end)
    return seen


def run(folder, cosingan, **options):
    return pretrain(cosingan, ContractSlices(cosingan.meta.patch_size[0]), folder, steps=None, log_every=1,
                    samples_every=10 ** 6, checkpoint_every=1, **options)


SHORT = {"fitting_steps": 2, "restoring_steps": 1, "num_models": 2, "ms_ssim_weight": 1.0}


def test_one_part_is_trained_at_a_time_and_hands_its_weights_on(tmp_path, watched):
    cosingan = run(tmp_path, make(64, **SHORT))         # 32 and 48 are equally deep, 64 is deeper
    assert [(model, part) for model, part, *_ in watched] == [(model, part) for model in (0, 1) for part in range(6)]
    for model, part, before, after, judge_before, judge_after in watched:
        changed = [place for place in range(12) if before[place] != after[place]]
        assert changed == [6 * model + part], "all but the part in training are frozen"
        assert judge_before != judge_after
        if part % 2:
            assert before[6 * model + part] == before[6 * model + part - 1], "G_r begins as the trained G_s"
    judges = {(model, part): (before, after) for model, part, _, _, before, after in watched}
    for model in (0, 1):
        first = 6 * model
        assert watched[first + 2][2][first + 2] == watched[first + 1][3][first], \
            "begins as the G_s before, if equally deep"
        assert watched[first + 4][2][first + 4] not in watched[first + 3][3][:first + 4], "deeper: begins anew"
        assert judges[model, 1][0] == judges[model, 0][1], "one discriminator for both stages of a scale"
        assert judges[model, 2][0] == judges[model, 1][1], "and for scales that are equally deep"
        assert judges[model, 4][0] != judges[model, 3][1]
    assert judges[1, 0][0] != judges[0, 3][1], "the next model has a new discriminator"
    assert cosingan.trained_parts.tolist() == [6, 6] and cosingan.variant is None


def test_weights_need_not_be_handed_on(tmp_path, watched):
    run(tmp_path, make(48, **SHORT, reuse_weights=False))
    assert watched[2][2][2] not in watched[1][3][:2]
    assert watched[2][4] != watched[1][5]


@pytest.mark.parametrize("stop_at", [(0, 1, 0), (0, 2, 1), (1, 0, 1)])
def test_a_killed_training_continues_exactly(tmp_path, monkeypatch, stop_at):
    whole = run(tmp_path / "whole", make(48, **SHORT))
    loss = CoSinGANStage.generator_loss
    steps = []

    def stopping(self, batch):
        steps.append((self.model, self.part))
        if (self.model, self.part) == stop_at[:2] and steps.count(stop_at[:2]) == stop_at[2] + 1:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(CoSinGANStage, "generator_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", make(48, **SHORT))
    monkeypatch.setattr(CoSinGANStage, "generator_loss", loss)
    continued = run(tmp_path / "killed", make(48, **SHORT), resume=True)
    expected, got = whole.export_state(), continued.export_state()
    assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected)


def test_learning_rates_are_the_published_ones():
    cosingan = make(preset="paper", num_models=1)
    fit, restore = cosingan.stages()[:2]
    assert (fit.num_steps, restore.num_steps) == (4000, 2000) and fit.betas == restore.betas == (0.5, 0.999)
    for epoch, expected in ((0, 2e-4), (2000, 2e-4), (3000, 1e-4), (4000, 0)):
        assert fit.learning_rates(epoch) == (pytest.approx(expected),) * 2
        assert expected == pytest.approx(reference.learning_rate(epoch, 2e-4, 2000, 0.0005))
    for epoch, expected in ((0, 1e-4), (1000, 1e-4), (1500, 5e-5), (2000, 0)):
        assert restore.learning_rates(epoch) == (pytest.approx(expected),) * 2
        assert expected == pytest.approx(reference.learning_rate(epoch, 1e-4, 1000, 0.001))


def test_steps_are_shared_out():
    cosingan = make(64, num_models=2)
    stages = cosingan.stages(steps=1000)
    assert sum(stage.num_steps for stage in stages) == 1000 and len(stages) == 12
    assert all(fit.num_steps == pytest.approx(2 * restore.num_steps, abs=2)
               for fit, restore in zip(stages[::2], stages[1::2], strict=True))
    assert [stage.num_steps for stage in cosingan.stages(steps=1)] == [1] * 12
    assert [stage.name for stage in stages[:3]] == ["model 1, 32 × 32, fit", "model 1, 32 × 32, restore",
                                                    "model 1, 48 × 48, fit"]


def test_a_model_learns_from_its_own_slice_alone():
    cosingan = make(num_models=3)
    assert len(set(cosingan.meta.metrics["training_slices"])) == 3
    size = len(cosingan.stages()) // 3
    for number, model in enumerate(cosingan.stages()[::size]):
        batch = batch_of(model)
        own = cosingan.training_slice(number)
        assert batch["image"].shape == (2, 1, 32, 32)
        inside = batch["valid"][:, None]
        assert batch["image"][inside].min() >= own.image.min() - 1e-5
        assert (batch["image"][~inside] == -1).all()
    batch = batch_of(cosingan.stages()[2])
    assert sorted(batch) == ["image", "semantic_0", "semantic_1", "valid"]
    assert batch["semantic_0"].shape == (2, 32, 32) and batch["semantic_1"].shape == (2, 48, 48)


def test_strong_views_fit_and_weak_ones_restore():
    stages = make(64).stages()
    assert [stage.augmentation.smallest_crop for stage in stages] == [0.5, 0.75] * 3
    assert [stage.augmentation.elastic for stage in stages] == pytest.approx([0.05, 0, 0.025, 0, 0, 0])


class ClassesAsIntensities(OnlyWholeSlices):
    """The image shows the classes: −1, 0 and 1 for background, lung and lesion, all off the centre. Only the latter two
    are scanned."""

    def iterate(self, only_targets, max_slices=None):
        for part in super().iterate(only_targets, max_slices):
            layout, label = torch.zeros_like(part.layout), torch.zeros_like(part.label)
            size = self.size
            layout[:, size // 8:size * 3 // 4, size // 4:] = 1
            layout[:, size * 3 // 4:, size // 2:size * 3 // 4] = 1
            label[:, size // 4:size // 2, size // 3:size * 3 // 4] = 1
            semantic = layout + label
            low, high = RANGE
            image = low + semantic[:, None].float() / 2 * (high - low)
            yield replace(part, image=image, label=label, layout=layout, valid=semantic > 0)


def test_images_and_all_their_conditions_are_one_view():
    """2.1.3: "consistent with augmentation imposed on conditions all the time". Away from the borders of the classes,
    the image shows the class that each condition says, at the stage's own scale and at all coarser ones."""
    stages = make(96, source=ClassesAsIntensities, batch_size=8, rotation=45.0, elastic=0.05).stages()
    assert len(stages) == 8 and stages[0].augmentation.elastic == 0.05
    for number, stage in enumerate(stages):
        batch = stage.sample(ClassesAsIntensities(96), np.random.default_rng(number))
        assert torch.equal(batch["valid"], batch[f"semantic_{number // 2}"] > 0)
        assert len({view.numpy().tobytes() for view in batch["semantic_0"]}) == 8, "each sample is a view of its own"
        for level in range(number // 2 + 1):
            semantic = batch[f"semantic_{level}"].float()
            inner = nn.functional.max_pool2d(semantic, 5, 1, 2) == -nn.functional.max_pool2d(-semantic, 5, 1, 2)
            shown = nn.functional.interpolate(batch["image"], semantic.shape[1:], mode="bilinear", antialias=True)
            assert semantic[inner].unique().tolist() == [0, 1, 2]
            assert torch.equal((shown[:, 0] + 1).round()[inner], semantic[inner]), f"{stage.name}: semantic_{level}"


class Features(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, image):
        return [self.factor * image]


def test_the_loss_is_made_of_what_is_at_hand():
    cosingan = make(ms_ssim_weight=1.0)
    one, both = Features(2.0), FeatureSet(Features(2.0), Features(3.0))
    terms = {}
    for name, features in (("none", None), ("one", one), ("both", both)):
        stage = cosingan.stages(perceptual=features)[0]
        batch = batch_of(stage)
        loss, terms[name] = stage.generator_loss(batch)
        assert loss.item() == pytest.approx(sum(term.item() for term in terms[name].values()), rel=1e-5)
    assert list(terms["none"]) == ["adversarial", "pixels", "ms_ssim"]
    assert list(terms["one"]) == ["adversarial", "pixels", "ms_ssim", "ms_fvl"]
    assert list(terms["both"]) == ["adversarial", "pixels", "ms_ssim", "ms_fvl", "ms_ful"]
    difference = (batch["fake"] - batch["image"]).abs()
    assert terms["both"]["ms_fvl"].item() == pytest.approx(10 * 2 * difference.mean().item(), rel=1e-5)
    assert terms["both"]["ms_ful"].item() == pytest.approx(10 * 3 * difference.mean().item(), rel=1e-5)
    weights = torch.tensor([0.1, 0.5, 1.0])         # background, lung, lesion
    expected = 10 * (weights[batch["semantic_0"]][:, None] * difference).mean()
    assert terms["none"]["pixels"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_discriminator_sees_the_condition():
    stage = make().stages()[0]
    batch = batch_of(stage)
    stage.generator_loss(batch)
    loss, terms = stage.discriminator_loss(batch)
    other, _ = stage.discriminator_loss({**batch, "semantic_0": 2 - batch["semantic_0"]})
    assert loss.item() != pytest.approx(other.item(), rel=1e-6) and 0 <= terms["discriminator_accuracy"] <= 1


# ----------------------------------------------------------------------------------------------------------------------
# Drawing


def request_of(size=48, number=2, seed=0, label=None):
    part = ContractSlices(size).draw(number, size, size, np.random.default_rng(1))
    return SynthRequest(label=part.label if label is None else label, layout=part.layout,
                        generator=torch.Generator().manual_seed(seed))


def drawn(cosingan, seed, request=None):
    cosingan.eval().begin_step(None if seed is None else torch.Generator().manual_seed(seed))
    return cosingan.synthesize(request or request_of()).image


def test_randomised_conditions_differ_at_each_scale_and_can_be_turned_off():
    cosingan = make(64)
    values = []
    for seed in range(100):
        cosingan.begin_step(torch.Generator().manual_seed(seed))
        assert cosingan._choice.grays.shape == (1, 3, 3)        # models, scales, classes
        values.append(cosingan._choice.grays[0])
    values = torch.stack(values)
    for number, (low, high) in enumerate(gray_ranges(3)):
        assert values[..., number].min() >= low and values[..., number].max() <= high
        assert (values[:, 0, number] != values[:, 1, number]).all()
    assert not torch.equal(drawn(cosingan, 0), drawn(cosingan, 1))
    plain = drawn(cosingan, None)
    cosingan.config = replace(cosingan.config, randomised_condition=False)
    assert torch.equal(drawn(cosingan, 0), plain) and torch.equal(drawn(cosingan, 1), plain)


@pytest.mark.parametrize("options", [{"condition": "add"}, {"condition": "concat"},
                                     {"num_models": 2, "image_fusion": True}])
def test_each_scale_is_drawn_from_classes_in_gray_values_of_its_own(monkeypatch, options):
    """Of RC (Eq. 10), what reaches the networks, not what was drawn at random."""
    given = {}
    draw_part = Pyramid.draw_part

    def spy(self, part, image, condition, dropout=None):
        given[self, part] = condition
        return draw_part(self, part, image, condition, dropout)

    monkeypatch.setattr(Pyramid, "draw_part", spy)
    cosingan = make(64, **options)
    request = request_of(64)
    drawn(cosingan, 5, request)
    choice = cosingan._choice
    assert len(given) == 6 * len(choice.models)
    classes = torch.where(request.label > 0, 2, request.layout).numpy()
    for model, grays in zip(choice.models, choice.grays.numpy(), strict=True):
        for level, side in enumerate((32, 48, 64)):
            places = np.floor((np.arange(side) + 0.5) * 64 / side).astype(int)
            expected = grays[level][classes[:, places][:, :, places]] / 255 * 2 - 1
            for part in (2 * level, 2 * level + 1):
                found = given[cosingan.pyramids[model], part]
                np.testing.assert_allclose(found[:, 0].numpy(), expected, atol=1e-6)
        colours = [given[cosingan.pyramids[model], part].unique().tolist() for part in (0, 2, 4)]
        assert [len(values) for values in colours] == [3, 3, 3] and len({*sum(colours, [])}) == 9


def test_one_model_a_step_each_in_its_turn():
    cosingan = make(num_models=3, randomised_condition=False)
    alone = []
    for cosingan.variant in range(3):
        alone.append(drawn(cosingan, 5))
    cosingan.variant = None
    counts = np.zeros(3, int)
    for seed in range(60):
        found = [number for number, image in enumerate(alone) if torch.equal(image, drawn(cosingan, seed))]
        counts[found[0]] += 1
        assert len(found) == 1
    assert counts.min() > 8


def test_image_fusion_mixes_two_models():
    """Eq. 11: ζ I_1 + (1 − ζ) I_2 in [−1, 1], ζ uniform."""
    cosingan = make(num_models=2, randomised_condition=False, image_fusion=True)
    alone = []
    for cosingan.variant in (0, 1):
        cosingan.config = replace(cosingan.config, image_fusion=False)
        alone.append(drawn(cosingan, 0))
    cosingan.variant, cosingan.config = None, replace(cosingan.config, image_fusion=True)
    shares = []
    for seed in range(40):
        image = drawn(cosingan, seed)
        first, share = cosingan._choice.models[0], cosingan._choice.share
        assert sorted(cosingan._choice.models) == [0, 1]
        torch.testing.assert_close(image, share * alone[first] + (1 - share) * alone[1 - first])
        shares.append(share)
    assert min(shares) < 0.15 and max(shares) > 0.85
    with pytest.raises(UserError, match="image_fusion mixes the images of two models"):
        make(image_fusion=True)


def test_dropout_while_drawing():
    plain, dropping = make(randomised_condition=False), make(randomised_condition=False, dropout=True)
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(drawn(plain, 0, request_of(seed=1)), drawn(plain, 0, request_of(seed=2)))
    assert torch.equal(drawn(dropping, 0, request_of(seed=1)), drawn(dropping, 0, request_of(seed=1)))
    assert not torch.equal(drawn(dropping, 0, request_of(seed=1)), drawn(dropping, 0, request_of(seed=2)))


def test_what_is_half_trained_draws_with_what_it_has(tmp_path):
    cosingan = make(num_models=2, randomised_condition=False)
    cosingan.trained_parts[:] = torch.tensor([3, 0])
    first = drawn(cosingan, 0)
    with torch.no_grad():
        for part in (*cosingan.pyramids[0].parts[3:], *cosingan.pyramids[1].parts):
            part.to_image.weight.fill_(1.0)
    assert torch.equal(drawn(cosingan, 0), first) and torch.equal(drawn(cosingan, 9), first)
    cosingan.trained_parts[:] = torch.tensor([4, 2])
    finished = drawn(cosingan, 0)
    assert not torch.equal(finished, first) and torch.equal(drawn(cosingan, 9), finished), "only the finished one"
    cosingan.config = replace(cosingan.config, image_fusion=True)
    assert torch.equal(drawn(cosingan, 9), finished), "there is no other one to mix it with"


def test_a_checkpoint_holds_no_discriminator_and_knows_its_slices(tmp_path):
    cosingan = run(tmp_path, make(32, fitting_steps=1, restoring_steps=1))
    assert any(name.startswith("judges.") for name in cosingan.state_dict())
    assert not any(name.startswith("judges.") for name in cosingan.export_state())
    loaded = load_synthesizer(tmp_path)
    assert loaded.meta.metrics["training_slices"] == cosingan.meta.metrics["training_slices"] != []
    assert torch.equal(drawn(loaded, 3, request_of(32)), drawn(cosingan, 3, request_of(32)))


def test_classes_that_the_slice_does_not_show_cannot_be_drawn():
    cosingan = make(num_models=2)
    cosingan.known_classes[0, 2] = False
    label = request_of().label
    label[1] = 0
    for cosingan.variant, expected in ((0, [False, True]), (1, [True, True])):
        cosingan.begin_step(None)
        assert cosingan.eval().synthesize(request_of(label=label)).ok.tolist() == expected


def test_prepare_training_notes_which_classes_are_shown():
    assert make().known_classes.tolist() == [[True, True, True]]

    class WithoutLung(OnlyWholeSlices):
        def iterate(self, only_targets, max_slices=None):
            for part in super().iterate(only_targets, max_slices):
                yield replace(part, layout=torch.zeros_like(part.layout))

    config = make_config(CoSinGAN, "tiny", {"width": 4})
    cosingan = CoSinGAN.build(contract_meta("cosingan", {}, 1, 48), config)
    cosingan.prepare_training(WithoutLung(48))
    assert cosingan.known_classes.tolist() == [[True, False, True]]


def test_a_pyramid_that_stops_early_draws_the_whole_patch():
    cosingan = make(96, max_scale=48)
    assert [scale.height for scale in cosingan.scales] == [32, 48]
    assert drawn(cosingan, 0, request_of(96)).shape == (2, 1, 96, 96)


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(("options", "match"), [
    ({"condition": "colour"}, "condition must be one of add, concat, onehot, got 'colour'"),
    ({"condition": "onehot"}, "condition onehot has no gray values to randomise"),
    ({"slices": ["auto", "a:1"]}, "slices auto a:1: give auto, or CASE:INDEX once or more"),
    ({"slices": ["a:1", "a:1"]}, "slices a:1 a:1: each can be named once"),
    ({"num_models": 0}, "num_models must be at least 1 .*, got 0"),
    ({"class_weights": [1.0]}, "class_weights are three numbers"),
    ({"slices": ["contract:3"]}, "slice contract:3 holds no pixel of the wanted labels"),
    ({"slices": ["contract:99"]}, "slice contract:99 is unknown, or shows nothing"),
    ({"slices": ["other:0"]}, "slice other:0 is unknown: other is no labelled training case"),
    ({"max_scale": 512}, "max_scale 512 cannot be reached with patches of 48 × 48: choose at most 48"),
    ({"num_models": 30}, "30 slices with a lesion are wanted and the training cases have 6"),
])
def test_mistakes_are_one_line(options, match):
    with pytest.raises(UserError, match=match) as error:
        make(**options)
    assert "\n" not in str(error.value)
