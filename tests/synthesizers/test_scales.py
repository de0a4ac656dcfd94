"""CoSinGAN's pyramid: the published lists, smaller and other patches, and what cannot be reached."""

from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.base import Slices, SynthRequest
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from nnunet_synth.synthesizers.options import make_config
from nnunet_synth.synthesizers.scales import find_scales
from nnunet_synth.testing import contract_meta


def sides(levels):
    return [level.height for level in levels]


def test_the_published_scales_and_depths():
    levels = find_scales([512, 512])
    assert sides(levels) == [32, 48, 64, 96, 128, 192, 256, 384, 512] == [level.width for level in levels]
    assert [level.num_down for level in levels] == [4, 4, 5, 5, 6, 6, 7, 7, 7]


@pytest.mark.parametrize(("patch", "expected"), [(32, [32]), (96, [32, 48, 64, 96]),
                                                 (256, [32, 48, 64, 96, 128, 192, 256])])
def test_fewer_for_smaller_patches(patch, expected):
    assert sides(find_scales([patch, patch])) == expected


def test_the_pyramid_can_stop_early():
    levels = find_scales([256, 256], max_scale=96)
    assert sides(levels) == [32, 48, 64, 96] and [level.num_down for level in levels] == [4, 4, 5, 5]
    assert find_scales([96, 96], max_scale=96) == find_scales([96, 96])


def test_other_patches_end_at_their_own_size_and_every_level_can_be_halved():
    for patch in ([160, 128], [640, 512], [64, 224], [320, 320], [1024, 1024]):
        levels = find_scales(patch)
        divisor = 2 ** levels[-1].num_down
        rounded = [max(1, round(side / divisor)) * divisor for side in patch]
        assert [levels[-1].height, levels[-1].width] == rounded
        for level in levels:
            assert level.height % 2 ** level.num_down == 0 == level.width % 2 ** level.num_down
        assert sorted(set(map(max, ((level.height, level.width) for level in levels)))) == \
            [max(level.height, level.width) for level in levels], "each level is larger than the one before"
    assert sides(find_scales([1024, 1024])) == [64, 96, 128, 192, 256, 384, 512, 768, 1024]


def test_images_of_other_sizes_keep_the_size_of_a_pixel():
    first, *_, last = find_scales([256, 256])
    assert first.size_for([256, 256], [256, 256]) == (32, 32) and last.size_for([256, 256], [256, 256]) == (256, 256)
    assert first.size_for([512, 128], [256, 256]) == (64, 16) and last.size_for([512, 128], [256, 256]) == (512, 128)
    assert first.size_for([128, 128], [256, 256]) == (16, 16)


class Stripes:
    """One slice of 192 × 192 with lesions as stripes, 12 pixels wide and as far from each other."""

    def iterate(self, only_targets, max_slices=None):
        label = (torch.arange(192) // 12 % 2).expand(1, 192, 192).clone()
        yield Slices(label[:, None] * 2.0 - 1, label, torch.ones_like(label), torch.ones_like(label, dtype=torch.bool),
                     [("contract", 0)])


def stripe_widths(semantic):
    """Of the stripes within the rows of [N, H, W]; those at an edge are cut off."""
    lesion = (semantic == semantic.max()).int().flatten(0, 1).numpy()
    widths = []
    for row in lesion:
        steps = np.flatnonzero(np.diff(row))
        widths += [end - start for start, end in pairwise(steps) if row[end] == 1]
    return np.array(widths)


def test_a_pixel_shows_as_much_in_training_as_in_drawing(monkeypatch):
    """The slice is three patches wide: trained on all of it at once, stripes would be 4 pixels wide, and drawn 12."""
    config = make_config(CoSinGAN, "tiny", {"width": 4, "ndf": 4, "rotation": 0, "elastic": 0.0, "batch_size": 16})
    cosingan = CoSinGAN.build(contract_meta("cosingan", asdict(config), 1, 64), config).eval()
    cosingan.prepare_training(Stripes())
    drawn = []
    paint = CoSinGAN.conditions
    monkeypatch.setattr(CoSinGAN, "conditions", lambda self, semantics, grays=None: (
        drawn.append(semantics), paint(self, semantics, grays))[1])
    cosingan.begin_step(None)
    whole = next(Stripes().iterate(True))
    cosingan.synthesize(SynthRequest(label=whole.label, layout=whole.layout))

    restoring = cosingan.stages()[1::2]         # weak augmentation: parts of 0.75 to 1 of a patch
    assert len(restoring) == len(drawn[0]) == 3
    for level, stage in enumerate(restoring):
        batch = stage.sample(Stripes(), np.random.default_rng(level))
        trained, asked = stripe_widths(batch[f"semantic_{level}"]), stripe_widths(drawn[0][level])
        assert asked.mean() == pytest.approx(12 * stage.scale.width / 64, rel=0.05)
        ratio = trained.mean() / asked.mean()
        assert 1 < ratio < 1 / 0.75, f"at scale {stage.scale.width} stripes are {ratio:.2f} as wide as in drawing"


def test_what_cannot_be_reached():
    with pytest.raises(UserError, match="max_scale 100 is none of CoSinGAN's scales: choose one of 32, 48, 64, 96$"):
        find_scales([96, 96], max_scale=100)
    with pytest.raises(UserError, match="max_scale 512 cannot be reached with patches of 256 × 256: choose at most 2"):
        find_scales([256, 256], max_scale=512)
