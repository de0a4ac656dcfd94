import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from nnunet_synth.data.lung_threshold import calibrate, find_lungs
from nnunet_synth.data.phantom import PhantomCase
from nnunet_synth.dataset_conversion.chest_orientation import DECISIVE, OVERWHELMING, find_orientation
from nnunet_synth.errors import UserError
from tests.makers.volumes import phantom

FLIPS = [axes for number in range(4) for axes in itertools.combinations(range(3), number)]
EXCHANGED = np.array([0, 2, 1], np.uint8)


@pytest.fixture(scope="module")
def phantoms() -> list[PhantomCase]:
    return [phantom(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def real_chest(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """HU and lungs of a real patient, [z, y, x] LPS, half the resolution in plane."""
    image = SimpleITK.DICOMOrient(
        SimpleITK.ReadImage(str(shared_data / "lung_ct_volume" / "lung1_image.nrrd")), "LPS")
    hu = SimpleITK.GetArrayFromImage(image)[:, ::2, ::2]
    return hu, find_lungs(hu, (5.0, *(2 * step for step in image.GetSpacing()[:2])), "SPL")


def found(hu: np.ndarray, lungs: np.ndarray, axes: tuple[int, ...] = ()) -> tuple:
    finding = find_orientation(np.flip(hu, axes), np.flip(lungs, axes))
    return finding.reversed_axes, finding.is_renumbered, finding.doubts


@pytest.mark.parametrize("axes", FLIPS)
def test_every_reversal_of_a_phantom_is_found(phantoms, axes):
    for case in phantoms:
        assert found(case.image, case.layout, axes) == (axes, False, ())


@pytest.mark.parametrize("axes", FLIPS)
def test_every_reversal_of_a_real_chest_is_found(real_chest, axes):
    assert found(*real_chest, axes) == (axes, False, ())


@pytest.mark.slow
def test_every_reversal_of_the_patients_of_covid19_ct_seg_is_found(shared_data):
    """As pictures: the unlabelled slices of COVID-SemiSeg were cut out of these 20 volumes, each cropped to the chest.

    Columns of the pictures run along y, to the front in the coronacases volumes. Their numbers rise with z, but in the
    volume of radiopaedia_7_85703_0, which is published head first.
    """
    folder = shared_data / "covid_semiseg/Dataset/TrainingSet/LungInfection-Train/Pseudo-label/Imgs"
    names = {path.stem.rsplit("_", 1)[0] for path in folder.iterdir()}
    assert len(names) == 20
    for name in sorted(names):
        hu, lungs = _stack(folder, name)
        for axes in FLIPS:
            assert found(hu, lungs, axes) == (axes, False, ()), name


def _stack(folder: Path, name: str, most: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """About HU, and lungs, of a volume whose slices are laid centre on centre."""
    from PIL import Image
    files = sorted(folder.glob(f"{name}_*.jpg"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
    files = files[::-1] if "7_85703" in name else files
    pictures = [np.asarray(Image.open(file).convert("L")).T[::2, ::2] for file in files[::-(-len(files) // most)]]
    pictures = [picture[::-1] for picture in pictures] if "coronacases" in name else pictures
    size = np.max([picture.shape for picture in pictures], axis=0)
    hu, lungs = [], []
    for picture in pictures:
        margin = [(int(gap) // 2, int(gap) - int(gap) // 2) for gap in size - picture.shape]
        values = calibrate(picture) if "coronacases" in name else picture * (1500 / 255) - 1250
        hu.append(np.pad(values, margin, mode="edge"))
        lungs.append(np.pad(find_lungs(picture, None, "PL", is_hu=False), margin))
    return np.stack(hu), np.stack(lungs)


@pytest.mark.parametrize("axes", FLIPS)
def test_contrast_medium_misleads_nobody(real_chest, axes):
    """With every vessel and heart chamber as bright as bone, the signs may doubt but not err."""
    hu, lungs = real_chest
    rows = np.arange(hu.shape[1])[:, None]
    filled = ndimage.binary_opening((hu > 0) & (hu < 120), np.ones((1, 5, 5))) & _between(lungs > 0) & (
        rows < np.quantile(np.nonzero(lungs)[1], 0.8))
    bright = np.where(filled, 300, hu)
    assert filled.sum() > 0.1 * (lungs > 0).sum()
    reversed_axes, _, _ = found(bright, lungs, axes)
    assert set(reversed_axes) <= set(axes)
    assert 0 in reversed_axes or 0 not in axes


def _between(lungs: np.ndarray) -> np.ndarray:
    from skimage.morphology import convex_hull_image
    return np.stack([convex_hull_image(lung) & ~lung if lung.any() else lung for lung in lungs])


def test_exchanged_numbers_are_no_mirrored_volume(real_chest, phantoms):
    for hu, lungs in (real_chest, *((case.image, case.layout) for case in phantoms)):
        assert found(hu, EXCHANGED[lungs]) == ((), True, ())


def test_heart_and_aorta_overrule_header_and_numbers_only_where_they_are_sure(real_chest, phantoms):
    hu, lungs = real_chest
    assert find_orientation(hu, lungs).evidence[2] > OVERWHELMING
    assert found(hu, EXCHANGED[lungs], (2,)) == ((2,), True, ())
    unsure = [case for case in phantoms
              if DECISIVE <= find_orientation(case.image, case.layout).evidence[2] < OVERWHELMING]
    assert unsure
    for case in unsure:
        axes, renumbered, doubts = found(case.image, EXCHANGED[case.layout], (2,))
        assert axes == () and not renumbered and "on the right" in doubts[0]


def schematic(*organs: str) -> tuple[np.ndarray, np.ndarray]:
    """Two blocks of lung that look the same from all sides, and what breaks the symmetry."""
    hu, lungs = np.full((20, 64, 64), 40, np.int16), np.zeros((20, 64, 64), np.uint8)
    lungs[:, 16:48, 36:56], lungs[:, 16:48, 8:28] = 1, 2
    for organ in organs:
        if organ == "spine":
            hu[:, 38:48, 30:34] = 300
        elif organ == "windpipe":
            hu[12:, 30:34, 30:34] = -1000
        elif organ == "heart":
            lungs[:10, 16:32, 36:44] = 0
        elif organ == "aorta":
            lungs[:, 32:40, 36:42] = 0
    hu[lungs > 0] = -850
    return hu, lungs


@pytest.mark.parametrize("organ, axis", [("windpipe", 0), ("heart", 0), ("spine", 1), ("heart", 2), ("aorta", 2)])
def test_each_sign_decides_alone(organ, axis):
    hu, lungs = schematic(organ)
    assert find_orientation(hu, lungs).evidence[axis] >= DECISIVE
    assert axis not in found(hu, lungs)[0] and axis in found(hu, lungs, (axis,))[0]


def test_of_a_chest_without_signs_nothing_is_changed_and_the_doubt_is_told():
    hu, lungs = schematic()
    for axes in FLIPS:
        finding = find_orientation(np.flip(hu, axes), np.flip(lungs, axes))
        assert finding.reversed_axes == () and not finding.is_renumbered and max(map(abs, finding.evidence)) < DECISIVE
        assert [phrase.split(":")[0] for phrase in finding.repairs] == ["NOT repaired"] * (2 + (2 in axes))
        assert ("left and right" in finding.doubts[-1]) == (2 in axes)


def test_the_size_of_the_voxels_does_not_matter(phantoms):
    case = phantoms[0]
    fine = [np.repeat(np.repeat(array, 3, axis=1), 3, axis=2) for array in (case.image, case.layout)]
    expected = np.array(find_orientation(case.image, case.layout).evidence)
    np.testing.assert_allclose(find_orientation(*fine).evidence, expected, atol=0.1)


def test_without_lungs_there_is_nothing_to_tell_from(phantoms):
    with pytest.raises(UserError, match="lung map is empty"):
        find_orientation(phantoms[0].image, np.zeros_like(phantoms[0].layout))
