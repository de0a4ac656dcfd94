"""LcGAN, pix2pix and enhanced pix2pix: the contract, the discriminator's patches, and what the losses are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import checkpoint, find_synthesizer
from nnunet_synth.synthesizers.base import SynthRequest
from nnunet_synth.synthesizers.lcgan import EnhancedPix2Pix, LcGAN, Pix2Pix
from nnunet_synth.synthesizers.pretrain import pretrain
from nnunet_synth.testing import ContractSlices, check_synthesizer, contract_meta

ALL = pytest.mark.parametrize("kind", [LcGAN, Pix2Pix, EnhancedPix2Pix], ids=lambda kind: kind.name)
BASELINES = pytest.mark.parametrize("kind, factor", [(LcGAN, 1.0), (Pix2Pix, 0.5)], ids=["lcgan", "pix2pix"])


@ALL
def test_contract(kind):
    check_synthesizer(kind)


def test_contract_with_dropout_and_two_channels():
    check_synthesizer(LcGAN, num_channels=2, dropout=0.5, diversity="dropout")


@ALL
def test_it_is_registered(kind):
    assert find_synthesizer(kind.name) is kind


def build(kind, size=32, preset="tiny", **options):
    config = replace(kind.PRESETS[preset], **options)
    torch.manual_seed(0)
    return kind.build(contract_meta(kind.name, {}, 1, size), config)


def make_stage(kind=LcGAN, size=32, perceptual=None, preset="tiny", **options):
    synthesizer = build(kind, size, preset, **options)
    stage, = synthesizer.stages(200, perceptual)
    stage.batch_size = 2
    return stage, stage.sample(ContractSlices(size), np.random.default_rng(0))


def one_hot_of(stage, batch):
    return stage.synthesizer.meta.semantic.one_hot(batch["semantic"])


# ----------------------------------------------------------------------------------------------------------------------
# Networks


def patches():
    """LcGAN's discriminator at its default size, which sees a mask of three classes beside the image."""
    return build(LcGAN, 256, "default").stages(200)[0].discriminator


def test_the_discriminator_judges_30_by_30_patches_at_256():
    discriminator = patches()
    logits = discriminator(torch.zeros(1, 4, 256, 256))[0][-1]
    assert logits.shape == (1, 1, 30, 30)
    assert len(discriminator.scales) == 1


def test_a_patch_is_exactly_70_pixels_wide():
    """By gradient: weights and inputs that cancel nowhere; the norms, which see the whole image, taken out."""
    discriminator = patches().eval()
    with torch.no_grad():
        for layer in discriminator.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.fill_(1e-3)
    image = torch.ones(1, 4, 256, 256, requires_grad=True)
    discriminator(image)[0][-1][0, 0, 15, 15].backward()
    seen = image.grad[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    assert len(rows) == len(columns) == 70 == rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1
    assert bool(seen[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].all())


def test_the_default_networks_are_as_large_as_the_published_ones():
    """54.4 and 2.76 million weights with three channels on either side (synthesizers.md §5)."""
    def millions(module):
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    assert millions(build(LcGAN, 256, "default").generator) == pytest.approx(54.4, abs=0.05)
    assert millions(patches()) == pytest.approx(2.76, abs=0.01)


# ----------------------------------------------------------------------------------------------------------------------
# Losses


@BASELINES
def test_the_generators_loss_is_minus_log_d_and_a_hundred_times_l1(kind, factor):
    stage, batch = make_stage(kind)
    loss, terms = stage.generator_loss(batch)
    assert set(terms) == {"adversarial", "l1"}
    judged = stage.discriminator(torch.cat([one_hot_of(stage, batch), batch["fake"]], 1))[0][-1]
    assert terms["adversarial"].item() == pytest.approx(-judged.sigmoid().log().mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-6)


@BASELINES
def test_l1_weighs_100(kind, factor):
    """A drawn image that is off by 0.03 everywhere costs 3."""
    stage, batch = make_stage(kind)
    real = batch["image"].clamp(-0.9, 0.9)
    batch["image"] = real
    stage.draw = lambda batch, one_hot: real + 0.03
    assert stage.generator_loss(batch)[1]["l1"].item() == pytest.approx(3, rel=1e-4)


@pytest.mark.parametrize("kind, factor", [(LcGAN, 1.0), (Pix2Pix, 0.5), (EnhancedPix2Pix, 0.5)])
def test_the_discriminators_loss_is_halved_by_pix2pix(kind, factor):
    stage, batch = make_stage(kind)
    stage.generator_loss(batch)
    loss, _ = stage.discriminator_loss(batch)
    of_real, of_fake = (stage.discriminator(torch.cat([one_hot_of(stage, batch), batch[name]], 1))[0][-1].sigmoid()
                        for name in ("image", "fake"))
    expected = -of_real.log().mean() - (1 - of_fake).log().mean()
    assert loss.item() == pytest.approx(factor * expected.item(), rel=1e-5)


def test_the_discriminator_sees_the_mask():
    stage, batch = make_stage()
    stage.generator_loss(batch)
    loss, _ = stage.discriminator_loss(batch)
    exchanged = {**batch, "semantic": batch["semantic"].roll(1, 0)}
    assert stage.discriminator_loss(exchanged)[0].item() != pytest.approx(loss.item(), rel=1e-6)


def features(image):
    return [image]


def test_no_features_are_looked_at_unless_an_option_weighs_them():
    stage, batch = make_stage(perceptual=features)
    assert set(stage.generator_loss(batch)[1]) == {"adversarial", "l1"}
    stage, batch = make_stage(perceptual=features, perceptual_weight=10.0)
    assert set(stage.generator_loss(batch)[1]) == {"adversarial", "l1", "perceptual"}


class TwoKinds(nn.Module):
    """Features as the command hands them over: a classifier's and a segmentation network's."""

    classification = staticmethod(lambda image: [image])
    segmentation = staticmethod(lambda image: [image, 3 * image])


def test_enhanced_pix2pix_compares_by_the_mixed_loss_of_cosingan(monkeypatch):
    """10 WPPL + 1 MS-SSIM + 10 MS-FVL + 10 MS-FUL (Eq. 6) in the place of L1, by hand for an image off by 0.1."""
    monkeypatch.setattr("nnunet_synth.synthesizers.lcgan.as_feature_set", lambda features: features)
    stage, batch = make_stage(EnhancedPix2Pix, perceptual=TwoKinds())
    real = batch["image"].clamp(-0.8, 0.8)
    batch["image"] = real
    stage.draw = lambda batch, one_hot: real + 0.1
    terms = stage.generator_loss(batch)[1]
    assert set(terms) == {"adversarial", "pixels", "ms_ssim", "ms_fvl", "ms_ful"}
    weight = torch.tensor([0.1, 0.5, 1.0])[batch["semantic"]].mean().item()        # background, lung, lesion
    assert terms["pixels"].item() == pytest.approx(10 * 0.1 * weight, rel=1e-4)
    assert terms["ms_fvl"].item() == pytest.approx(10 * 0.1, rel=1e-4)              # the deepest tap weighs 1
    assert terms["ms_ful"].item() == pytest.approx(10 * (0.1 + 0.3) / 2, rel=1e-4)
    assert 0 < terms["ms_ssim"].item() < 1
    stage.draw = lambda batch, one_hot: real
    same = stage.generator_loss(batch)[1]
    assert all(abs(same[name].item()) < 1e-5 for name in ("pixels", "ms_ssim", "ms_fvl", "ms_ful"))


def test_images_and_labels_are_paired():
    """The lesions are the bright discs that their labels say."""
    _, batch = make_stage()
    label = batch["semantic"] == 2
    assert batch["image"][:, 0][label].mean() > 0.4 and batch["image"][:, 0][~label].mean() < 0


def test_learning_rates():
    """LcGAN's stay as they are; pix2pix's fall to zero over the second half."""
    stage, _ = make_stage(LcGAN)
    assert {stage.learning_rates(step) for step in (0, 100, 199)} == {(1e-3, 2e-4)}
    stage, _ = make_stage(Pix2Pix)
    rates = [stage.learning_rates(step)[0] for step in (0, 100, 150, 199)]
    assert rates[0] == rates[1] == 1e-3 and rates[2] == pytest.approx(5e-4) and rates[3] == pytest.approx(1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Drawing


def request(seed=None):
    part = ContractSlices(32).draw(2, 32, 32, np.random.default_rng(0))
    return SynthRequest(label=part.label, layout=part.layout,
                        generator=None if seed is None else torch.Generator().manual_seed(seed))


def test_without_dropout_the_label_alone_decides():
    lcgan = build(LcGAN, dropout=0.5).eval()
    drawn = [lcgan.synthesize(request(seed)).image for seed in (None, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_with_dropout_the_requests_random_numbers_do_too():
    lcgan = build(LcGAN, dropout=0.5, diversity="dropout").eval()
    first, again, other = (lcgan.synthesize(request(seed)).image for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    plain = build(LcGAN, dropout=0.5).eval()
    assert torch.equal(lcgan.synthesize(request()).image, plain.synthesize(request()).image)


def test_in_training_dropout_is_always_on():
    stage, batch = make_stage(dropout=0.5)
    stage.generator.train()
    stage.generator_loss(batch)
    first = batch["fake"]
    stage.generator_loss(batch)
    assert not torch.equal(first, batch["fake"])


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_the_models_of_10_50_100_and_200_epochs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("nnunet_synth.synthesizers.pretrain.NUM_STATISTICS_IMAGES", 2)
    config = replace(LcGAN.PRESETS["tiny"], width=4, ndf=4, batch_size=1)
    from dataclasses import asdict
    lcgan = LcGAN.build(contract_meta("lcgan", asdict(config), 1, 32), config)
    pretrain(lcgan, ContractSlices(32), tmp_path, steps=20, samples_every=99)
    found = checkpoint.list_checkpoints(tmp_path)
    assert list(found) == ["step_000001", "step_000005", "step_000010", "final"]
    assert [checkpoint.load_meta(folder).steps for folder in found.values()] == [1, 5, 10, 20]
    images = [checkpoint.load_synthesizer(folder).synthesize(request()).image for folder in found.values()]
    assert len({image.sum().item() for image in images}) == 4


@pytest.mark.parametrize("options, words", [
    ({"diversity": "noise"}, "diversity must be one of none, dropout, got 'noise'"),
    ({"diversity": "dropout", "dropout": 0.0}, "needs dropout above 0"),
    ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1"),
    ({"num_down": 1}, "num_down must be at least 2"),
    ({"norm": "layer"}, "norm must be one of batch, instance"),
    ({"class_weights": (1.0, 2.0)}, "class_weights are three numbers"),
])
def test_mistakes_get_one_line(options, words):
    with pytest.raises(UserError, match=words):
        build(EnhancedPix2Pix, **options)


def test_a_patch_that_would_be_padded_is_refused():
    with pytest.raises(UserError, match="no multiple of 16"):
        make_stage(size=40)
