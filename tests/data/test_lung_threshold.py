from itertools import permutations, product

import numpy as np
import pytest
from numpy.random import SeedSequence

from nnunet_synth.data.lung_threshold import LungThresholds, calibrate, find_lungs
from nnunet_synth.data.phantom import PhantomSettings, draw_case
from tests.makers.chest_around import chest_around
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


# -- disease -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_a_lung_without_air_is_missing_and_does_not_move_the_other(side):
    case = draw_case(SeedSequence([2, 0, 0]), PhantomSettings(96, 12), has_lesions=False)
    white = np.where(case.layout == side, 30, case.image)
    found = find_lungs(white, case.spacing, "SPL")
    other = LEFT + RIGHT - side
    assert dice(found == other, case.layout == other) > 0.94
    assert (found == side).sum() < 0.02 * (found == other).sum()


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_pleural_fluid_is_no_lung_and_the_rest_of_the_lung_is(chest, side):
    """A level of fluid fills the lowest third of one side of a patient who lies on the back, up to 45 mm deep."""
    fluid = LUNGS[side] & (np.arange(SHAPE[1]) > 82)[:, None]
    chest[fluid] = 10 + np.random.default_rng(1).normal(0, 20, fluid.sum())
    found = find_lungs(chest, SPACING, "SPL")
    assert dice(found == side, LUNGS[side] & ~fluid) > 0.93
    other = LEFT + RIGHT - side
    assert dice(found == other, LUNGS[other]) > 0.97


@pytest.mark.parametrize("sides", [(LEFT,), (LEFT, RIGHT)])
def test_emphysema_as_dark_as_gas_is_lung(chest, sides):
    heart = ellipsoid(-20, -30, 35, 45, 40, 40)                         # a small left lung
    chest[heart] = 40
    for side in sides:
        chest[LUNGS[side] & ~heart] -= 110                              # to -960 HU
    found = find_lungs(chest, SPACING, "SPL")
    for side, lung in LUNGS.items():
        assert dice(found == side, lung & ~heart) > 0.96


def test_gas_in_the_stomach_that_touches_the_lung_above_it_is_no_lung(chest):
    below = np.zeros(SHAPE, bool)
    below[:8] = True
    chest[below & LUNGS[LEFT]] = 40                                     # the abdomen ends where the left lung begins
    gas = ellipsoid(-40, -5, 72, 25, 30, 35) & below
    chest[gas] = -1000
    lung = LUNGS[LEFT] & ~below
    assert (gas[7] & lung[8]).sum() > 300
    found = find_lungs(chest, SPACING, "SPL")
    assert (found[gas] > 0).mean() < 0.02
    assert dice(found == LEFT, lung) > 0.97


# -- what surrounds the patient ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_prone", [False, True])
def test_the_table_s_foam_is_no_lung_behind_or_in_front(chest, is_prone):
    rows = slice(0, 15) if is_prone else slice(113, 128)
    chest[:, rows] = -150                                               # shell
    chest[:, rows][:, 2:-2, 2:-2] = -880
    found = find_lungs(chest, SPACING, "SPL")
    assert not found[:, rows].any()
    for side, lung in LUNGS.items():
        assert dice(found == side, lung) > 0.97


def test_arms_beside_the_chest_and_the_air_between_are_no_lung(chest):
    expected = find_lungs(chest, SPACING, "SPL")
    for x in (-152, 152):
        arm = ellipsoid(0, -5, x, 1e6, 60, 30) & (chest < -500) & ~LUNGS[LEFT] & ~LUNGS[RIGHT]
        chest[arm] = 40
        chest[ellipsoid(0, -5, x, 1e6, 12, 12)] = 700                   # its bone
        chest[ellipsoid(0, 30, 0.93 * x, 1e6, 9, 7)] = -1000            # trapped in the armpit
    found = find_lungs(chest, SPACING, "SPL")
    assert dice(found > 0, expected > 0) > 0.99
    for side in (LEFT, RIGHT):
        assert dice(found == side, expected == side) > 0.99


@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
def test_lungs_cut_by_a_narrow_reconstructed_circle_are_found(padding):
    case = draw_case(SeedSequence([2, 0, 0]), PhantomSettings(128, 8), has_lesions=False)
    y, x = (np.arange(128) - 63.5) * case.spacing[1], (np.arange(128) - 63.5) * case.spacing[2]
    circle = y[:, None] ** 2 + x ** 2 < 119 ** 2                        # the chest wall of both sides is missing
    is_open = (case.layout > 0) & ~circle
    assert all(is_open[case.layout == side].any() for side in (LEFT, RIGHT))
    image = np.where(circle, case.image, padding)
    found = find_lungs(image, case.spacing, "SPL")
    for side in (LEFT, RIGHT):
        assert dice(found == side, (case.layout == side) & circle) > 0.92
    assert found[:, ~circle].mean() < 0.01


@pytest.mark.parametrize("slices", [slice(0, 8), slice(4, 8), slice(8, 16), slice(7, 8)])
def test_scans_that_end_within_the_lungs_give_the_lungs_they_show(slices):
    case = draw_case(SeedSequence([3, 0, 0]), PhantomSettings(96, 16), has_lesions=False)
    found = find_lungs(case.image[slices], case.spacing, "SPL")
    for side in (LEFT, RIGHT):
        assert dice(found == side, case.layout[slices] == side) > 0.92


def test_a_child_is_measured_by_a_smaller_rule(chest):
    """The same chest a third as wide: its windpipe, walls and gaps are a third, too."""
    windpipe = ellipsoid(60, 20, 0, 60, 9, 9)
    chest[windpipe] = -1000
    small = tuple(step / 3 for step in SPACING)
    expected = find_lungs(chest, SPACING, "SPL")
    found = find_lungs(chest, small, "SPL")
    assert dice(found > 0, expected > 0) > 0.98
    assert found[windpipe].mean() < 0.05


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


LUNG_MASKS = "0004 0026 0033 0064 0075 0082 0089 0091 0108 0143".split()
SMALL_CHILDREN = {"0004": 0.89, "0108": 0.96}       # chests 90 to 110 mm wide, whose pseudo-masks mix left and right


@pytest.mark.parametrize("number", LUNG_MASKS)
def test_lungs_of_real_shape(shared_data, number):
    """CT drawn around the pseudo-masks of COVID-19-20, in whose geometry (LPS) 1 is the left lung."""
    import SimpleITK
    mask = SimpleITK.ReadImage(str(shared_data / "covid19_20_lungs" / f"volume-covid19-A-{number}.nii.gz"))
    lungs = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(mask, "LPS"))[:, 2::4, 2::4]
    x, y, z = mask.GetSpacing()
    spacing = (z, 4 * y, 4 * x)
    found = find_lungs(chest_around(lungs, spacing, is_prone=number > "0080"), spacing, "SPL")
    if number in SMALL_CHILDREN:
        assert dice(found > 0, lungs > 0) > SMALL_CHILDREN[number]
        return
    # Measured: both 0.98 to 0.99; one of them down to 0.96 (0075: the masks part the lungs elsewhere).
    assert dice(found > 0, lungs > 0) > 0.975
    for side in (LEFT, RIGHT):
        assert dice(found == side, lungs == side) > 0.955
