"""UM2I: its masks and losses against the slow reference, who teaches whom, and what is drawn for a label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synth.errors import UserError
from nnunet_synth.superpixels import grid_shape, scaled_num_segments, slic
from nnunet_synth.synthesizers.base import Slices, StyleOptions, SynthMeta, SynthRequest
from nnunet_synth.synthesizers.options import make_config
from nnunet_synth.synthesizers.pretrain import pretrain
from nnunet_synth.synthesizers.semantic import SemanticClasses
from nnunet_synth.synthesizers.um2i import UM2I, Teacher, UM2IConfig
from nnunet_synth.testing import ContractSlices, check_synthesizer
from tests.reference import um2i as reference
from tests.synthesizers.test_pretrain import interrupted_after

SMALL = UM2IConfig(width=2, num_down=1, num_blocks=1, ndf=2, num_discriminator_layers=1, num_segments=8192,
                   batch_size=2)
RANGE = (-1.5, 3.0)     # network intensities of ContractSlices


def build(config: UM2IConfig = SMALL, seed: int = 0, labels: dict[str, int] | None = None, **meta: Any) -> UM2I:
    """In eval mode, with weights large enough that different inputs give clearly different outputs."""
    semantic = SemanticClasses.from_labels(labels or {"lesion": 1}, {"lung": 1})
    defaults = {"synthesizer": "um2i", "config": asdict(config), "dataset": "Dataset001_Test", "channel_names": ["CT"],
                "semantic": semantic, "target_labels": sorted((labels or {"lesion": 1}).values()),
                "intensity_range": [list(RANGE)], "patch_size": [32, 32], "divisor": 4, "fold": 0,
                "train_case_ids": ["case"]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UM2I.build(SynthMeta(**{**defaults, **meta}), config)
        for parameter in model.generator.parameters():
            torch.nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    return model.eval()


def fresh(config: UM2IConfig = SMALL, seed: int = 0) -> UM2I:
    """As pretraining begins."""
    torch.manual_seed(seed)
    return UM2I.build(build(config).meta, config)


def train(model: UM2I, folder: Path, slices: ContractSlices | None = None, resume: bool = False) -> UM2I:
    """Three steps of each stage, without pictures."""
    return pretrain(model, slices or SLICES, folder, steps=6, resume=resume, gallery=lambda *_: None)


class TwoLesions(ContractSlices):
    """Label 1 is the disc, label 2 a brighter corner of the lung."""

    def draw(self, *args: Any, **kwargs: Any) -> Slices:
        part = super().draw(*args, **kwargs)
        side = part.label.shape[-1] // 4
        corner = torch.zeros_like(part.label, dtype=torch.bool)
        corner[:, side:side + 6, side:side + 6] = True
        return replace(part, image=torch.where(corner[:, None], 1.2, part.image),
                       label=torch.where(corner, 2 * self.shows_labels, part.label))


class LesionsOfGray(ContractSlices):
    """Two slices of a lung of gray value 60, each with a lesion as large as the other's: of 90, and of 120."""

    def iterate(self, *args: Any, **kwargs: Any) -> Iterator[Slices]:
        for number, gray in enumerate((90, 120)):
            label = torch.zeros(1, 32, 32, dtype=torch.int64)
            label[:, 8:16, 8:16] = 1
            image = RANGE[0] + (RANGE[1] - RANGE[0]) * torch.where(label > 0, gray, 60)[:, None] / 255
            yield Slices(image, label, torch.ones_like(label), torch.ones_like(label, dtype=torch.bool),
                         [("gray", number)])


class OnlyLabelled(ContractSlices):
    def unlabelled(self) -> None:
        return None


SLICES = ContractSlices(32)


def disc_request(**changes: Any) -> SynthRequest:
    part = SLICES.draw(3, 32, 32, np.random.default_rng(1))
    return replace(part.request(torch.Generator().manual_seed(0)), **changes)


def seen_by_g2(model: UM2I, request: SynthRequest) -> Tensor:
    """The condition [N, C + 1, H, W] that G₂ gets for a request."""
    seen = []
    handle = model.generator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    try:
        model.synthesize(request)
    finally:
        handle.remove()
    return torch.cat(seen)


def gray_seen(model: UM2I, request: SynthRequest) -> Tensor:
    return (seen_by_g2(model, request)[:, :-1] + 1) / 2 * 255


@pytest.mark.parametrize("options", [{}, {"num_channels": 2, "norm": "batch", "tasks": "separate"},
                                     {"superpixels": "cached"}, {"tasks": "image", "gray_step": 0.0}], ids=str)
def test_contract(options: dict[str, Any]) -> None:
    check_synthesizer(UM2I, **options)


# ----------------------------------------------------------------------------------------------------------------------
# Unsupervised masks


@pytest.mark.parametrize("step", [0.0, 10.0, 50.0, 100.0])
def test_the_mask_is_algorithm_1(step: float) -> None:
    """Superpixels' NumPy means, quantised; no more than floor(255 / t) + 1 values."""
    model = build(replace(SMALL, gray_step=step))
    image = model.to_unit(SLICES.draw(2, 32, 48, np.random.default_rng(0)).image)
    mask = model.mask_of(image, None)
    gray = (image + 1) / 2
    segments = slic(gray, scaled_num_segments(32, 48, 8192))
    assert segments.max() < np.prod(grid_shape(32, 48, 48)) and len(segments.unique()) > 20
    for n in range(2):
        expected = reference.unsupervised_mask(255 * gray[n, 0].double().numpy(), segments[n].numpy(), step)
        np.testing.assert_allclose(mask[n, 0].numpy(), expected, atol=1e-3)
    if step > 0:
        assert len(mask.unique()) <= 255 // step + 1
        assert (mask % step == 0).all()
    else:
        assert len(mask.unique()) > 26


def test_cached_superpixels_take_the_place_of_slic() -> None:
    """Clusters of another image's gray values: each gets the quantised mean that it has in this image."""
    model = build(replace(SMALL, superpixels="cached"))
    part = SLICES.draw(1, 32, 32, np.random.default_rng(0))
    mask = model.mask_of(model.to_unit(part.image), part.cluster)
    gray = 255 * (model.to_unit(part.image) + 1) / 2
    expected = reference.unsupervised_mask(gray[0, 0].double().numpy(), part.cluster[0].numpy(), 50)
    np.testing.assert_array_equal(mask[0, 0].numpy(), expected)
    assert set(np.unique(expected)) == {0, 50, 150}     # outside, lung, disc
    assert model.needs == {"image", "cluster"} and build().needs == {"image"}


def test_without_cached_superpixels_nothing_is_drawn() -> None:
    """All of the image would be one superpixel, and its mask one gray value."""
    class WithoutClusters(ContractSlices):
        def draw(self, *args: Any, **kwargs: Any) -> Slices:
            return replace(super().draw(*args, **kwargs), cluster=None)

    for policy in ("edit", "as_is"):
        model = build(replace(SMALL, superpixels="cached", um_policy=policy))
        with pytest.raises(UserError, match="no cached superpixels"):
            model.fit_pool(WithoutClusters(32))
        model.fit_pool(SLICES)
        asked = disc_request()
        cluster = asked.cluster.clone()
        cluster[1] = 0
        assert model.synthesize(replace(asked, cluster=cluster)).ok.tolist() == [True, False, True]


def test_g2_sees_the_mask_in_minus_one_to_one_and_its_edges() -> None:
    model = build(replace(SMALL, um_policy="as_is"))
    asked = disc_request()
    condition = seen_by_g2(model, asked)
    mask = model.mask_of(model.to_unit(asked.image), None)
    np.testing.assert_allclose(condition[:, 0], (mask[:, 0] / 255 - 0.5) / 0.5, atol=1e-6)
    for n in range(3):
        np.testing.assert_array_equal(condition[n, 1].numpy(), reference.edges(mask[n, 0].numpy()))


# ----------------------------------------------------------------------------------------------------------------------
# Drawing for a label


def ready(config: UM2IConfig = SMALL, **meta: Any) -> UM2I:
    model = build(config, **meta)
    model.fit_pool(SLICES)
    return model


def test_lesions_that_are_asked_for_are_put_in_and_others_taken_out() -> None:
    """The image shows a disc in its middle; the label wants a bar at the lung's left instead."""
    model, asked = ready(), disc_request()
    label = torch.zeros_like(asked.label)
    label[:, 12:20, 4:8] = 1
    label[:, :, 8:][asked.label[:, :, 8:] > 0] = 0
    before = model.mask_of(model.to_unit(asked.image), None)
    after = gray_seen(model, replace(asked, label=label)).round()
    disc = asked.label > 0
    inner_disc = -F.max_pool2d(-disc.float(), 5, stride=1, padding=2) > 0
    assert (before[:, 0][inner_disc] >= 150).all()
    lung = asked.layout == 1
    assert (after[:, 0][inner_disc & (label == 0)] == 50).all()                     # the lung's mode
    assert (after[:, 0][label == 1] >= 150).all()
    untouched = (label == 0) & ~(lung & (before[:, 0] >= 100))
    assert torch.equal(after[:, 0][untouched], before[:, 0][untouched])
    assert (after % 50 == 0).all()


def test_values_are_those_of_the_labelled_lesions_alone() -> None:
    """Two kinds of lesions, gray values 198 (disc) and 153 (corner): each label is drawn with its own."""
    slices = TwoLesions(32)
    model = build(replace(SMALL, gray_step=10.0), labels={"disc": 1, "corner": 2})
    model.fit_pool(slices)
    part = slices.draw(3, 32, 32, np.random.default_rng(4))
    asked = replace(part, label=3 * (part.label == 0) - part.label).request(torch.Generator().manual_seed(0))
    asked = replace(asked, label=torch.where(part.label > 0, 3 - part.label, 0))    # exchanged
    after = gray_seen(model, asked).round()
    assert set(after[:, 0][asked.label == 1].tolist()) <= {190.0, 200.0}
    assert set(after[:, 0][asked.label == 2].tolist()) <= {140.0, 150.0, 160.0}
    spies = [origin for origin in model.lesion_values.origins]
    assert spies == [one.origin[0] for one in slices.iterate(only_targets=True)]
    assert model.pool_definition()["number"] == len(spies)


def test_a_mask_that_is_left_as_it_is() -> None:
    """By policy, or because lesions shall look as in the unlabelled image (style source self)."""
    by_policy, by_style = build(replace(SMALL, um_policy="as_is")), build()
    by_style.style = StyleOptions(source="self")
    asked = disc_request()
    empty = replace(asked, label=torch.zeros_like(asked.label))
    for model in (by_policy, by_style):
        model.fit_pool(SLICES)
        expected = model.mask_of(model.to_unit(asked.image), None)
        assert torch.equal(gray_seen(model, asked).round(), expected)
        assert torch.equal(model.synthesize(asked).image, model.synthesize(empty).image)
        assert model.pool_definition() == {"um_policy": "as_is"}
        assert model.synthesize(asked).ok.all()


def test_what_is_not_valid_shapes_nothing() -> None:
    model, asked = ready(), disc_request()
    valid = torch.ones_like(asked.label, dtype=torch.bool)
    valid[:, :, 24:] = False
    scribbled = torch.where(valid[:, None], asked.image, 2.0)
    one = gray_seen(model, replace(asked, valid=valid, generator=torch.Generator().manual_seed(0)))
    other = gray_seen(model, replace(asked, valid=valid, image=scribbled, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(one, other)


def test_a_lesion_that_no_labelled_slice_has_cannot_be_drawn() -> None:
    model = build(labels={"lesion": 1, "rare": 2})
    model.fit_pool(SLICES)
    asked = disc_request()
    label = asked.label.clone()
    label[1][label[1] > 0] = 2
    result = model.synthesize(replace(asked, label=label))
    assert result.ok.tolist() == [True, False, True]


def test_lesions_are_edited_organs_are_not() -> None:
    """Of the dataset's labels only the target labels are lesions: an organ's label leaves the mask alone."""
    labels = {"liver": 1, "tumour": 2}
    model = build(labels=labels, target_labels=[2])
    model.fit_pool(TwoLesions(32))
    asked = disc_request()
    before = model.mask_of(model.to_unit(asked.image), None)
    assert torch.equal(gray_seen(model, asked).round()[:, 0][asked.label == 1], before[:, 0][asked.label == 1])


def test_a_fold_without_lesions_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="fold 0"):
        build().fit_pool(ContractSlices(32, shows_labels=False))


def test_the_label_head_tells_dataset_labels() -> None:
    """Also where they are not 0, 1, 2: the largest logit's label."""
    model = build(labels={"one": 1, "three": 3})
    model.fit_pool(SLICES)
    model.label_source = "head"
    with torch.no_grad():
        for value in model.generator.to_label.parameters():
            value.zero_()
        model.generator.to_label[1].bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    asked = disc_request()
    result = model.synthesize(asked)
    assert (result.label == 3).all()
    model.label_source = "pseudo"
    again = model.synthesize(replace(asked, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(again.label, asked.label) and torch.equal(again.image, result.image)


def test_tasks() -> None:
    """Table II: one trunk for both, one each, or the image alone, which has no labels to give."""
    joint, separate, image = (build(replace(SMALL, tasks=tasks)).generator for tasks in ("joint", "separate", "image"))
    condition = torch.randn(1, 2, 32, 32)

    def reached(generator: torch.nn.Module, output: int) -> set[str]:
        generator.zero_grad(set_to_none=True)
        generator(condition)[output].sum().backward()
        return {name.split(".")[0] for name, parameter in generator.named_parameters() if parameter.grad is not None}

    assert reached(joint, 0) == {"trunk", "to_image"} and reached(joint, 1) == {"trunk", "to_label"}
    assert reached(separate, 0) == {"trunk", "to_image"} and reached(separate, 1) == {"label_trunk", "to_label"}
    assert image(condition)[1] is None
    alone = build(replace(SMALL, tasks="image"))
    assert not alone.has_label_head and joint is not None
    alone.label_source = "head"
    with pytest.raises(UserError, match="no|none"):
        alone.check_label_source()


# ----------------------------------------------------------------------------------------------------------------------
# The losses


def perceptual(image: Tensor) -> list[Tensor]:
    return [F.avg_pool2d(image, 2 ** level) for level in range(5)]


def batch_of(model: UM2I, number: int = 0, features: Any = None, slices: ContractSlices = SLICES) -> tuple[Any, Any]:
    """(stage, its first batch after the generator's loss)."""
    stage = model.train().stages(steps=8, perceptual=features)[number]
    stage.begin_step(0)
    if model.teacher is not None:
        model.teacher.eval()
    batch = stage.sample(slices, np.random.default_rng(0))
    return stage, batch


@pytest.mark.parametrize("number", [0, 1])
def test_the_terms_are_those_of_the_reference(number: int) -> None:
    """All of them, weighted, from the outputs of the networks; labelled slices first, then unlabelled ones."""
    model = build()
    stage, batch = batch_of(model, number)
    valid = batch["valid"].clone()
    valid[:, :, :5] = False
    batch["valid"] = valid
    batch["image"] = batch["image"].masked_fill(~valid[:, None], -1)
    loss, terms = stage.generator_loss(batch)
    assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-5)

    condition = model.condition_on(model.mask_of(batch["image"], None))
    with torch.no_grad():
        drawn, logits = model.generator(condition)
        fake = drawn.masked_fill(~valid[:, None], -1)
        probability = logits.softmax(1).numpy()
        for n, y, x in zip(*np.nonzero(~valid.numpy()), strict=True):
            probability[n, :, y, x] = [1, 0]
        of_fake = [layers[-1].numpy() for layers in stage.discriminator.image(torch.cat([condition, fake], 1))]
        of_real = [layers[-1].numpy()
                   for layers in stage.discriminator.image(torch.cat([condition, batch["image"]], 1))]
        judged = torch.cat([condition, torch.from_numpy(probability)], 1)[:2]
        of_fake_label = [layers[-1].numpy() for layers in stage.discriminator.label(judged)]
        one_hot = F.one_hot(batch["label"] * valid[:2], 2).movedim(-1, 1).float()
        of_real_label = [layers[-1].numpy()
                         for layers in stage.discriminator.label(torch.cat([condition[:2], one_hot], 1))]

    def segmentation(which: slice, target: Tensor, trusted: Tensor) -> float:
        arrays = target.numpy(), trusted.numpy()
        return reference.cross_entropy(logits[which].numpy(), *arrays) + reference.soft_dice_loss(
            logits[which].softmax(1).numpy(), *arrays)

    expected = {"adversarial": reference.least_squares_generator(of_fake),
                "l1": 10 * float((fake - batch["image"]).abs().mean()),
                "label_adversarial": reference.least_squares_generator(of_fake_label),
                "segmentation": 10 * segmentation(slice(0, 2), batch["label"], valid[:2])}
    if number == 1:
        assert len(batch["image"]) == 4 and len(batch["label"]) == 2
        pseudo_label, confidence = model.teacher.label(condition[2:], valid[2:])
        expected["pseudo_segmentation"] = 5 * segmentation(slice(2, 4), pseudo_label, valid[2:] & (confidence > 0.5))
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name

    loss, terms = stage.discriminator_loss(batch)
    image = reference.least_squares_discriminator(of_real, of_fake)
    label = reference.least_squares_discriminator(of_real_label, of_fake_label)
    assert loss.item() == pytest.approx(image + label, rel=1e-4)
    right = np.mean([((x > 0.5).mean() + (y < 0.5).mean()) / 2 for x, y in zip(of_real, of_fake, strict=True)])
    assert terms["discriminator_accuracy"].item() == pytest.approx(right)


def test_which_reconstruction() -> None:
    for recon, features, expected in [("vgg", perceptual, {"perceptual"}), ("vgg", None, {"l1"}),
                                      ("l1", perceptual, {"l1"}), ("both", perceptual, {"perceptual", "l1"}),
                                      ("both", None, {"l1"})]:
        stage, batch = batch_of(build(replace(SMALL, recon=recon, tasks="image")), features=features)
        _, terms = stage.generator_loss(batch)
        assert set(terms) == expected | {"adversarial"}


def test_each_step_trains_its_own_networks_only() -> None:
    model = build()
    stage, batch = batch_of(model, 1)
    stage.generator_loss(batch)[0].backward()
    assert all(parameter.grad is not None for parameter in model.generator.parameters())
    assert all(parameter.grad is None for parameter in stage.discriminator.parameters())
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    model.generator.zero_grad(set_to_none=True)
    stage.discriminator_loss(batch)[0].backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())
    assert all(parameter.grad is not None for parameter in stage.discriminator.parameters())


def test_no_loss_sees_what_nobody_annotated() -> None:
    losses = []
    for scribble in (-1.0, 2.5):
        class Scribbled(ContractSlices):
            def draw(self, *args: Any, scribble: float = scribble, **kwargs: Any) -> Slices:
                part = super().draw(*args, **kwargs)
                part.image[..., 20:], part.label[..., 20:], part.valid[..., 20:] = scribble, 0, False
                return part

        torch.manual_seed(0)
        stage, batch = batch_of(build(), 1, slices=Scribbled(32))
        losses.append((stage.generator_loss(batch)[0].item(), stage.discriminator_loss(batch)[0].item()))
    assert losses[0] == losses[1]


# ----------------------------------------------------------------------------------------------------------------------
# The semi-supervised stage


def planted(model: UM2I, monkeypatch: pytest.MonkeyPatch, label: Tensor, confidence: Tensor) -> None:
    monkeypatch.setattr(Teacher, "label", lambda self, condition, valid: (label, confidence))


def test_pseudo_labels_of_every_class_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code puts pseudo-labels into one channel and takes the argmax over it: 0 everywhere, so that lesions
    were taught to be background. Labels 1 and 2 must pull their own logits up, and trusted pixels alone."""
    model = build(labels={"one": 1, "two": 2})
    stage, batch = batch_of(model, 1, slices=TwoLesions(32))
    label = torch.zeros(2, 32, 32, dtype=torch.int64)
    label[:, :10], label[:, 10:20] = 1, 2
    trusted = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    planted(model, monkeypatch, label, torch.where(trusted, 0.51, 0.5))
    stage.generator_loss(batch)
    logits = torch.zeros(4, 3, 32, 32, requires_grad=True)
    terms = stage._segmentation(batch, logits)
    assert terms["pseudo_segmentation"].item() == pytest.approx(
        5 * (np.log(3) + 1 - np.mean([2 * n / 3 / (n + trusted.sum().item() / 3)
                                      for n in ((trusted & (label == k)).sum().item() for k in (1, 2))])), rel=1e-4)
    terms["pseudo_segmentation"].backward()
    pull = -logits.grad[2:]
    assert (logits.grad[:2] == 0).all()
    assert torch.equal(pull.abs().sum(1) > 0, trusted)              # exactly the pixels above the threshold
    for k in range(3):
        here = trusted & (label == k)
        assert (pull[:, k][here] > 0).all()
        for other in {0, 1, 2} - {k}:
            assert (pull[:, other][here] < 0).all()


def test_the_teacher_tells_classes_and_the_discriminators_confidence() -> None:
    model = build(labels={"one": 1, "two": 2})
    model.stages(steps=8)
    teacher, condition = model.teacher.eval(), torch.randn(2, 2, 32, 32)
    with torch.no_grad():
        bias = teacher.generator.to_label[1].bias
        bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[:, :8] = False
    label, confidence = teacher.label(condition, valid)
    assert (label[:, 8:] == 2).all() and (label[:, :8] == 0).all()
    one_hot = F.one_hot(label, 3).movedim(-1, 1).float()
    answers = teacher.discriminators.label(torch.cat([condition, one_hot], 1))
    scales = [part.to_pixels(layers[-1].clamp(0, 1), 32, 32, 2 ** number)[:, 0] for number, (part, layers) in
              enumerate(zip(teacher.discriminators.label.scales, answers, strict=True))]
    torch.testing.assert_close(confidence, (scales[0] + scales[1]) / 2)
    assert confidence.std() > 1e-4 and 0 <= confidence.min() and confidence.max() <= 1


def test_the_teacher_is_what_the_first_stage_left_and_never_moves(monkeypatch: pytest.MonkeyPatch,
                                                                  tmp_path: Path) -> None:
    left, asked = [], []
    take, label = Teacher.take, Teacher.label
    monkeypatch.setattr(Teacher, "take", lambda self, generator, discriminators: (
        left.append({**{f"generator.{name}": tensor.clone() for name, tensor in generator.state_dict().items()},
                     **{f"discriminators.{name}": tensor.clone() for name, tensor in
                        discriminators.state_dict().items()}}), take(self, generator, discriminators)))
    monkeypatch.setattr(Teacher, "label", lambda self, *args: (
        asked.append((self.training, self.generator.training)), label(self, *args))[1])
    model = train(fresh(), tmp_path)
    assert len(left) == 1 and len(asked) >= 3 and not any(any(modes) for modes in asked)
    after = model.teacher.state_dict()
    assert set(after) == set(left[0])
    assert all(torch.equal(after[name], tensor) for name, tensor in left[0].items())
    moved = [name for name, tensor in model.generator.state_dict().items()
             if not torch.equal(tensor, after[f"generator.{name}"])]
    assert {"trunk", "to_image", "to_label"} <= {name.split(".")[0] for name in moved}


def test_the_second_stage_begins_with_the_first_ones_discriminators() -> None:
    model = build()
    first, second = model.stages(steps=8)
    with torch.no_grad():
        for parameter in first.discriminator.parameters():
            parameter.fill_(0.25)
    first.on_end()
    with torch.no_grad():
        for parameter in second.discriminator.parameters():
            parameter.fill_(0.5)
    second.begin_step(1)
    assert all((parameter == 0.5).all() for parameter in second.discriminator.parameters())
    second.begin_step(0)
    assert all((parameter == 0.25).all() for parameter in second.discriminator.parameters())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(fresh(), tmp_path_factory.mktemp("whole")).state_dict()


@pytest.mark.parametrize("interrupted", [2, 3, 5], ids=["first stage", "between the stages", "second stage"])
def test_an_interrupted_pretraining_ends_as_if_never_stopped(whole: dict[str, Tensor], tmp_path: Path,
                                                             interrupted: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(interrupted_after(fresh(), interrupted), tmp_path)
    resumed = train(fresh(seed=1), tmp_path, resume=True).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert sum(name.startswith("teacher.") for name in whole) > 0


def test_lesions_that_the_mask_hides_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """60 and 90 are one level of t = 50, not of t = 25; a step that hides nothing is recommended."""
    for step, hidden in ((0.0, 0.0), (10.0, 0.0), (25.0, 0.0), (50.0, 0.5), (150.0, 1.0)):
        model = build(replace(SMALL, gray_step=step))
        assert model.hidden_share(LesionsOfGray(32), step) == hidden
        model.prepare_training(LesionsOfGray(32))
        said = capsys.readouterr().err
        assert (f"with t = {step:g} {hidden:.0%} of the lesions" in said and "gray_step=25" in said) == (hidden > 0.1)
        assert said.count("\n") == (hidden > 0.1)


def test_without_unlabelled_slices_it_trains_on_labelled_ones(tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    train(fresh(), tmp_path, OnlyLabelled(32))
    assert capsys.readouterr().err.count("no unlabelled training slices") == 1
    stage, batch = batch_of(build(), 1, slices=OnlyLabelled(32))
    assert "pseudo_segmentation" not in stage.generator_loss(batch)[1]


def test_unlabelled_slices_are_never_asked_for_labels() -> None:
    """Their images come in, their labels do not, in whatever the source writes there."""
    class Poisoned(ContractSlices):
        def unlabelled(self) -> ContractSlices:
            source = ContractSlices(self.size)      # shows its labels
            draw = source.draw
            source.draw = lambda *args, **kwargs: replace(draw(*args, **kwargs), label=torch.full(
                (args[0], self.size, self.size), 1))
            return source

    batches = [batch_of(build(), 1, slices=slices)[1] for slices in (SLICES, Poisoned(32))]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


# ----------------------------------------------------------------------------------------------------------------------
# Stages, weights, options


def test_steps_and_learning_rates() -> None:
    first, second = build(replace(SMALL, supervised_share=0.25, generator_lr=2e-4, discriminator_lr=4e-4)).stages(100)
    assert (first.num_steps, second.num_steps) == (25, 75)
    assert first.learning_rates(0) == second.learning_rates(50) == (2e-4, 4e-4)      # step 75 of 100
    assert second.learning_rates(65) == pytest.approx((0.8e-4, 1.6e-4))             # step 90
    assert second.learning_rates(75) == (0, 0)
    assert first.betas == (0.5, 0.999)
    only, = build(replace(SMALL, semi_supervised=False)).stages(100)
    assert only.num_steps == 100 and only.learning_rates(75) == only.learning_rates(0)
    assert len(build(replace(SMALL, supervised_share=1.0)).stages(100)) == 1


def test_the_export_is_g2_alone() -> None:
    model = build()
    model.stages(steps=8)
    assert model.teacher is not None
    state = model.export_state()
    assert {name.split(".")[0] for name in state} == {"generator"}
    other = build(seed=3)
    other.load_exported(state)
    for one in (model, other):
        one.fit_pool(SLICES)
    assert torch.equal(model.synthesize(disc_request()).image, other.synthesize(disc_request()).image)


def test_published_size() -> None:
    """182.4 M parameters without the label head at width 64 (synthesizers.md §2.2)."""
    with torch.device("meta"):
        model = UM2I(build().meta, replace(UM2I.PRESETS["paper"], tasks="image", norm="instance"))
    assert sum(parameter.numel() for parameter in model.generator.parameters()) == pytest.approx(182.4e6, rel=0.002)


@pytest.mark.parametrize("option", [{"gray_step": -1.0}, {"gray_step": 256.0}, {"num_segments": 0},
                                    {"num_segments": 300_000}, {"tasks": "both"}, {"superpixels": "graph"},
                                    {"um_policy": "none"}, {"recon": "l2"}, {"supervised_share": 0.0}])
def test_bad_options_are_a_users_mistake(option: dict[str, Any]) -> None:
    name, = option
    with pytest.raises(UserError, match=name) as caught:
        make_config(UM2I, "tiny", option)
    assert "\n" not in str(caught.value)


def test_more_mistakes() -> None:
    with pytest.raises(UserError, match="quantised"):
        UM2IConfig(superpixels="cached", gray_step=0)
    with pytest.raises(UserError, match="patch size"):
        build(patch_size=[32, 34]).stages()
    with pytest.raises(UserError, match="norm"):
        build(replace(SMALL, norm="layer"))
    with pytest.raises(UserError, match="needs the image"):
        ready().synthesize(disc_request(image=None))

    class NoClusters(ContractSlices):
        def draw(self, *args: Any, **kwargs: Any) -> Slices:
            part = super().draw(*args, **kwargs)
            return replace(part, cluster=torch.zeros_like(part.label))

    model = build(replace(SMALL, superpixels="cached"))
    with pytest.raises(UserError, match="no cached superpixels"):
        model.stages(steps=8)[0].sample(NoClusters(32), np.random.default_rng(0))
    with pytest.raises(UserError, match="no cached superpixels"):
        model.fit_pool(NoClusters(32))


@pytest.mark.slow
def test_decode_can_be_compiled() -> None:
    """Traced whole or in parts, it draws what it draws untraced."""
    model, asked = ready(), disc_request()
    expected = model.synthesize(asked).image
    torch._dynamo.reset()
    model._decode = torch.compile(model._decode, backend="eager")
    again = replace(asked, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.synthesize(again).image, expected, rtol=0, atol=1e-5)
    del model._decode
    whole = torch.compile(model.generator, backend="eager", fullgraph=True)
    condition = seen_by_g2(model, replace(asked, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(whole(condition)[0], model.generator(condition)[0])
