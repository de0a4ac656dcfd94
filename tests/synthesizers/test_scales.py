"""CoSinGAN's pyramid: the published lists, smaller and other patches, and what cannot be reached."""

import pytest

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.scales import find_scales


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


def test_what_cannot_be_reached():
    with pytest.raises(UserError, match="max_scale 100 is none of CoSinGAN's scales: choose one of 32, 48, 64, 96$"):
        find_scales([96, 96], max_scale=100)
    with pytest.raises(UserError, match="max_scale 512 cannot be reached with patches of 256 × 256: choose at most 2"):
        find_scales([256, 256], max_scale=512)
