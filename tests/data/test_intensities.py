"""Ranges of the four kinds of normalisation, and the way back to the raw images."""

from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    RescaleTo01Normalization,
    RGBTo01Normalization,
)

from nnunet_synth.data.intensities import intensity_outside, intensity_range, to_raw_intensities
from nnunet_synth.errors import UserError
from tests.synthesizers.toy import ToySlices

CT = {"mean": -320.0, "std": 250.0, "percentile_00_5": -900.0, "percentile_99_5": 180.0}


def experiment(*schemes):
    return SimpleNamespace(
        configuration_manager=SimpleNamespace(normalization_schemes=list(schemes)),
        plans_manager=SimpleNamespace(foreground_intensity_properties_per_channel={
            str(channel): CT for channel in range(len(schemes))}),
        channel_names=[f"c{channel}" for channel in range(len(schemes))])


def test_ct_is_where_nnunet_clips():
    raw = np.linspace(-1024, 3000, 500, dtype=np.float32)
    normalised = CTNormalization(intensityproperties=CT).run(raw.copy())
    (low, high), = intensity_range(experiment("CTNormalization"), ToySlices())
    assert low == pytest.approx(normalised.min(), abs=1e-5) and high == pytest.approx(normalised.max(), abs=1e-5)
    back, meanings = to_raw_intensities(experiment("CTNormalization"), normalised[None], [[low, high]])
    assert back[0] == pytest.approx(raw.clip(-900, 180), abs=1e-3) and "Hounsfield" in meanings[0]


@pytest.mark.parametrize("scheme", [RGBTo01Normalization, RescaleTo01Normalization])
def test_pictures_become_8_bit_again(scheme):
    raw = np.arange(256, dtype=np.float32)
    name = scheme.__name__
    assert intensity_range(experiment(name), ToySlices()) == [[0, 1]]
    normalised = scheme(intensityproperties={}).run(raw.copy())[None]
    assert to_raw_intensities(experiment(name), normalised, [[0, 1]])[0][0] == pytest.approx(raw, abs=1e-3)


def test_the_others_are_measured_on_valid_pixels():
    class Planted(ToySlices):
        def iterate(self, only_targets, max_slices=None):
            for part in super().iterate(only_targets, max_slices):
                part.image[:, :, 0] = 1000.0        # padding: must not count
                part.valid[:, 0] = False
                yield part

    found = intensity_range(experiment("ZScoreNormalization"), Planted(num_slices=5))
    values = np.concatenate([part.image[0, 0, 1:].numpy().ravel() for part in Planted(5).iterate(False)])
    assert found == [pytest.approx(np.percentile(values, (0.05, 99.95)).tolist())] and found[0][1] < 1
    assert found == intensity_range(experiment("NoNormalization"), Planted(num_slices=5))


def test_channels_are_independent():
    class TwoChannels(ToySlices):
        def iterate(self, only_targets, max_slices=None):
            from dataclasses import replace

            import torch
            for part in super().iterate(only_targets, max_slices):
                yield replace(part, image=torch.cat([part.image, 10 * part.image], 1))

    ct, (low, high) = intensity_range(experiment("CTNormalization", "ZScoreNormalization"), TwoChannels())
    assert ct == pytest.approx([-2.32, 2.0]) and low < -7 and high > 5


def test_a_constant_image_is_refused():
    class Constant(ToySlices):
        def iterate(self, only_targets, max_slices=None):
            for part in super().iterate(only_targets, max_slices):
                part.image[:] = 3
                yield part

    with pytest.raises(UserError, match="same intensity everywhere"):
        intensity_range(experiment("ZScoreNormalization"), Constant())


def test_z_scores_have_no_inverse_and_say_so():
    image = np.array([[[-2.0, 0.0, 4.0]]], dtype=np.float32)
    same, meanings = to_raw_intensities(experiment("ZScoreNormalization"), image, [[-2, 2]])
    assert np.array_equal(same, image) and "not recoverable" in meanings[0]
    stretched, meanings = to_raw_intensities(experiment("ZScoreNormalization"), image, [[-2, 2]], eight_bit=True)
    assert stretched[0, 0].tolist() == [0, 127.5, 255] and "0 to 255" in meanings[0]


def test_outside_is_air_or_what_nnunet_leaves_there():
    found = intensity_outside(experiment("CTNormalization", "ZScoreNormalization", "RGBTo01Normalization"),
                              [[-2, 2], [-3, 3], [0, 1]])
    assert found.tolist() == [-2, 0, 0]
