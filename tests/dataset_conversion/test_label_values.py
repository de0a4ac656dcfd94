"""`--label-values`, rounding, and advice that can be followed."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion.folder import Options
from nnunet_synth.dataset_conversion.label_values import as_labels
from nnunet_synth.errors import UserError

NAMES = {"background": 0, "infection": 1}


def labels(*values: float, dtype: type = np.uint8) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.array([[values]], dtype))
    image.SetSpacing((0.7, 0.8, 5))
    image.SetOrigin((1, 2, 3))
    return image


def array_of(image: SimpleITK.Image) -> list[float]:
    return SimpleITK.GetArrayFromImage(image).ravel().tolist()


@pytest.mark.parametrize("stored, mapping, expected, repair", [
    ((0, 255, 255), {255: 1}, [0, 1, 1], "values changed: 255=1"),
    ((0, 128, 255), {255: 1, 128: 0}, [0, 0, 1], "values changed: 128=0 255=1"),
    ((0, 1, 2), {1: 0, 2: 1}, [0, 0, 1], "values changed: 1=0 2=1"),
    ((1, 0, 0), {1: 0, 0: 1}, [0, 1, 1], "values changed: 0=1 1=0"),          # all at once
])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_values_are_exchanged(stored, mapping, expected, repair, dtype):
    found, repairs = as_labels(labels(*stored, dtype=dtype), "a", NAMES, mapping)
    assert array_of(found) == expected and repairs == (repair,)
    assert found.GetSpacing() == (0.7, 0.8, 5) and found.GetOrigin() == (1, 2, 3)


@pytest.mark.parametrize("mapping", [{}, {255: 1}, {1: 1}])
def test_nothing_to_do_is_no_repair(mapping):
    stored = labels(0, 1, 1)
    found, repairs = as_labels(stored, "a", NAMES, mapping)
    assert found is stored and repairs == ()


def test_rounding_comes_before_the_values_and_is_reported():
    stored = labels(0, 254.9995, 1.0000001, dtype=np.float32)
    found, repairs = as_labels(stored, "a", NAMES, {255: 1})
    assert array_of(found) == [0, 1, 1]
    assert repairs == ("values within 0.001 of an integer rounded", "values changed: 255=1")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.9, 0.5, np.nan])
def test_beyond_a_rounding_the_advice_is_to_save_integers(value, dtype):
    with pytest.raises(UserError, match=f"a holds values that are not integers, e.g. {value}: .*save them as integers"):
        as_labels(labels(0, 1, value, dtype=dtype), "a", NAMES, {})


@pytest.mark.parametrize("stored", [(0, 255), (0, 2), (0, 2, 3), (0, 1, 5), (-1, 0, 1), (-3, -2, 0, 7, 8),
                                    (0, 100, 255, 1000)])
@pytest.mark.parametrize("names", [NAMES, {"background": 0, "ggo": 1, "fluid": 2}])
def test_advice_can_be_followed(stored, names):
    """Each option that the message shows is one that the parser takes and that mends this very map."""
    import argparse

    from nnunet_synth.dataset_conversion.folder import add_arguments
    stored = labels(*stored, dtype=np.int16)
    if set(array_of(stored)) <= set(names.values()):
        return
    with pytest.raises(UserError) as caught:
        as_labels(stored, "a", names, {})
    options = re.findall(r"--label-(?:names|values)[= ][^,;]*", str(caught.value))
    assert options
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for option in options:
        words = shlex.split(option)
        if "--label-names" not in option:
            words += ["--label-names", *(f"{name}={value}" for name, value in names.items())]
        chosen = Options(**vars(parser.parse_args(words)))
        as_labels(stored, "a", chosen.label_names, chosen.label_values)


def test_an_image_is_no_label_map():
    with pytest.raises(UserError, match=r"holds 28 value\(s\) without a name, 2, 3, 4, 5, 6: .*looks like an image"):
        as_labels(labels(*range(30)), "a", NAMES, {})


@pytest.mark.parametrize("pairs, message", [
    ({255: 2}, "255=2: 2 is none of the labels background=0 infection=1"),
    ([(255, 1), (255, 0)], "gives a value twice")])
def test_bad_mappings(pairs, message):
    with pytest.raises(UserError, match=message):
        Options(label_values=pairs)
