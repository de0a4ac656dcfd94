import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion.volumes import value_counts

RNG = np.random.default_rng(0)
ARRAYS = {
    "labels": RNG.integers(0, 4, (3, 7, 5)).astype(np.uint8),
    "negative": RNG.integers(-1024, 3072, (3, 7, 5)).astype(np.int16),
    "whole range": np.array([[[-2**15, 2**15 - 1, 0]]], np.int16),
    "wide": np.array([[[0, 1 << 20, 1 << 20]]], np.int32),
    "fractions": np.array([[[0.5, 0.5, 2.0]]], np.float32),
    "picture": RNG.integers(0, 255, (7, 5)).astype(np.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_value_counts(name):
    counted = value_counts(SimpleITK.GetImageFromArray(ARRAYS[name]))
    expected = {value: int((ARRAYS[name] == value).sum()) for value in sorted(set(ARRAYS[name].ravel().tolist()))}
    assert counted == expected and list(counted) == list(expected)
    assert {type(value) for value in counted} == {float if name == "fractions" else int}
