"""The contract that every synthesizer keeps, as one call for a plug-in's own tests:

    from nnunet_synth.testing import check_synthesizer

    def test_contract():
        check_synthesizer(MySynthesizer)

It trains nothing to quality: a few steps on 32 × 32 slices on the CPU, seconds in all. Each broken promise fails with a
sentence that names it.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from nnunet_synth.synthesizers import checkpoint
from nnunet_synth.synthesizers.base import Slices, StyleOptions, Synthesizer, SynthMeta, SynthRequest
from nnunet_synth.synthesizers.options import make_config
from nnunet_synth.synthesizers.semantic import SemanticClasses

# Of the slices, in "network intensities": not [-1, 1], so that a forgotten map between the two shows.
RANGE = (-1.5, 3.0)
CHECKS: list[Callable[[_Subject], None]] = []


def check_synthesizer(synthesizer: type[Synthesizer], preset: str = "tiny", size: int = 32, num_channels: int = 1,
                      **options: Any) -> None:
    """Run every check on a synthesizer built from `preset` (with `options` changed).

    Args:
        size: of the training crops, pixels; raised to the synthesizer's divisor where that is larger.

    Raises:
        AssertionError: the first promise that is broken.
    """
    before = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        subject = _Subject.build(synthesizer, preset, size, num_channels, options)
        for check in CHECKS:
            check(subject)
    finally:
        torch.set_rng_state(before)


# ----------------------------------------------------------------------------------------------------------------------
# What is checked, and on what


@dataclass
class _Subject:
    """A synthesizer after a few steps of each stage, with its style pool."""

    synthesizer_class: type[Synthesizer]
    synthesizer: Synthesizer
    slices: ContractSlices
    size: int

    @classmethod
    def build(cls, synthesizer_class: type[Synthesizer], preset: str, size: int, num_channels: int,
              options: dict[str, Any]) -> _Subject:
        config = make_config(synthesizer_class, preset, options)
        in_json = json.loads(json.dumps(asdict(config)))        # which knows no tuples
        meta = contract_meta(synthesizer_class.name, in_json, num_channels, size)
        divisor = synthesizer_class.build(meta, config).divisor
        size = -(-size // divisor) * divisor
        meta = replace(meta, divisor=divisor, patch_size=[size, size])
        subject = cls(synthesizer_class, synthesizer_class.build(meta, config), ContractSlices(size, num_channels),
                      size)
        subject.train_a_step()
        subject.synthesizer.eval()
        subject.synthesizer.fit_pool(subject.slices)
        return subject

    def train_a_step(self) -> None:
        """Forward and backward of every stage: losses are finite, gradients reach what is trained and nothing else."""
        self.synthesizer.prepare_training(self.slices)
        stages = self.synthesizer.stages(steps=20)
        assert stages, "stages() returned no stage"
        for number, stage in enumerate(stages):
            where = f"stage {stage.name}"
            stage.batch_size = 2
            self.synthesizer.requires_grad_(False).eval()
            stage.generator.requires_grad_(True).train()
            batch = stage.sample(self.slices, np.random.default_rng([0, number]))
            again = stage.sample(self.slices, np.random.default_rng([0, number]))
            for name, tensor in batch.items():
                assert tensor.device.type == "cpu", f"{where}: sample() must return CPU tensors, {name} is not"
                assert torch.equal(tensor, again[name]), \
                    f"{where}: sample() draws from something else than the rng that it is given ({name} differs)"
            loss, terms = stage.generator_loss(batch)
            _check_loss(loss, terms, f"{where}: generator_loss")
            assert stage.discriminator is None or "fake" in batch, \
                f'{where}: generator_loss must leave the drawn images, detached, in batch["fake"]'
            assert not batch.get("fake", torch.zeros(1)).requires_grad, f'{where}: batch["fake"] must be detached'
            loss.backward()
            trained = {id(parameter) for parameter in stage.generator.parameters()}
            assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0
                       for parameter in stage.generator.parameters()), f"{where}: no gradient reaches its generator"
            assert all(parameter.grad is None for parameter in self.synthesizer.parameters()
                       if id(parameter) not in trained), f"{where}: gradients reach frozen parameters"
            self.synthesizer.zero_grad(set_to_none=True)
            if stage.discriminator is not None:
                stage.discriminator.requires_grad_(True)
                loss, terms = stage.discriminator_loss(batch)
                _check_loss(loss, terms, f"{where}: discriminator_loss")
                loss.backward()
                assert all(parameter.grad is None for parameter in stage.generator.parameters()), \
                    f"{where}: discriminator_loss sends gradients into the generator"
                self.synthesizer.zero_grad(set_to_none=True)        # stages may share a discriminator
            rates = stage.learning_rates(0)
            assert len(rates) == 2 and all(np.isfinite(rates)), f"{where}: learning_rates must return two numbers"
            stage.generator.requires_grad_(False).eval()
            stage.on_end()

    def request(self, height: int | None = None, width: int | None = None, num_samples: int = 3,
                seed: int | None = 0) -> SynthRequest:
        """Discs, the square lung, an image, and a strip on the left that is not valid."""
        part = self.slices.draw(num_samples, height or self.size, width or self.size, np.random.default_rng(5))
        valid = part.valid.clone()
        valid[..., :3] = False
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return replace(part, valid=valid).request(generator)

    def draw(self, request: SynthRequest) -> Tensor:
        self.synthesizer.begin_step(torch.Generator().manual_seed(1))
        return self.synthesizer.synthesize(request).image.clone()


class ContractSlices:
    """A `SliceSource`: bright discs (label 1) in a square "lung" (layout 1), some slices without a disc."""

    def __init__(self, size: int, num_channels: int = 1, num_slices: int = 8, shows_labels: bool = True) -> None:
        self.size, self.num_channels, self.num_slices = size, num_channels, num_slices
        self.shows_labels = shows_labels

    def draw(self, num_slices: int, height: int, width: int, rng: np.random.Generator, has_disc: bool = True) -> Slices:
        y, x = np.mgrid[:height, :width]
        lung = (abs(y - height / 2) < height * 0.4) & (abs(x - width / 2) < width * 0.4)
        labels, images = [], []
        for _ in range(num_slices):
            centre = rng.uniform(0.35, 0.65, 2) * (height, width)
            disc = has_disc & ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (0.2 * min(height, width)) ** 2)
            image = np.where(disc, 2.0, np.where(lung, 0.0, -1.2)) + rng.normal(0, 0.1, (height, width))
            labels.append(disc)
            images.append(np.clip(image, *RANGE))
        label = torch.from_numpy(np.stack(labels)).long() * self.shows_labels
        image = torch.from_numpy(np.stack(images)).float()[:, None].repeat(1, self.num_channels, 1, 1)
        return Slices(image=image, label=label, layout=torch.from_numpy(lung).long().expand_as(label).clone(),
                      valid=torch.ones_like(label, dtype=torch.bool),
                      origin=[("contract", number) for number in range(num_slices)], cluster=find_clusters(image))

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        return self.draw(num_slices, *patch_size, rng)

    def unlabelled(self) -> ContractSlices:
        return ContractSlices(self.size, self.num_channels, self.num_slices, shows_labels=False)

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        if only_targets and not self.shows_labels:
            return
        for number in range(min(self.num_slices, max_slices or self.num_slices)):
            has_disc = number % 4 != 3
            if has_disc or not only_targets:
                part = self.draw(1, self.size, self.size, np.random.default_rng([9, number]), has_disc)
                yield replace(part, origin=[("contract", number)])


def find_clusters(image: Tensor) -> Tensor:
    """[N, C, H, W] → [N, H, W] int64: 1 = dark (outside), 2 = grey (lung), 3 = bright (disc)."""
    return 1 + (image[:, 0] > -0.6).long() + (image[:, 0] > 1).long()


def contract_meta(name: str, config: dict[str, Any], num_channels: int, size: int) -> SynthMeta:
    return SynthMeta(synthesizer=name, config=config, dataset="Dataset001_Contract",
                     channel_names=[f"channel {number}" for number in range(num_channels)],
                     semantic=SemanticClasses.from_labels({"lesion": 1}, {"lung": 1}), target_labels=[1],
                     intensity_range=[list(RANGE)] * num_channels, patch_size=[size, size], divisor=1, fold=0,
                     train_case_ids=["contract"])


def _check_loss(loss: Tensor, terms: dict[str, Tensor], where: str) -> None:
    assert loss.ndim == 0 and bool(torch.isfinite(loss)), f"{where} must be one finite number, got {loss}"
    assert loss.requires_grad, f"{where} has no gradient"
    for name, term in terms.items():
        assert not term.requires_grad, f"{where}: term {name!r} is for the log and must be detached"


# ----------------------------------------------------------------------------------------------------------------------
# The promises


def _check(function: Callable[[_Subject], None]) -> Callable[[_Subject], None]:
    CHECKS.append(function)
    return function


@_check
def _keeps_shape_range_and_outside(subject: _Subject) -> None:
    request = subject.request()
    result = _drawn(subject, request)
    image, outside = result.image, ~request.valid[:, None].expand_as(request.image)
    assert image.shape == request.image.shape, f"the image has shape {tuple(image.shape)}, the request " \
                                               f"{tuple(request.image.shape)}"
    assert image.dtype == torch.float32, f"the image is {image.dtype}, it must be float32"
    assert not image.requires_grad, "the image hangs in an autograd graph"
    assert bool(torch.isfinite(image).all()), "the image holds NaN or Inf"
    inside = image[~outside]
    slack = 1e-5 * (RANGE[1] - RANGE[0])
    assert RANGE[0] - slack <= float(inside.min()) and float(inside.max()) <= RANGE[1] + slack, \
        f"the image leaves the intensity range {RANGE}: {float(inside.min()):.3f} to {float(inside.max()):.3f}"
    assert torch.equal(image[outside], request.image[outside]), \
        "outside the valid area the image must be the request's own"
    assert result.ok.dtype == torch.bool and result.ok.shape == (len(request.label),), "ok must be bool, one a sample"
    assert bool(result.ok.all()), "a request whose classes all occur in the pool was called not drawable"


def _drawn(subject: _Subject, request: SynthRequest) -> Any:
    subject.synthesizer.begin_step(torch.Generator().manual_seed(1))
    return subject.synthesizer.synthesize(request)


@_check
def _follows_its_seed(subject: _Subject) -> None:
    first, second = subject.draw(subject.request(seed=3)), subject.draw(subject.request(seed=3))
    assert torch.equal(first, second), "two calls with the same seed drew different images"
    torch.rand(5)
    assert torch.equal(first, subject.draw(subject.request(seed=3))), \
        "the image depends on torch's global random numbers, not only on the request's generator"


@_check
def _draws_new_images_where_it_has_noise(subject: _Subject) -> None:
    if not getattr(subject.synthesizer.config, "noise", False):
        return
    noisy = copy.deepcopy(subject.synthesizer)
    with torch.no_grad():       # published networks begin with noise of strength 0: look past that
        for parameter in noisy.parameters():
            if not parameter.any():
                parameter.fill_(0.1)
    changed = replace(subject, synthesizer=noisy)
    assert not torch.equal(changed.draw(changed.request(seed=3)), changed.draw(changed.request(seed=4))), \
        "config.noise is on, but two seeds drew the same image"


@_check
def _follows_its_label(subject: _Subject) -> None:
    request = subject.request()
    without = replace(request, label=torch.zeros_like(request.label), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(subject.draw(request), subject.draw(without)), "the image does not depend on the label"


@_check
def _tells_what_its_label_head_sees(subject: _Subject) -> None:
    from nnunet_synth.errors import UserError
    labelling = replace(subject, synthesizer=copy.deepcopy(subject.synthesizer))
    labelling.synthesizer.label_source = "head"
    if not subject.synthesizer.has_label_head:
        try:
            _drawn(labelling, labelling.request())
        except UserError:
            return
        raise AssertionError("it has no label head, but label_source head was not refused")
    request = labelling.request()
    result, again = _drawn(labelling, request), _drawn(labelling, labelling.request())
    assert result.label.dtype == torch.int64 and result.label.shape == request.label.shape, \
        f"the head's label is {result.label.dtype} {tuple(result.label.shape)}, not int64 {tuple(request.label.shape)}"
    known = [0, *(int(value) for value in subject.synthesizer.meta.semantic.label_classes)]
    assert bool(torch.isin(result.label, torch.tensor(known)).all()), "the head's label holds no dataset label"
    assert torch.equal(result.label, again.label), "two calls with the same seed told different labels"
    outside = ~request.valid
    assert torch.equal(result.label[outside], request.label[outside]), \
        "outside the valid area the label must be the request's own"
    expected = subject.draw(labelling.request())
    assert torch.equal(result.image, expected), "the image must not depend on who labels it"


@_check
def _changes_nothing(subject: _Subject) -> None:
    synthesizer, request = subject.synthesizer, subject.request()
    synthesizer.begin_step(torch.Generator().manual_seed(1))
    given = {name: getattr(request, name).clone() for name in ("label", "image", "layout", "cluster", "valid")}
    state = {name: tensor.clone() for name, tensor in synthesizer.state_dict().items()}
    rng_state = torch.get_rng_state()
    synthesizer.requires_grad_(True)
    result = synthesizer.synthesize(request)
    weight = torch.ones((), requires_grad=True)
    (result.image * weight).sum().backward()
    leaking = [name for name, parameter in synthesizer.named_parameters() if parameter.grad is not None]
    synthesizer.requires_grad_(False)
    assert not leaking, f"a loss on synthetic images sends gradients into {leaking[0]}"
    changed = [name for name, tensor in synthesizer.state_dict().items() if not _same(tensor, state[name])]
    assert not changed, f"synthesize changed the buffer {changed[0]}"
    assert torch.equal(torch.get_rng_state(), rng_state), "synthesize consumed torch's global random numbers"
    for name, tensor in given.items():
        assert _same(tensor, getattr(request, name)), f"synthesize wrote into the request's {name}"


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(torch.isnan(a.float()).any() and torch.allclose(a, b, equal_nan=True))


@_check
def _shares_no_storage(subject: _Subject) -> None:
    request = subject.request()
    first = _drawn(subject, request)
    kept = first.image.clone()
    for name in ("label", "image"):
        result = getattr(first, name)
        for other in ("label", "image", "layout", "cluster", "valid"):
            assert result.untyped_storage().data_ptr() != getattr(request, other).untyped_storage().data_ptr(), \
                f"the result's {name} shares storage with the request's {other}"
    _drawn(subject, subject.request(seed=8))
    assert torch.equal(first.image, kept), "the next call overwrote the image of the last one"


@_check
def _is_independent_of_the_batch(subject: _Subject) -> None:
    """With another companion in the batch, a sample stays the same (train-mode batch norm would break this)."""
    request = subject.request(num_samples=2)
    other = replace(request, label=torch.stack([request.label[0], torch.zeros_like(request.label[1])]),
                    image=torch.stack([request.image[0], torch.full_like(request.image[1], RANGE[1])]),
                    generator=torch.Generator().manual_seed(0))
    difference = float((subject.draw(request)[0] - subject.draw(other)[0]).abs().max())
    assert difference <= 1e-4 * (RANGE[1] - RANGE[0]), \
        f"a sample changes by {difference:.2g} with its companions in the batch: is something in train mode?"


@_check
def _draws_alike_in_channels_last_and_bfloat16(subject: _Subject) -> None:
    """What a training on a GPU does to it: another order in memory changes nothing, half precision little."""
    request = subject.request()
    expected = subject.draw(request)[request.valid[:, None].expand_as(request.image)]
    turned = replace(subject, synthesizer=copy.deepcopy(subject.synthesizer).to(memory_format=torch.channels_last))
    image = request.image.contiguous(memory_format=torch.channels_last)

    def errors(drawn: Tensor) -> Tensor:
        return (drawn[request.valid[:, None].expand_as(drawn)] - expected).abs()

    difference = float(errors(turned.draw(replace(subject.request(), image=image))).max())
    assert difference <= 1e-4 * (RANGE[1] - RANGE[0]), \
        f"in channels_last it draws other images (by {difference:.2g}): something reads memory in its own order"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = _drawn(turned, replace(subject.request(), image=image))
    assert result.image.shape == request.image.shape and result.image.dtype == torch.float32, \
        f"under autocast the image is {result.image.dtype} {tuple(result.image.shape)}, it must be float32 " \
        f"{tuple(request.image.shape)}"
    assert torch.equal(result.label, request.label) and bool(result.ok.all()), "autocast must not change label or ok"
    assert bool(torch.isfinite(result.image).all()), "in bfloat16 the image holds NaN or Inf"
    # The networks are hardly trained: of the intensity range they use so little that nearly everything is close in it.
    # A bfloat16 is rounded by up to 0.4 %; ours are off by less than 2 % of the deviation.
    difference, deviation = float(errors(result.image).mean()), float(expected.std())
    assert difference <= 0.05 * deviation + 1e-5 * (RANGE[1] - RANGE[0]), \
        f"in bfloat16 its images are off by {difference:.2g} on average, of a deviation of {deviation:.2g}: sums of " \
        "many pixels and differences of large numbers belong in float32"


@_check
def _draws_odd_sizes_and_volumes(subject: _Subject) -> None:
    size = subject.size
    for height, width in ((size + 1, size + 3), (size // 2 + 1, 2 * size - 1)):
        image = subject.draw(subject.request(height, width, num_samples=1))
        assert image.shape[2:] == (height, width), f"asked for {height} × {width}, drew {tuple(image.shape[2:])}"
        assert bool(torch.isfinite(image).all()), f"{height} × {width}: the image holds NaN or Inf"
    flat = subject.request(num_samples=4)
    deep = SynthRequest(label=flat.label.unflatten(0, (2, 2)), layout=flat.layout.unflatten(0, (2, 2)),
                        cluster=flat.cluster.unflatten(0, (2, 2)), valid=flat.valid.unflatten(0, (2, 2)),
                        image=flat.image.unflatten(0, (2, 2)).transpose(1, 2),
                        generator=torch.Generator().manual_seed(0))
    drawn = subject.draw(deep).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(drawn, subject.draw(flat), atol=1e-4, rtol=0,
                               msg="a volume differs from the same slices drawn one by one")


@_check
def _refuses_what_it_cannot_do_without(subject: _Subject) -> None:
    from nnunet_synth.errors import UserError
    for part in subject.synthesizer.needs:
        assert part in ("image", "layout", "cluster"), f"needs names {part!r}, which no request has"
        try:
            subject.draw(replace(subject.request(), **{part: None}))
        except UserError:
            continue
        raise AssertionError(f"needs names {part}, but a request without it was not refused")


@_check
def _survives_the_disk(subject: _Subject) -> None:
    """Saved and loaded, it draws the same images, bit by bit."""
    with tempfile.TemporaryDirectory() as folder, \
            mock.patch.object(checkpoint, "find_synthesizer", lambda name: subject.synthesizer_class):
        checkpoint.save_synthesizer(subject.synthesizer, Path(folder))
        first = checkpoint.load_synthesizer(folder)
        checkpoint.save_synthesizer(first, Path(folder))
        second = checkpoint.load_synthesizer(folder)
    assert first.meta == subject.synthesizer.meta, "meta.json did not survive the disk"
    assert first.config == subject.synthesizer.config, "the configuration did not survive the disk"
    images = []
    for loaded in (first, second):
        loaded.style = subject.synthesizer.style
        loaded.fit_pool(subject.slices)
        images.append(replace(subject, synthesizer=loaded).draw(subject.request()))
    assert torch.equal(*images), "saved and loaded once more, it draws other images"
    # The exported weights may be in another form (spectral norms folded): equal up to rounding with the trained ones.
    difference = float((images[0] - subject.draw(subject.request())).abs().max())
    assert difference <= 1e-3 * (RANGE[1] - RANGE[0]), \
        f"saved and loaded, it draws other images (by {difference:.2g})"


@_check
def _works_with_every_style_source(subject: _Subject) -> None:
    synthesizer = copy.deepcopy(subject.synthesizer)
    changed = replace(subject, synthesizer=synthesizer)
    for source in StyleOptions.SOURCES:
        synthesizer.style = StyleOptions(num_styles=2, source=source)
        synthesizer.fit_pool(subject.slices)
        image = changed.draw(subject.request())
        assert bool(torch.isfinite(image).all()), f"style source {source}: the image holds NaN or Inf"
