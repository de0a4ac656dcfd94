"""The window of intensities."""

import numpy as np
import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.quality.window import Window, choose_window
from tests.quality.sets import image_set


def test_both_forms_say_the_same():
    window, image = Window(-1000.0, 1000.0), np.array([-3000.0, -1000, 0, 500, 1000, 2000])
    assert window.to_unit(torch.from_numpy(image)).tolist() == [0, 0, 0.5, 0.75, 1, 1]
    assert window.to_gray(image).tolist() == [0, 0, 128, 191, 255, 255]


def test_the_choice_depends_on_the_real_images_only():
    rng = np.random.default_rng(0)
    pictures = image_set("real", rng.integers(0, 255, (4, 16, 16)))
    assert (choose_window(pictures).low, choose_window(pictures).high) == (0, 255)
    assert (choose_window(pictures, is_ct=True).low, choose_window(pictures, is_ct=True).high) == (-1250, 250)
    other = image_set("real", rng.normal(0, 1, (4, 32, 32)))
    assert choose_window(other).low == pytest.approx(np.percentile(other.images, 0.5))
    assert choose_window(other).high == pytest.approx(np.percentile(other.images, 99.5))


def test_nothing_to_see():
    with pytest.raises(UserError, match="the same intensity"):
        choose_window(image_set("real", np.full((3, 16, 16), -7)))
    with pytest.raises(UserError, match="LOW below HIGH"):
        Window(3, 3)


def test_real_images_are_cut_off_where_the_synthetic_ones_were_drawn():
    from nnunet_synth.quality.window import drawn_window
    assert drawn_window({"a": None}) is None
    window = drawn_window({"a": (-781.0, -88.0), "b": None, "c": (-900.0, -100.0)})
    assert (window.low, window.high) == (-781.0, -100.0) and "a and c was drawn" in window.reason
