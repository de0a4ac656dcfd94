"""What is drawn for which labels, and what single images tell."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.sharpness import variance_of_laplacian
from nnunet_synth.selection.acceptance import to_unit
from nnunet_synth.selection.judging import Judge, lesion_conditions, real
from nnunet_synth.synthesizers.semantic import SemanticClasses
from nnunet_synth.testing import RANGE, ContractSlices

SEMANTIC = SemanticClasses.from_labels({"lesion": 1, "other lesion": 2}, {"lung": 1})


class SomeEmpty(ContractSlices):
    """Every other crop shows no disc."""

    def sample(self, num_slices, patch_size, rng):
        part = super().sample(num_slices, patch_size, rng)
        part.label[::2] = 0
        return part


class SeesBright:
    """Finds discs; calls the lower half of what it sees another class."""

    def label(self, images, layouts):
        assert images.shape[0] == layouts.shape[0] and images.ndim == 4
        return (images[:, 0] > 1).astype(np.int64)


def judge(slices=None, number=10, segmenter=None, lesions=(1,)):
    slices = slices or ContractSlices(32)
    return Judge(partial(lesion_conditions, slices, [1], (32, 32), number, 5), number, segmenter, lesions, SEMANTIC,
                 partial(to_unit, intensity_range=[list(RANGE)]))


def test_conditions_all_show_a_lesion_and_are_the_same_each_time():
    make = partial(lesion_conditions, SomeEmpty(32), [1], (32, 32), 10)
    first, again, other = (torch.cat([part.label for part in make(seed)]) for seed in (5, 5, 6))
    assert len(first) == 10 and bool(first.flatten(1).any(1).all())
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all(len(part.origin) == len(part.image) == len(part.cluster) for part in make(5))


def test_real_images_are_found_and_judged_in_their_own_unit(tmp_path):
    found = judge(segmenter=SeesBright()).look_at("real", real, tmp_path / "real")
    assert found.conditions == list(range(10)) and len(found.images) == 10 and min(found.dice) == 1
    images = torch.tensor(np.array(found.images.images))
    assert -1 <= images.min() and images.max() <= 1
    np.testing.assert_allclose(found.laplacian, variance_of_laplacian((images + 1) / 2).numpy(), rtol=1e-6)
    assert len(found.rows) == 6 and len(found.rows[0]) == 3 and found.rows[0][0].shape == (32, 32, 3)


def test_exchanged_images_are_not_what_was_asked_for(tmp_path):
    def shuffled(part):
        return part.image.roll(1, 0), torch.ones(len(part.label), dtype=torch.bool)

    found = judge(segmenter=SeesBright()).look_at("shuffled", shuffled, tmp_path / "shuffled")
    assert np.mean(found.dice) < 0.8


def test_background_is_ignored_and_classes_are_averaged(tmp_path):
    """Of two lesion classes one is found, the other one is asked for and missed; who sees nothing gets 0, not the
    Dice of the background."""
    def with_two(part):
        part.label[:, :, 16:] *= 2
        return part.image, torch.ones(len(part.label), dtype=torch.bool)

    class SeesOne(SeesBright):
        def label(self, images, layouts):
            seen = super().label(images, layouts)
            seen[:, :, 16:] = 0
            return seen

    found = judge(segmenter=SeesOne(), lesions=(1, 2)).look_at("two", with_two, tmp_path / "two")
    assert set(found.dice) == {0.5}

    class SeesNothing:
        def label(self, images, layouts):
            return np.zeros(layouts.shape, np.int64)

    assert set(judge(segmenter=SeesNothing()).look_at("none", real, tmp_path / "none").dice) == {0.0}
    assert np.isnan(judge().look_at("nobody", real, tmp_path / "nobody").dice).all()


def test_what_cannot_be_drawn_is_left_out(tmp_path):
    def some(part):
        return part.image, torch.arange(len(part.label)) % 2 == 1

    found = judge(number=12).look_at("some", some, tmp_path / "some")
    assert found.conditions == [1, 3, 5, 7, 9, 11]

    def none(part):
        return part.image, torch.zeros(len(part.label), dtype=torch.bool)

    with pytest.raises(UserError, match="none could draw 0 of 12 images"):
        judge(number=12).look_at("none", none, tmp_path / "no")
