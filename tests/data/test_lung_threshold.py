from itertools import permutations, product

import numpy as np
import pytest
from numpy.random import SeedSequence

from nnunet_synth.data.lung_threshold import LungThresholds, calibrate, find_lungs
from nnunet_synth.data.phantom import PhantomSettings, draw_case
from tests.makers.covid_semiseg import draw_slice

LEFT, RIGHT = 1, 2
SPACING = (5.0, 2.0, 2.0)
SHAPE = (24, 128, 160)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def ellipsoid(cz: float, cy: float, cx: float, rz: float, ry: float, rx: float) -> np.ndarray:
    """In mm from the volume's centre; axes S, P, L."""
    z, y, x = (spacing * (np.arange(size) - (size - 1) / 2)
               for spacing, size in zip(SPACING, SHAPE, strict=True))
    return (((z[:, None, None] - cz) / rz) ** 2 + ((y[:, None] - cy) / ry) ** 2 + ((x - cx) / rx) ** 2) < 1


LUNGS = {LEFT: ellipsoid(10, 0, 72, 70, 68, 50), RIGHT: ellipsoid(10, 0, -72, 70, 68, 50)}


@pytest.fixture
def chest() -> np.ndarray:
    """HU with axes S, P, L: a body of 2 x 140 mm, two lungs, and noise."""
    hu = np.full(SHAPE, -1000.0)
    hu[ellipsoid(0, 0, 0, 1e6, 95, 145)] = 40
    for lung in LUNGS.values():
        hu[lung] = -850
    return hu + np.random.default_rng(0).normal(0, 20, SHAPE)


@pytest.mark.parametrize("seed", range(4))
def test_lungs_of_the_phantom_are_found_with_their_lesions(seed):
    case = draw_case(SeedSequence([seed, 0, 0]), PhantomSettings(96, 12))
    found = find_lungs(case.image, case.spacing, "SPL")
    for side in (LEFT, RIGHT):
        assert dice(found == side, case.layout == side) > 0.94
    assert (found[case.label > 0] > 0).mean() > 0.85
    assert found.dtype == np.uint8


def test_any_orientation_gives_the_same_lungs():
    case = draw_case(SeedSequence([1, 0, 0]), PhantomSettings(48, 4))
    expected = find_lungs(case.image, case.spacing, "SPL")
    opposite = dict(zip("SPL", "IAR", strict=True))
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            axes = tuple(np.flatnonzero(flips))
            codes = "".join(opposite["SPL"[a]] if flips[i] else "SPL"[a] for i, a in enumerate(order))
            turned = np.flip(case.image.transpose(order), axes)
            found = find_lungs(turned, tuple(case.spacing[a] for a in order), codes)
            np.testing.assert_array_equal(found, np.flip(expected.transpose(order), axes))


def test_left_is_the_patients_left(chest):
    found = find_lungs(chest, SPACING, "SPL")
    for side, lung in LUNGS.items():
        assert dice(found == side, lung) > 0.97


def test_fine_pixels_give_the_same_lungs(chest):
    fine = chest.repeat(4, axis=1).repeat(4, axis=2)
    found = find_lungs(fine, (5.0, 0.5, 0.5), "SPL")
    assert found.shape == fine.shape
    for side, lung in LUNGS.items():
        assert dice(found == side, lung.repeat(4, axis=1).repeat(4, axis=2)) > 0.97


def test_bowel_gas_table_windpipe_and_larynx_are_no_lung(chest):
    gas = ellipsoid(-52, -40, 10, 8, 30, 40)                                # 0.04 l under the left lung
    windpipe = ellipsoid(60, 20, 0, 60, 9, 9)
    table = np.zeros(SHAPE, bool)
    table[:, 118:120], table[:, 126:] = True, True                          # hollow: air between two plates
    chest[gas | windpipe] = -1000
    chest[table] = 100
    found = find_lungs(chest, SPACING, "SPL")
    assert not found[gas & ~LUNGS[LEFT] & ~LUNGS[RIGHT]].any()
    assert found[windpipe].mean() < 0.05
    assert not found[:, 112:].any()
    for side, lung in LUNGS.items():
        assert dice(found == side, lung & ~gas) > 0.95


@pytest.mark.parametrize("where", ["side", "back", "vessel"])
def test_consolidation_and_vessels_belong_to_the_lung(chest, where):
    dense = {"side": ellipsoid(10, 0, -125, 25, 35, 24), "back": ellipsoid(10, 64, -75, 30, 18, 22),
             "vessel": ellipsoid(10, 10, -70, 60, 6, 6)}[where] & LUNGS[RIGHT]
    chest[dense] = 40
    # The convex hull cuts the curved chest wall by a chord: two thirds of these are inside of it.
    expected = {"side": 0.65, "back": 0.65, "vessel": 0.98}[where]
    found = find_lungs(chest, SPACING, "SPL")
    assert (found[dense] == RIGHT).mean() > expected
    assert dice(found == RIGHT, LUNGS[RIGHT]) > 0.96
    without = find_lungs(chest, SPACING, "SPL", thresholds=LungThresholds(pocket_mm=0))
    assert where == "vessel" or (without[dense] == RIGHT).mean() < 0.4


def test_the_dome_of_the_diaphragm_is_no_lung(chest):
    dome = ellipsoid(-40, 0, -72, 22, 30, 27)                               # encircled by lung in the lower slices
    chest[dome] = 50
    found = find_lungs(chest, SPACING, "SPL")
    wide = dome & (dome.sum(axis=(1, 2), keepdims=True) * SPACING[1] * SPACING[2] > 1200)
    assert (found[wide] > 0).mean() < 0.1


def test_lungs_that_touch_in_front_are_parted_at_the_junction_line(chest):
    bridge = np.zeros(SHAPE, bool)
    bridge[6:20, 44:50, 55:105] = True
    bridge &= ~LUNGS[LEFT] & ~LUNGS[RIGHT]
    line = np.zeros(SHAPE, bool)
    line[:, :, 79:81] = True
    chest[bridge & ~line] = -850
    chest[bridge & line] = -450                                             # thinner than a pixel: partial volume
    found = find_lungs(chest, SPACING, "SPL")
    assert (found[bridge] > 0).mean() > 0.9
    columns = np.arange(SHAPE[2])
    for side, own in ((RIGHT, columns < 79), (LEFT, columns > 80)):
        assert (found[bridge & own] == side).mean() > 0.95


@pytest.mark.parametrize("image", [np.full(SHAPE, -1000.0), np.full(SHAPE, 40.0), np.zeros((1, 40, 40))])
def test_no_lung_is_no_error(image):
    assert not find_lungs(image, SPACING, "SPL").any()


@pytest.mark.parametrize("axes", ["SPX", "SP", "SSL", "SAP", "SPLL"])
def test_axes_must_be_three_directions(axes):
    with pytest.raises(ValueError, match="axes"):
        find_lungs(np.zeros((2, 4, 4)), (1, 1, 1), axes)


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, offset", [(1, 0), (0.4, 0), (0.5, 60)])
@pytest.mark.parametrize("seed", range(3))
def test_lungs_of_pictures_are_found_whatever_the_window(seed, scale, offset):
    picture, lesions, lungs = draw_slice(seed, (240, 192))
    found = find_lungs((picture * scale + offset).astype(np.uint8), None, "LP", is_hu=False)
    for side in (LEFT, RIGHT):
        assert dice(found == side, lungs == side) > 0.93
    assert (found[lesions > 0] > 0).mean() > 0.9


def test_the_orientation_of_a_picture_decides_which_lung_is_left():
    picture = draw_slice(0, (240, 192))[0]
    expected = find_lungs(picture, None, "LP", is_hu=False)
    np.testing.assert_array_equal(find_lungs(picture.T, None, "PL", is_hu=False), expected.T)
    np.testing.assert_array_equal(find_lungs(picture[:, ::-1], None, "LA", is_hu=False), expected[:, ::-1])
    swapped = find_lungs(picture, None, "RP", is_hu=False)
    assert dice(swapped == LEFT, expected == RIGHT) > 0.98


def test_padding_in_the_corners_is_no_lung():
    picture, _, lungs = draw_slice(0, (240, 192))
    y, x = np.mgrid[0:240, 0:192]
    corner = (y + x < 50) | ((239 - y) + (191 - x) < 50)
    found = find_lungs(np.where(corner, 0, picture).astype(np.uint8), None, "LP", is_hu=False)
    assert not found[corner & (lungs == 0)].any()
    assert dice(found > 0, lungs > 0) > 0.93


def test_calibration_maps_lung_and_soft_tissue():
    picture, lesions, lungs = draw_slice(0, (240, 192))
    hu = calibrate((picture * 0.4).astype(np.uint8))
    assert abs(np.median(hu[(lungs > 0) & (lesions == 0)]) + 850) < 30
    assert abs(np.median(hu[lungs == 0]) - 40) < 30
    assert not (calibrate(np.zeros((30, 30), np.uint8)) < -300).any()


# -- real images -------------------------------------------------------------------------------------------------------


def test_the_real_volume(shared_data):
    import SimpleITK
    image = SimpleITK.ReadImage(str(shared_data / "lung_ct_volume" / "lung1_image.nrrd"))
    tumour = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(shared_data / "lung_ct_volume" / "lung1_label.nrrd")))
    spacing = image.GetSpacing()[::-1]
    found = find_lungs(SimpleITK.GetArrayFromImage(image), spacing, "SPL")
    litres = {side: (found == side).sum() * np.prod(spacing) / 1e6 for side in (LEFT, RIGHT)}
    # Looked at: all slices right; the heart makes the left lung the smaller one, and the tumour is in the right one.
    assert litres[LEFT] == pytest.approx(1.14, abs=0.1) and litres[RIGHT] == pytest.approx(1.83, abs=0.1)
    assert (found[tumour > 0] == RIGHT).mean() > 0.95
    assert not found[43:].any()                                             # neck: larynx and pharynx


def test_infection_lies_in_the_lungs_found_in_real_slices(shared_data):
    from PIL import Image
    folder = shared_data / "covid_semiseg" / "Dataset" / "TrainingSet" / "LungInfection-Train" / "Doctor-label"
    shares = []
    for file in sorted((folder / "Imgs").iterdir())[::3]:
        found = find_lungs(np.asarray(Image.open(file)), None, "LP", is_hu=False)
        infected = np.asarray(Image.open(folder / "GT" / f"{file.stem}.png")) > 127
        shares.append((found[infected] > 0).mean())
        assert 0.1 < (found > 0).mean() < 0.85
    # All 50: mean 0.93, median 0.99; the worst is a lung that is white throughout.
    assert np.mean(shares) > 0.9 and np.median(shares) > 0.97
