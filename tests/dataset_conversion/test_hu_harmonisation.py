import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion.hu_harmonisation import harmonise, measure_tissue
from nnunet_synth.errors import UserError
from tests.makers.volumes import phantom

HALF_STEP = 1500 / 255 / 2


def gray(hu: np.ndarray, low: float = -1250.0, high: float = 250.0) -> np.ndarray:
    return np.rint((np.clip(hu, low, high) - low) * 255 / (high - low))


def values(image: SimpleITK.Image) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(image)


def image_of(array: np.ndarray) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 5.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    return image


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_every_value_of_the_window_comes_back_within_half_a_step(dtype):
    hu = np.arange(-1300, 1100).reshape(20, 12, 10)
    result = harmonise(image_of(gray(hu).astype(dtype)))
    inside = (hu >= -1250) & (hu <= 250)
    assert np.abs(values(result.image) - hu)[inside].max() <= HALF_STEP + 1e-3
    assert (values(result.image)[hu > 250] == 250).all() and (values(result.image)[hu < -1250] == -1250).all()
    assert result.image.GetSpacing() == (0.7, 0.8, 5.0) and result.image.GetOrigin() == (1.0, 2.0, 3.0)
    assert result.repairs == ("gray values 0 to 255 scaled back to HU, window -1250…250",)
    assert result.metadata == {"lowest_stored_value": 0.0, "highest_stored_value": 255.0, "limited_to_window": True}


def test_the_range_is_that_of_the_voxels_not_of_the_window():
    result = harmonise(image_of(np.array([[[38, 200, 251.5]]], np.float32)))
    np.testing.assert_allclose(values(result.image).ravel(), np.array([38, 200, 251.5]) * 1500 / 255 - 1250, atol=1e-3)
    assert "38 to 251.5" in result.repairs[0]


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
def test_hounsfield_units_stay_as_they_are(dtype):
    hu = phantom(0).image
    result = harmonise(image_of(hu.astype(dtype)))
    np.testing.assert_array_equal(values(result.image), hu)
    assert values(result.image).dtype == np.int16 and result.repairs == () and not result.metadata["limited_to_window"]


def test_what_was_harmonised_already_is_not_scaled_again():
    once = harmonise(image_of(gray(phantom(0).image).astype(np.uint8))).image
    again = harmonise(once)
    np.testing.assert_array_equal(values(again.image), values(once))
    assert again.repairs == () and again.metadata["limited_to_window"]


@pytest.mark.parametrize("array", [
    np.linspace(0, 4095, 60), np.linspace(0, 1, 60), np.linspace(-400, 1000, 60), np.full(60, 40.0),
    np.linspace(-1, 1, 60), np.linspace(0, 300, 60)], ids=["offset", "unit", "no air", "constant", "centred", "above"])
def test_values_of_an_unknown_scale_are_refused(array):
    with pytest.raises(UserError, match="neither HU") as caught:
        harmonise(image_of(array.reshape(3, 4, 5)))
    assert f"{array.min():g} to {array.max():g}" in str(caught.value) and "\n" not in str(caught.value)


def test_lung_and_soft_tissue_are_measured():
    for seed in range(4):
        case = phantom(seed)
        found, doubts = measure_tissue(case.image, case.layout > 0)
        assert -900 < found["lung_hu"] < -700 and 20 < found["soft_tissue_hu"] < 65 and doubts == ()
        harmonised = values(harmonise(image_of(gray(case.image).astype(np.uint8))).image)
        again, doubts = measure_tissue(harmonised, case.layout > 0)
        assert abs(again["lung_hu"] - found["lung_hu"]) <= 4 and doubts == ()
        assert abs(again["soft_tissue_hu"] - found["soft_tissue_hu"]) <= 6


@pytest.mark.parametrize("window, organ", [((-1000.0, 400.0), "lungs"), ((-1350.0, 550.0), "soft tissue"),
                                           ((-1000.0, 200.0), "lungs")])
def test_another_window_is_noticed(window, organ):
    case = phantom(2)
    harmonised = values(harmonise(image_of(gray(case.image, *window).astype(np.uint8))).image)
    _, doubts = measure_tissue(harmonised, case.layout > 0)
    assert doubts and any(phrase.startswith(f"NOT repaired: {organ} at ") for phrase in doubts)


def test_a_mask_of_something_else_is_refused():
    case = phantom(0)
    elsewhere = (case.image > 0) & (case.layout == 0)
    with pytest.raises(UserError, match="does not fit the image"):
        measure_tissue(case.image, elsewhere)
