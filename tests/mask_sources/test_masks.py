"""What the masks of V2UM and V2M hold, and how drawn ones are compared with real ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.mask_sources.measures import compare, measure_mask_source
from nnunet_synth.mask_sources.unsupervised import V2UMConfig
from nnunet_synth.superpixels import scaled_num_segments, unsupervised_mask
from nnunet_synth.synthesizers.semantic import SemanticClasses
from tests.mask_sources.toy import Discs, build

# ----------------------------------------------------------------------------------------------------------------------
# V2UM


@pytest.mark.parametrize("step", [10.0, 50.0, 85.0, 100.0, 255.0, 33.3])
def test_masks_from_noise_keep_the_bound_on_the_number_of_values(step):
    """UM2I, Algorithm 1: multiples of t in [0, 255], at most floor(255 / t) + 1 of them."""
    source = build("v2um", gray_step=step)
    with torch.no_grad():
        source.generator.to_mask[0].weight.mul_(40)             # far beyond [-1, 1] on both sides
    drawn = source.draw(16, torch.Generator().manual_seed(0))
    assert drawn.min() < -1.5 and drawn.max() > 1.5
    mask = source.unsupervised(drawn)
    bound = int(255 // step) + 1
    levels = [np.float32(level * step) for level in range(bound)]
    values = mask.unique().tolist()
    assert len(values) <= bound and all(np.isclose(value, levels, rtol=1e-5).any() for value in values)
    assert 0 in values and max(values) == pytest.approx(levels[-1])
    assert source.classes(drawn).max() < source.num_classes == bound


def test_a_value_goes_to_the_nearest_level():
    source = build("v2um", gray_step=50.0)
    gray = torch.tensor([-20.0, 0, 24, 26, 49, 51, 199, 226, 255, 400])
    masks = (gray / 255 * 2 - 1)[None, None, None]
    assert source.unsupervised(masks).flatten().tolist() == [0, 0, 0, 50, 50, 50, 200, 250, 250, 250]
    assert source.classes(masks).flatten().tolist() == [0, 0, 0, 1, 1, 1, 4, 5, 5, 5]
    plain = build("v2um", gray_step=0.0)        # t = 0 of Table V: nothing is quantised
    torch.testing.assert_close(plain.unsupervised(masks).flatten(), gray.clamp(0, 255))
    assert plain.classes(masks).max() < plain.num_classes == 26


def test_real_masks_are_algorithm_1_of_the_slice_and_survive_the_way_back():
    source = build("v2um", gray_step=50.0, num_segments=8192)
    slices = Discs().sample(4, (16, 16), np.random.default_rng(0))
    slices.valid[0, :, :5] = False
    batch = source.batch_of(slices)
    image = ((slices.image + 1) / 2).masked_fill(~slices.valid[:, None], 0)
    expected = unsupervised_mask(image, scaled_num_segments(16, 16, 8192), 50.0)
    real = source.encode(batch)
    assert real.min() >= -1 and real.max() <= 1 and len(expected.unique()) > 2
    torch.testing.assert_close(source.unsupervised(real), expected)
    assert not source.encode({**batch, "label": 1 - batch["label"]}).ne(real).any()     # no label is looked at


def test_unlabelled_slices_are_their_share_of_the_batch():
    slices = Discs(has_unlabelled=True)
    for share, expected in ((0.0, 0), (0.5, 500), (1.0, 1000)):
        source = build("v2um", unlabelled_share=share)
        asked = []

        def sample(num_slices, patch_size, rng, asked=asked, original=slices.sample):
            asked.append(num_slices)
            return original(num_slices, patch_size, rng)
        slices.sample = sample
        batch = source.sample(slices, 1000, np.random.default_rng(0))
        assert len(batch["image"]) == 1000 and sum(asked) == pytest.approx(1000 - expected, abs=60)
        del slices.sample
    alone = build("v2um").sample(Discs(), 6, np.random.default_rng(0))
    assert len(alone["image"]) == 6


@pytest.mark.parametrize("options, match", [
    ({"gray_step": -1.0}, "gray_step must be .*, got -1"), ({"gray_step": 256.0}, "gray_step must be .*, got 256"),
    ({"num_segments": 0}, "num_segments must be .*, got 0"),
    ({"num_segments": 512 ** 2 + 1}, "at most 262144, got 262145"),
    ({"unlabelled_share": 1.5}, "unlabelled_share must be .*, got 1.5"),
])
def test_bad_options(options, match):
    with pytest.raises(UserError, match=match) as error:
        V2UMConfig(**options)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------------
# V2M


def test_label_maps_are_one_hot_and_survive_the_way_back():
    source = build("v2m")
    slices = Discs().sample(4, (16, 16), np.random.default_rng(0))
    real = source.encode(source.batch_of(slices))
    assert source.num_channels == real.shape[1] == 4        # background and lesion; none and lung
    assert set(real.unique().tolist()) == {-1, 1}
    label, layout = source.maps(real)
    assert torch.equal(label, slices.label) and torch.equal(layout, slices.layout)
    assert bool((layout[label > 0] > 0).all()) and (label > 0).any()        # the lung goes on under the disc
    assert torch.equal(source.classes(real), source.meta.semantic.combine(slices.label, slices.layout))


def test_values_need_not_be_consecutive():
    source = build("v2m")
    source.meta = replace(source.meta, semantic=SemanticClasses.from_labels({"a": 3, "b": 7}, {"lung": 5}))
    label, layout = torch.tensor([[[0, 3], [7, 0]]]), torch.tensor([[[5, 0], [5, 5]]])
    real = source.encode({"image": torch.zeros(1, 1, 2, 2), "label": label, "layout": layout})
    assert real.shape[1] == 5
    back = source.maps(real)
    assert torch.equal(back[0], label) and torch.equal(back[1], layout)


def test_drawn_maps_are_probabilities_of_labels_and_of_layouts():
    source = build("v2m")
    drawn = source.draw(3, torch.Generator().manual_seed(0))
    probability = (drawn + 1) / 2
    torch.testing.assert_close(probability[:, :2].sum(1), torch.ones(3, 16, 16))
    torch.testing.assert_close(probability[:, 2:].sum(1), torch.ones(3, 16, 16))
    label, layout = source.maps(drawn)
    assert set(label.unique().tolist()) <= {0, 1} and set(layout.unique().tolist()) <= {0, 1}


# ----------------------------------------------------------------------------------------------------------------------
# Measures


def test_compare_by_hand():
    real = torch.tensor([[[0, 0], [1, 2]], [[0, 1], [1, 2]]])               # shares 3/8, 3/8, 2/8; 1/4 differs
    assert compare(real, real, 3) == {"share_distance": 0, "variety": 1}
    collapsed = torch.tensor([[[0, 0], [0, 1]]]).expand(2, -1, -1)          # shares 3/4, 1/4, 0
    measured = compare(real, collapsed, 3)
    assert measured["share_distance"] == pytest.approx(0.375) and measured["variety"] == 0
    assert compare(real, torch.full((2, 2, 2), 3), 4)["share_distance"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["v2um", "v2m"])
def test_a_source_that_draws_real_masks_measures_well(name):
    source, slices = build(name), Discs(has_unlabelled=True)

    def real_masks(seed, batch_size):
        rng = np.random.default_rng(seed)
        while True:
            yield source.encode(source.sample(slices, batch_size, rng))
    untrained = measure_mask_source(source, slices, num_masks=64)
    source.endless = real_masks
    good = measure_mask_source(source, slices, seed=5, num_masks=64)
    assert good["share_distance"] < 0.05 < untrained["share_distance"] and 0.8 < good["variety"] < 1.25
