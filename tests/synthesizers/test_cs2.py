"""CS2: where AdaIN sits, what it is given as content and style, its two stages, its votes, stacked slices."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.base import Slices, Stage, StyleOptions, SynthMeta, SynthRequest
from nnunet_synth.synthesizers.cs2 import CS2, ClassifierStage, CS2Config, Generator, GeneratorStage
from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator
from nnunet_synth.synthesizers.pretrain import pretrain
from nnunet_synth.synthesizers.semantic import SemanticClasses
from nnunet_synth.testing import check_synthesizer, find_clusters
from tests.reference import cs2 as published
from tests.synthesizers.test_pixel_classifier import randomise
from tests.synthesizers.test_pretrain import with_stages

SMALL = CS2Config(mask="cnn", width=2, num_down=2, num_blocks=2, ndf=4, num_discriminator_layers=2, batch_size=2,
                  num_classifiers=3, classifier_width=8, classifier_pixels=50, classifier_batch_size=2)
FORMS = [{"adain": "paper"}, {"adain": "code"}, {"adain": "paper", "style_pool": "scalar"},
         {"adain": "code", "style_pool": "scalar"}]
LABELS = {"infection": 1, "effusion": 3}


def build(config: CS2Config = SMALL, seed: int = 0, **meta: Any) -> CS2:
    """In eval mode, every weight and running statistic random."""
    defaults = {"synthesizer": "cs2", "config": asdict(config), "dataset": "Dataset001_Test", "channel_names": ["CT"],
                "semantic": SemanticClasses.from_labels(LABELS, {"lung": 1}), "target_labels": [1, 3],
                "intensity_range": [[-3.0, 2.0]], "patch_size": [16, 16], "divisor": 8, "fold": 0,
                "train_case_ids": ["case"]}
    cs2 = CS2.build(SynthMeta(**{**defaults, **meta}), config)
    randomise(cs2.classifiers, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in cs2.generator.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.ndim > 1:       # every layer passes on what it is given, nothing dies or saturates
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.uniform_(0.7, 1.3, generator=generator)
                tensor -= 0.0 if name.endswith("weight") else 1.0
    return cs2.eval()


class Planted:
    """Slices that tell who they are: slice i of `num_slices` has intensity −1 + i / 10 outside, a lung (layout 1) that
    is 1 brighter, and in the lung a lesion that is 2 + i / 100 brighter, of label 1 or 3 in turn."""

    def __init__(self, num_slices: int = 4, size: int = 16, prefix: str = "case", has_pool: bool = False,
                 cluster: bool = True) -> None:
        self.num_slices, self.size, self.prefix, self.cluster = num_slices, size, prefix, cluster
        self.pool = Planted(num_slices, size, "pool", cluster=cluster) if has_pool else None

    def one(self, number: int) -> Slices:
        size = self.size
        label, layout = torch.zeros(2, 1, size, size, dtype=torch.int64)
        layout[:, 2:-2, 2:-2] = 1
        label[:, 4:8, 4 + number:8 + number] = 1 + 2 * (number % 2)
        image = -1 + number / 10 + layout + (2 + number / 100) * (label > 0)
        if self.prefix == "pool":
            image, label = image + 0.05, torch.zeros_like(label)
        cluster = 1 + layout + (image > 0.9) if self.cluster else None
        return Slices(image[:, None].float(), label, layout, torch.ones_like(label, dtype=torch.bool),
                      [(self.prefix, number)], cluster)

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        return join([self.one(int(number)) for number in rng.integers(self.num_slices, size=num_slices)])

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        for number in range(self.num_slices):
            part = self.one(number)
            if part.label.any() or not only_targets:
                yield part

    def unlabelled(self) -> Planted | None:
        return self.pool


def join(parts: list[Slices]) -> Slices:
    maps = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("image", "label", "layout", "valid")}
    cluster = None if parts[0].cluster is None else torch.cat([part.cluster for part in parts])
    return Slices(**maps, origin=[origin for part in parts for origin in part.origin], cluster=cluster)


def ready(config: CS2Config = SMALL, slices: Planted | None = None, **meta: Any) -> CS2:
    cs2 = build(config, **meta)
    cs2.fit_pool(slices or Planted())
    cs2.begin_step(seeded(0))
    return cs2


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def request(number: int = 2, seed: int = 0, **changes: Any) -> SynthRequest:
    """Random images of three gray clusters; the lung is all but a margin; a lesion of each label."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.choice([-2.0, -0.5, 1.0], (number, 4, 4)).repeat(4, 1).repeat(4, 2)).float()
    image = image + 0.1 * torch.from_numpy(rng.standard_normal(image.shape)).float()
    label = torch.zeros(number, 16, 16, dtype=torch.int64)
    label[:, 3:7, 3:9], label[:, 10:12, 10:14] = 1, 3
    layout = F.pad(torch.ones(number, 12, 12, dtype=torch.int64), (2, 2, 2, 2))
    asked = SynthRequest(label=label, image=image[:, None], layout=layout, cluster=find_clusters(image[:, None]),
                         generator=seeded(seed))
    return replace(asked, **changes)


# ----------------------------------------------------------------------------------------------------------------------
# The contract


@pytest.mark.parametrize("options", [{}, {"adain": "code", "style_pool": "scalar", "mask": "cnn"}],
                         ids=["paper", "code"])
def test_contract(options: dict[str, str]) -> None:
    check_synthesizer(CS2, **options)


# ----------------------------------------------------------------------------------------------------------------------
# The generator


def by_hand(generator: Generator, content: Tensor, reference: Tensor) -> np.ndarray:
    """The blocks one after another, and between them AdaIN in NumPy where the paper, or the released code, has it."""
    trunk, style = generator.trunk, generator.style

    def adapted(x: Tensor, level: int) -> Tensor:
        source = len(levels) - 1 if style.only_deepest else level
        features = levels[source]
        if style.mix is not None:
            layer = style.mix[str(source)]
            features = torch.from_numpy(np.stack([published.convolved_1x1(
                one.numpy(), layer.weight.numpy(), layer.bias.numpy()) for one in features]))
        return torch.from_numpy(np.stack([published.adain(*pair) for pair in zip(x.numpy(), features.numpy(),
                                                                                strict=True)]))

    def block(stage: torch.nn.Sequential, x: Tensor, level: int) -> Tensor:
        """Convolution, norm, AdaIN where it is in every block, activation."""
        x = stage[-2](stage[-3](stage[0](x) if len(stage) == 4 else x))
        return F.relu(adapted(x, level) if generator.in_every_block else x)

    with torch.no_grad():
        levels, x = [], reference
        for stage in (trunk.stem, *trunk.down):
            x = stage[-2](stage[-3](stage[0](x) if len(stage) == 4 else x))
            levels.append(x if generator.in_every_block else F.relu(x))
            x = F.relu(x)
        x = content
        for level, stage in enumerate([trunk.stem, *trunk.down]):
            x = block(stage, x, level)
        x = trunk.blocks(x)
        for number, stage in enumerate(trunk.up):
            level = len(trunk.up) - number
            x = x if generator.in_every_block else adapted(x, level)
            x = block(stage, x, level - 1)
        return torch.tanh(generator.to_image(x)).numpy()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form.values()))
def test_adain_sits_where_it_was_published(form: dict[str, str]) -> None:
    generator = build(replace(SMALL, **form)).double().generator
    content, reference = torch.rand(2, 2, 1, 16, 24, dtype=torch.float64) * 2 - 1
    expected = by_hand(generator, content, reference)
    assert expected.std() > 0.01
    with torch.no_grad():
        drawn, _ = generator.draw(content, generator.style_of(reference))
        trained = generator(content, reference)
    np.testing.assert_allclose(drawn.numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(trained.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form.values()))
def test_one_style_serves_a_whole_batch(form: dict[str, str]) -> None:
    generator = build(replace(SMALL, **form)).generator
    content, reference = torch.rand(3, 1, 16, 16), torch.rand(1, 1, 16, 32)
    with torch.no_grad():
        style = generator.style_of(reference)
        together, features = generator.draw(content, style)
        apart = torch.cat([generator.draw(one[None], style)[0] for one in content])
        other, _ = generator.draw(content, generator.style_of(torch.rand(1, 1, 16, 32) - 1))
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    assert (together - other).abs().max() > 1e-3
    assert [level.shape[1] for level in features] == generator.feature_channels
    assert [tuple(level.shape[2:]) for level in features] == [(4, 4), (8, 8), (16, 16)]
    assert torch.equal(features[-1][:, -1:], together)


def test_in_training_content_and_reference_share_their_batch_statistics() -> None:
    """What is left for drawing are the statistics under which it was trained: those of both."""
    generator = build().double().generator.train()
    content, reference = torch.rand(2, 4, 1, 16, 16, dtype=torch.float64)
    convolution, norm = generator.trunk.stem[1], generator.trunk.stem[2]
    norm.reset_running_stats()
    norm.momentum = None
    with torch.no_grad():
        generator(content, reference)
        features = convolution(generator.trunk.stem[0](torch.cat([content, reference])))
    torch.testing.assert_close(norm.running_mean, features.mean((0, 2, 3)))
    assert norm.num_batches_tracked == 1


def test_published_sizes() -> None:
    with torch.device("meta"):
        sizes = {preset: CS2(build().meta, CS2.PRESETS[preset]) for preset in ("default", "paper")}
        discriminator = MultiScaleDiscriminator(1, 64, 4, num_scales=1)
    assert count(sizes["paper"].generator) == pytest.approx(182.5e6, rel=0.002)
    assert count(discriminator) == pytest.approx(6.96e6, rel=0.01)
    assert count(sizes["default"].generator) == pytest.approx(45.6e6, rel=0.002)
    assert len(sizes["default"].classifiers.members) == 10


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_decode_compiles_to_one_graph() -> None:
    cs2 = ready()
    prepared = cs2._prepare(request(generator=None))
    expected = cs2._decode(prepared)
    compiled = torch.compile(cs2._decode, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(prepared), expected)


# ----------------------------------------------------------------------------------------------------------------------
# Content


class Spy:
    """Notes what the generator is given as content."""

    def __init__(self, cs2: CS2) -> None:
        self.contents: list[Tensor] = []
        self.styles: list[Tensor] = []
        draw = cs2.generator.draw

        def spied(content: Tensor, style: Tensor) -> Any:
            self.contents.append(content)
            self.styles.append(style)
            return draw(content, style)

        cs2.generator.draw = spied


def test_content_is_the_mean_of_each_cluster_with_the_labels_lesions() -> None:
    cs2, asked = ready(), request()
    spy = Spy(cs2)
    cs2.synthesize(asked)
    gray = (cs2.to_unit(asked.image)[:, 0] + 1) / 2 * 255
    lesions = {label: cs2.lesion_values.value[row, :, 0] for row, label in enumerate(cs2.lesion_values.labels)}
    healthy = cs2.lesion_values.typical
    for number in range(2):
        clusters = asked.cluster[number].numpy()
        means = np.append(0, scipy.ndimage.mean(gray[number].numpy(), clusters, [1, 2, 3]))
        found = (spy.contents[0][number, 0] + 1) / 2 * 255
        for label, values in lesions.items():
            where = asked.label[number] == label
            assert len(found[where].unique()) == 1
            assert (found[where][0] - values).abs().min() < 1e-3
        looks_alike = (means >= healthy[:, 0].min().item()) & (means <= healthy[:, 1].max().item())
        untouched = (asked.label[number] == 0).numpy() & ~(looks_alike[clusters] & (asked.layout[number] > 0).numpy())
        assert untouched.sum() > 50
        np.testing.assert_allclose(found.numpy()[untouched], means[clusters][untouched], atol=1e-3)


def test_superpixels_instead_of_clusters() -> None:
    config = replace(SMALL, mask="slic", num_segments=8192, gray_step=50.0)
    cs2 = ready(config, Planted(cluster=False))
    assert cs2.needs == {"image"} and ready().needs == {"image", "cluster"}
    spy = Spy(cs2)
    cs2.synthesize(request(cluster=None))
    levels = (spy.contents[0] + 1) / 2 * 255 / 50
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert len(levels.round().unique()) <= 255 // 50 + 1


def test_outside_the_scan_nothing_is_looked_at() -> None:
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[:, :, 12:] = False
    cs2 = ready()
    spy = Spy(cs2)
    image = request().image
    for scribble in (0.0, 5.0):
        scribbled = torch.where(valid[:, None], image, scribble)
        cs2.synthesize(request(image=scribbled, valid=valid))
    assert torch.equal(*spy.contents)


def test_masks_that_nobody_took_from_an_image() -> None:
    cs2 = ready()
    mask = torch.rand(2, 1, 16, 16) * 255
    image, label = cs2.from_masks(mask, seeded(3))
    again, _ = cs2.from_masks(mask, seeded(3))
    assert image.shape == (2, 1, 16, 16) and label.shape == (2, 16, 16)
    assert torch.equal(image, again)
    assert image.min() >= -3 and image.max() <= 2 and set(label.unique().tolist()) <= {0, 1, 3}


def test_what_cannot_be_drawn() -> None:
    """A label that no labelled slice has, or an image without clusters."""
    cs2 = ready(slices=Planted(num_slices=1))               # label 1 only
    assert cs2.synthesize(request()).ok.tolist() == [False, False]
    label = request().label * (request().label == 1)
    assert cs2.synthesize(request(label=label)).ok.tolist() == [True, True]
    cluster = request().cluster
    cluster[1] = 0
    assert cs2.synthesize(request(label=label, cluster=cluster)).ok.tolist() == [True, False]


def test_clusters_that_are_missing_or_are_superpixels_are_a_users_mistake() -> None:
    class Superpixels(Planted):
        def one(self, number: int) -> Slices:
            part = super().one(number)
            return replace(part, cluster=part.cluster + 200)

    for slices, match in ((Planted(cluster=False), "no cached clusters.*--method cs2"), (Superpixels(), "superpixels")):
        with pytest.raises(UserError, match=match):
            build().fit_pool(slices)
        for stage in build().stages(10):
            with pytest.raises(UserError, match=match):
                stage.sample(slices, np.random.default_rng(0))
    with pytest.raises(UserError, match="mask=slic"):
        build().mask_of(torch.zeros(1, 1, 16, 16), None)


def test_no_lesions_to_draw_with() -> None:
    class Healthy(Planted):
        def one(self, number: int) -> Slices:
            part = super().one(number)
            return replace(part, label=torch.zeros_like(part.label))

        def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
            yield from (self.one(number) for number in range(2))

    with pytest.raises(UserError, match="fold 0 has a lesion"):
        build().fit_pool(Healthy())


# ----------------------------------------------------------------------------------------------------------------------
# Style


def test_the_pool_holds_the_styles_of_labelled_slices() -> None:
    cs2, slices = build(), Planted(5, has_pool=True)
    cs2.fit_pool(slices)
    assert cs2.references.origins == [("case", number) for number in range(5)]      # and no unlabelled one
    for number in range(5):
        unit = cs2.to_unit(slices.one(number).image)
        torch.testing.assert_close(cs2.references.codes[number], cs2.generator.style_of(unit))
    definition = cs2.pool_definition()
    cs2.fit_pool(Planted(5))
    assert cs2.pool_definition() == definition
    cs2.fit_pool(Planted(4))
    assert cs2.pool_definition() != definition


def test_every_mini_batch_has_one_reference() -> None:
    cs2 = ready()
    spy = Spy(cs2)
    seen = set()
    for seed in range(20):
        cs2.begin_step(seeded(seed))
        cs2.synthesize(request(3))
        assert spy.styles[-1].shape[0] == 1
        index, = (cs2.references.codes[:, 0] == spy.styles[-1]).all(1).nonzero()[0].tolist()
        seen.add(index)
        cs2.begin_step(seeded(seed))
        assert torch.equal(cs2.reference, spy.styles[-1])
    assert seen == {0, 1, 2, 3}


def test_its_own_style_needs_neither_pool_nor_edit() -> None:
    cs2 = build()
    cs2.style = StyleOptions(source="self")
    cs2.begin_step(None)
    spy, asked = Spy(cs2), request()
    cs2.synthesize(asked)
    unit = cs2.to_unit(asked.image)
    torch.testing.assert_close(spy.styles[0], cs2.generator.style_of(unit))
    torch.testing.assert_close(spy.contents[0], cs2.mask_of(unit, asked.cluster) / 255 * 2 - 1)
    with pytest.raises(RuntimeError, match="fit_pool"):
        build().begin_step(None)


@pytest.mark.parametrize("has_pool", [False, True])
@pytest.mark.parametrize("num_slices", [2, 3, 8])
def test_the_reference_is_never_the_contents_own_slice(num_slices: int, has_pool: bool) -> None:
    stage = GeneratorStage(build(replace(SMALL, batch_size=3)), 10, None)
    slices = Planted(num_slices, has_pool=has_pool)
    who = {float(stage.cs2.to_unit(part.image)[0, 0, 0, 0]): part.origin[0]
           for source in filter(None, (slices, slices.pool)) for part in source.iterate(only_targets=False)}
    seen, pairs = set(), set()
    for seed in range(60):
        batch = stage.sample(slices, np.random.default_rng(seed))
        for content, reference in zip(batch["image"], batch["reference"], strict=True):
            pair = who[float(content[0, 0, 0])], who[float(reference[0, 0, 0])]
            assert pair[0] != pair[1]
            pairs.add(pair)
            seen |= set(pair)
    assert seen == set(who.values())                # nobody is left out, on either side
    assert len(pairs) > len(who) or num_slices == 2


def test_a_single_slice_has_no_other_to_take_the_style_from() -> None:
    with pytest.raises(UserError, match="only slice 0 of case case"):
        GeneratorStage(build(), 10, None).sample(Planted(1), np.random.default_rng(0))


# ----------------------------------------------------------------------------------------------------------------------
# The label head


def test_the_head_tells_dataset_labels_by_vote() -> None:
    cs2, asked = ready(), request()
    randomise(cs2.classifiers, seed=6)          # see all labels
    cs2.label_source = "head"
    drawn = cs2.synthesize(asked)
    assert set(drawn.label.unique().tolist()) <= {0, 1, 3} and len(drawn.label.unique()) == 3
    with torch.no_grad():
        prepared = cs2._prepare(request())
        mask = cs2._draw(prepared)
        ballots = [member([level.tanh() for level in mask[1]]).argmax(-1) for member in cs2.classifiers.members]
    values = [0, 1, 3]
    for place in np.ndindex(2, 16, 16):
        assert drawn.label[place] == values[published.majority([int(ballot[place]) for ballot in ballots])]
    cs2.label_source = "pseudo"
    assert torch.equal(cs2.synthesize(request()).label, asked.label)


def test_classifiers_learn_annotated_pixels_of_labelled_slices() -> None:
    class PartlyValid(Planted):
        def one(self, number: int) -> Slices:
            part = super().one(number)
            part.valid[..., 10:] = False
            return part

    cs2 = build()
    stage = ClassifierStage(cs2, 10)
    batch = stage.sample(PartlyValid(has_pool=True), np.random.default_rng(0))
    pixels = batch["pixels"]
    assert pixels.shape == (3, 50, 3) and pixels[..., 2].max() < 10
    assert not torch.equal(pixels[0], pixels[1])                    # to each classifier its own
    sample, row, column = pixels.unbind(2)
    assert set(batch["class"][sample, 0, row, column].unique().tolist()) == {0, 1, 2}   # places of labels 0, 1, 3

    before = {name: tensor.clone() for name, tensor in cs2.generator.state_dict().items()}
    stage.generator.train()
    loss, terms = stage.generator_loss(batch)
    loss.backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in cs2.generator.state_dict().items())
    assert all(parameter.grad is None for parameter in cs2.generator.parameters())
    missing = [name for name, parameter in stage.generator.named_parameters() if parameter.grad is None]
    assert missing == [] and set(terms) == {"cross_entropy", "accuracy"}


def test_the_loss_is_the_sum_of_the_classifiers_weighted_cross_entropies() -> None:
    cs2 = build()
    stage = ClassifierStage(cs2, 10)
    batch = stage.sample(Planted(), np.random.default_rng(0))
    with torch.no_grad():
        loss, _ = stage.generator_loss(batch)
        style = cs2.generator.style_of(batch["image"])
        _, features = cs2.generator.draw(cs2.mask_of(batch["image"], batch["cluster"]) / 255 * 2 - 1, style)
        expected = 0.0
        for member, own in zip(cs2.classifiers.members, batch["pixels"], strict=True):
            probability = member.at([level.tanh() for level in features], own).softmax(-1).double()
            target = batch["class"][own[:, 0], 0, own[:, 1], own[:, 2]]
            weight = torch.where(target == 0, SMALL.background_weight, 1.0).double()
            expected += (-weight * probability[torch.arange(50), target].log()).sum() / weight.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# The generator's stage


def perceptual(image: Tensor) -> list[Tensor]:
    return [F.avg_pool2d(image, 2 ** level) for level in range(3)]


def test_each_step_trains_its_own_network_only() -> None:
    cs2 = build().train()
    stage = cs2.stages(10, perceptual)[0]
    batch = stage.sample(Planted(), np.random.default_rng(0))
    stage.generator_loss(batch)[0].backward()
    assert all(parameter.grad is None for parameter in stage.discriminator.parameters())
    assert all(parameter.grad is None for parameter in cs2.classifiers.parameters())
    missing = [name for name, parameter in stage.generator.named_parameters() if parameter.grad is None]
    assert missing == []
    stage.generator.zero_grad(set_to_none=True)
    stage.discriminator_loss(batch)[0].backward()
    assert all(parameter.grad is None for parameter in stage.generator.parameters())
    assert all(parameter.grad is not None for parameter in stage.discriminator.parameters())


def test_the_loss_is_its_named_terms() -> None:
    for features, config, weight in ((perceptual, SMALL, 0.001), (None, SMALL, 10.0),
                                     (None, replace(SMALL, content_weight=3.0), 3.0),
                                     (perceptual, replace(SMALL, style_loss="features"), 0.001)):
        cs2 = build(config).train()
        stage = cs2.stages(10, features)[0]
        batch = stage.sample(Planted(), np.random.default_rng(0))
        loss, terms = stage.generator_loss(batch)
        assert set(terms) == {"adversarial", "content"} | ({"style"} if features else set())
        assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-5)
        gray = (batch["image"][:, 0] + 1) / 2
        means = np.stack([published.mean_assignment(one.numpy(), own.numpy())
                          for one, own in zip(gray, batch["cluster"], strict=True)])
        expected = ((batch["fake"][:, 0].numpy() - (means * 2 - 1)) ** 2).mean()
        assert terms["content"].item() == pytest.approx(weight * expected, rel=1e-4)


def test_no_loss_sees_what_nobody_annotated() -> None:
    class Scribbled(Planted):
        scribble = 0.0

        def one(self, number: int) -> Slices:
            part = super().one(number)
            part.valid[..., 12:] = False
            part.image[..., 12:] = self.scribble
            return part

    losses = []
    for scribble in (0.0, 1.5):
        Scribbled.scribble = scribble
        torch.manual_seed(0)
        stage = build().train().stages(10, perceptual)[0]
        batch = stage.sample(Scribbled(), np.random.default_rng(0))
        loss, _ = stage.generator_loss(batch)
        assert (batch["image"][..., 12:] == -1).all() and (batch["fake"][..., 12:] == -1).all()
        losses.append((loss.item(), stage.discriminator_loss(batch)[0].item()))
    assert losses[0] == losses[1]


def test_steps_are_shared_among_the_stages() -> None:
    stages = build().stages(100)
    assert [(stage.name, stage.num_steps) for stage in stages] == [("generator", 90), ("classifiers", 10)]
    assert stages[0].betas == (0.9, 0.999) and stages[1].betas == (0.5, 0.999)
    with pytest.raises(UserError, match="too few"):
        build().stages(1)


@pytest.mark.parametrize("stage, step", [("generator", 1), ("classifiers", 0)])
def test_an_interrupted_pretraining_ends_as_if_never_stopped(tmp_path: Path, stage: str, step: int) -> None:
    """Four steps of the generator and two of the classifiers."""
    config = replace(SMALL, classifier_share=1 / 3)

    def fresh(seed: int) -> CS2:
        torch.manual_seed(seed)
        return CS2.build(build().meta, config)

    whole = pretrain(fresh(0), Planted(has_pool=True), tmp_path / "whole", steps=6)
    with pytest.raises(KeyboardInterrupt):
        pretrain(interrupted_in(fresh(0), stage, step), Planted(has_pool=True), tmp_path / "cut", steps=6)
    resumed = pretrain(fresh(1), Planted(has_pool=True), tmp_path / "cut", steps=6, resume=True)
    expected = whole.export_state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.export_state().items())


def interrupted_in(cs2: CS2, name: str, step: int) -> CS2:
    """Gets SIGINT during one step of a stage, as by Ctrl-C."""
    def change(stages: list[Stage]) -> None:
        stage, = (stage for stage in stages if stage.name == name)
        stage.begin_step = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == step else None

    return with_stages(cs2, change)


def test_exported_is_what_drawing_needs() -> None:
    cs2 = ready()
    asked = request()
    expected = cs2.synthesize(asked).image
    state = cs2.export_state()
    assert {name.split(".")[0] for name in state} == {"generator", "classifiers"}
    other = build(seed=5)
    other.load_exported(state)
    other.fit_pool(Planted())
    other.begin_step(seeded(0))
    assert torch.equal(other.synthesize(request()).image, expected)


# ----------------------------------------------------------------------------------------------------------------------
# Stacked slices (2.5D)


class PlantedMontages(Planted):
    """2 × 2 of the slices above: number, number + 1, … around."""

    def one(self, number: int) -> Slices:
        tiles = [super(PlantedMontages, self).one((number + k) % self.num_slices) for k in range(4)]

        def joined(name: str) -> Tensor:
            rows = [torch.cat([getattr(tile, name) for tile in tiles[k:k + 2]], -1) for k in (0, 2)]
            return torch.cat(rows, -2)

        names = ("image", "label", "layout", "valid", "cluster")
        return Slices(origin=[("montage", number)], **{name: joined(name) for name in names})


STACKED = replace(SMALL, stacked=True)


def stacked() -> CS2:
    return ready(STACKED, PlantedMontages(5), montage=[2, 2], patch_size=[32, 32], divisor=16)


def test_the_generator_sees_the_slices_of_a_montage_as_channels() -> None:
    cs2, part = stacked(), PlantedMontages(5).one(2)
    assert cs2.divisor == 2 * build().divisor and cs2.generator.trunk.in_channels == 4
    cs2.label_source = "head"
    spy = Spy(cs2)
    drawn = cs2.synthesize(part.request(seeded(0)))
    content = spy.contents[0]
    assert content.shape == (1, 4, 16, 16) and drawn.image.shape == (1, 1, 32, 32) and drawn.label.shape == (1, 32, 32)
    for number in range(4):
        # The corner of each slice is a cluster of its own, whose mean is the slice's planted intensity.
        own = cs2.to_unit(Planted(5).one((2 + number) % 5).image)
        torch.testing.assert_close(content[0, number, 0, 0], own[0, 0, 0, 0], rtol=0, atol=1e-5)
    with torch.no_grad():
        image, features = cs2.generator.draw(content, cs2.reference)
        labels = cs2.label_values[cs2.classifiers(features)]
    assert torch.equal(drawn.label[0, 16:, :16], labels[2])
    torch.testing.assert_close(drawn.image[0, 0, :16, 16:], cs2.from_unit(image[:, 1:2])[0, 0])


def test_stacked_slices_train() -> None:
    cs2 = build(STACKED, montage=[2, 2], patch_size=[32, 32], divisor=16).train()
    generator, classifiers = cs2.stages(10, perceptual)
    batch = generator.sample(PlantedMontages(5), np.random.default_rng(0))
    generator.generator_loss(batch)[0].backward()
    assert batch["fake"].shape == (2, 1, 32, 32)
    assert generator.discriminator_loss(batch)[0].isfinite()
    slices = PlantedMontages(5)
    batch = classifiers.sample(slices, np.random.default_rng(1))
    assert batch["class"].shape == (2, 4, 16, 16)
    expected = slices.sample(2, (32, 32), np.random.default_rng(1)).label
    assert torch.equal(cs2.label_values[batch["class"][:, 3]], expected[:, 16:, 16:])
    cs2.eval().classifiers.train()
    loss, _ = classifiers.generator_loss(batch)
    assert loss.isfinite()


def test_whole_montages_are_padded_slice_by_slice() -> None:
    """Slices of 18 × 18 become 24 × 24; each stays in its corner, under its own style and lesions."""
    cs2 = build(STACKED, montage=[2, 2], patch_size=[32, 32], divisor=16)
    part = PlantedMontages(5, size=18).one(0)
    prepared = cs2.prepare_slices(part)
    assert prepared.image.shape == (1, 1, 64, 64)       # multiples of 16, of which 8 is what the generator needs
    for number, (row, column) in enumerate(np.ndindex(2, 2)):
        tile = slice(32 * row, 32 * row + 18), slice(32 * column, 32 * column + 18)
        own = Planted(5, size=18).one(number)
        torch.testing.assert_close(prepared.image[0, 0][tile], cs2.to_unit(own.image)[0, 0])
        for name in ("label", "cluster", "layout", "valid"):
            assert torch.equal(getattr(prepared, name)[0][tile], getattr(own, name)[0])
    assert prepared.valid.sum() == 4 * 18 ** 2


def test_clusters_of_different_slices_are_different_clusters() -> None:
    """In a montage that is not stacked, too."""
    cs2 = build(montage=[2, 2], patch_size=[32, 32])
    part = PlantedMontages(5).one(0)
    mask = cs2.mask_of(cs2.to_unit(part.image), part.cluster)
    corners = mask[0, 0, ::16, ::16].flatten()
    assert len(corners.unique()) == 4


def test_stacked_slices_need_a_montage() -> None:
    with pytest.raises(UserError, match="--montage 2x2"):
        build(STACKED)


# ----------------------------------------------------------------------------------------------------------------------
# Users' mistakes


@pytest.mark.parametrize("wrong, match", [
    ({"mask": "felzenszwalb"}, "cnn, slic"),
    ({"adain": "all"}, "paper, code"),
    ({"style_pool": "max"}, "channel, scalar"),
    ({"style_loss": "gram"}, "statistics, features"),
    ({"gray_step": 256.0}, "at most 255"),
    ({"num_segments": 0}, "num_segments"),
    ({"unlabelled_share": 1.5}, "at most 1, got 1.5"),
    ({"classifier_share": 1.0}, "below 1, got 1"),
    ({"num_classifiers": 0}, "at least 1"),
    ({"classifier_width": 2}, "at least 4"),
])
def test_unknown_and_impossible_options(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        CS2Config(**wrong)


def test_a_patch_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="no multiple of 8"):
        build(patch_size=[16, 20]).stages(10)
