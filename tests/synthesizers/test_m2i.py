"""M2I: the contract, what its losses are made of, and that nothing but the label decides what it draws."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import find_synthesizer
from nnunet_synth.synthesizers.base import SynthRequest
from nnunet_synth.synthesizers.m2i import M2I
from nnunet_synth.testing import ContractSlices, check_synthesizer, contract_meta


@pytest.mark.parametrize("num_channels", [1, 2])
def test_contract(num_channels):
    check_synthesizer(M2I, num_channels=num_channels)


def test_it_is_registered():
    assert find_synthesizer("m2i") is M2I


def make_stage(perceptual=None, size=32, **options):
    from dataclasses import replace
    config = replace(M2I.PRESETS["tiny"], **options)
    meta = contract_meta("m2i", {}, 1, size)
    torch.manual_seed(0)
    m2i = M2I.build(meta, config)
    stage, = m2i.stages(100, perceptual)
    stage.batch_size = 2
    return m2i, stage, stage.sample(ContractSlices(size), np.random.default_rng(0))


def test_the_same_label_gives_the_same_image_whatever_the_scan_shows():
    m2i, _, _ = make_stage()
    m2i.eval()
    part = ContractSlices(32).draw(2, 32, 32, np.random.default_rng(0))
    request = SynthRequest(label=part.label, layout=part.layout)
    drawn = m2i.synthesize(request).image
    m2i.begin_step(torch.Generator().manual_seed(5))
    other = m2i.synthesize(SynthRequest(label=part.label, layout=part.layout, image=part.image + 1,
                                        generator=torch.Generator().manual_seed(9))).image
    assert torch.equal(drawn, other)


def features(image):
    return [image, 2 * image]


def test_the_generators_loss_is_what_the_paper_names():
    """L_adv + 10 L_vgg, and nothing else."""
    _, stage, batch = make_stage(features)
    loss, terms = stage.generator_loss(batch)
    assert set(terms) == {"adversarial", "perceptual"}
    one_hot = stage.synthesizer.meta.semantic.one_hot(batch["semantic"])
    judged = stage.discriminator(torch.cat([one_hot, batch["fake"]], 1))
    adversarial = np.mean([((layers[-1] - 1) ** 2).mean().item() for layers in judged])
    difference = F.l1_loss(batch["fake"], batch["image"]).item()
    perceptual = 10 * (0.25 * difference + 1.0 * 2 * difference)        # the deepest taps' weights are 1/4 and 1
    assert loss.item() == pytest.approx(adversarial + perceptual, rel=1e-5)


def test_without_features_l1_takes_their_place_and_feature_matching_can_be_had():
    _, stage, batch = make_stage()
    assert set(stage.generator_loss(batch)[1]) == {"adversarial", "l1"}
    _, stage, batch = make_stage(l1_weight=0.0, feature_matching_weight=10.0)
    _, terms = stage.generator_loss(batch)
    assert set(terms) == {"adversarial", "feature_matching"} and terms["feature_matching"] > 0


def test_the_discriminator_sees_the_label_and_the_drawn_image_is_compared_with_its_own_pair():
    _, stage, batch = make_stage()
    stage.generator_loss(batch)
    loss, terms = stage.discriminator_loss(batch)
    one_hot = stage.synthesizer.meta.semantic.one_hot(batch["semantic"])
    expected = []
    for real, fake in zip(stage.discriminator(torch.cat([one_hot, batch["image"]], 1)),
                          stage.discriminator(torch.cat([one_hot, batch["fake"]], 1)), strict=True):
        expected.append(((real[-1] - 1) ** 2).mean().item() / 2 + (fake[-1] ** 2).mean().item() / 2)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert 0 <= terms["discriminator_accuracy"] <= 1
    other = {**batch, "semantic": batch["semantic"].roll(1, 0)}
    assert stage.discriminator_loss(other)[0].item() != pytest.approx(loss.item(), rel=1e-6)


def test_what_nobody_annotated_reaches_no_loss():
    _, stage, batch = make_stage()
    batch["valid"][:] = False
    batch["image"].fill_(-1)
    _, terms = stage.generator_loss(batch)
    assert terms["l1"] == 0 and bool((batch["fake"] == -1).all())


def test_the_learning_rate_falls_in_the_last_quarter():
    _, stage, _ = make_stage()
    rates = [stage.learning_rates(step)[0] for step in (0, 75, 88, 99)]
    assert rates[0] == rates[1] == 1e-3 and rates[2] == pytest.approx(0.48e-3) and 0 < rates[3] < 0.05e-3


def test_bad_patch_and_norm():
    with pytest.raises(UserError, match="no multiple of 8"):
        make_stage(size=36)
    with pytest.raises(UserError, match="norm must be one of instance, batch"):
        make_stage(norm="layer")
