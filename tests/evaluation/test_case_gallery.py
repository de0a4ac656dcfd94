"""Which cases are shown, which slice and part of them, and that the contours lie where they should."""

import io
import math

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.case_gallery import (
    PREDICTION,
    SIDE,
    TRUTH,
    CaseFiles,
    case_galleries,
    contoured,
    pick_cases,
    to_gray,
    view_around,
    widest_slice,
)
from nnunet_synth.evaluation.segmentation import reader_of

NAN = math.nan


def test_pick_cases():
    scores = {"a": 0.5, "b": 0.9, "c": NAN, "d": 0.1, "e": 0.7}
    assert pick_cases(scores) == {"worst": "d", "median": "a", "best": "b"}
    assert pick_cases(scores, lower_is_better=True) == {"worst": "b", "median": "e", "best": "d"}
    assert pick_cases({"b": 0.5, "a": 0.5, "c": 0.5}) == {"worst": "a", "median": "b", "best": "c"}
    assert pick_cases({"a": 0.5, "b": 0.4}) == {"worst": "b", "best": "a"}
    assert pick_cases({"a": 0.5, "b": NAN}) == {"only": "a"} and pick_cases({"a": NAN}) == {}


def test_slice_with_the_most_truth_or_else_prediction():
    truth, one, other = (np.zeros((4, 6, 6), bool) for _ in range(3))
    one[1, :2], other[2, :5] = True, True
    assert widest_slice(truth, [one, other]) == 2
    truth[3, 0, 0] = True
    assert widest_slice(truth, [one, other]) == 3


def test_view_holds_the_lesions_and_stays_in_the_picture():
    mask = np.zeros((100, 140), bool)
    mask[2:6, 130:139] = True
    rows, columns = view_around(mask)
    assert mask[rows, columns].sum() == mask.sum()
    assert (rows.start, columns.stop) == (0, 140) and rows.stop - rows.start == columns.stop - columns.start == 56
    mask[90] = True
    assert view_around(mask) == (slice(0, 100), slice(0, 140))
    assert view_around(np.zeros((10, 20), bool)) == (slice(0, 10), slice(0, 20))


def test_window():
    image = np.array([[-2000.0, -1250.0, -500.0, 250.0, 3000.0]])
    assert to_gray(image, (-1250, 250)).tolist() == [[0, 0, 128, 255, 255]]
    assert to_gray(np.full((3, 3), 7.0), None).max() == 0
    assert to_gray(np.arange(1000.0)[None], None)[0, [0, 500, 999]].tolist() == [0, 128, 255]


def test_contours_follow_the_masks():
    truth, prediction = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    truth[10:20, 10:20], prediction[10:20, 10:20], prediction[40:50, 40:50] = True, True, True
    picture = contoured(np.full((64, 64), 100, np.uint8), truth, prediction)
    factor = SIDE // 64
    assert picture.shape == (SIDE, SIDE, 3)
    blue, orange = ((picture == colour).all(2) for colour in (TRUTH, PREDICTION))
    inside = np.repeat(np.repeat(truth, factor, 0), factor, 1)
    assert blue.any() and not (blue & inside).any()             # just outside the truth
    assert (blue[40 - 2:40, 40:80]).all() and not blue[40 - 3, 40:80].any()
    either = np.repeat(np.repeat(prediction, factor, 0), factor, 1)
    assert orange.any() and not (orange & ~either).any()        # just inside the prediction
    assert orange[160:162, 160:200].all() and not orange[162, 162:198].any()
    untouched = picture[~blue & ~orange]
    assert (untouched == 100).all()


# Files --------------------------------------------------------------------------------------------------------------

def write(path, array, spacing=(1.0, 1.0, 5.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))
    return path


@pytest.fixture
def study(tmp_path):
    """Five cases of 3 × 40 × 40, the lesion in slice 1; two methods, shifted by one and by three pixels."""
    rng = np.random.default_rng(0)
    for number, case in enumerate("abcde"):
        truth = np.zeros((3, 40, 40), np.uint8)
        truth[1, 10:16 + number, 10:20], truth[2, 10:12, 10:12] = 2, 1
        image = rng.normal(-700, 50, truth.shape) + 600.0 * truth
        write(tmp_path / f"images/{case}_0000.nii.gz", image.astype(np.float32))
        write(tmp_path / f"truth/{case}.nii.gz", truth)
        for method, shift in (("good", 1), ("bad", 3)):
            write(tmp_path / f"{method}/{case}.nii.gz", np.roll(truth, shift, axis=2))
    return tmp_path


def galleries(study, scores=None, **settings):
    scores = scores or {"good": dict(zip("abcde", (0.5, 0.9, NAN, 0.1, 0.7), strict=True)),
                        "bad": dict(zip("abcde", (0.4, 0.3, 0.2, NAN, 0.1), strict=True))}

    def locate(case):
        return CaseFiles([study / f"images/{case}_0000.nii.gz"], study / f"truth/{case}.nii.gz",
                         {method: study / f"{method}/{case}.nii.gz" for method in scores})
    return case_galleries(scores, "good", locate, reader_of(".nii.gz", study / "truth/a.nii.gz"),
                          **{"values": (2,), **settings})


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.content)))


def test_galleries(study):
    parts = galleries(study, window=(-1250, 250))
    assert [part.title for part in parts] == [
        f"{name} of good, {case}, slice 2 of 3" for name, case in (("Worst case", "d"), ("Median case", "a"),
                                                                   ("Best case", "b"))]
    assert [picture.caption for picture in parts[0].items] == ["image", "good: DSC 0.100", "bad: DSC –"]
    plain, good, bad = map(pixels, parts[1].items)
    assert plain.ndim == 2 and good.shape == bad.shape == (*plain.shape, 3)
    columns = [(picture == PREDICTION).all(2).any(0).nonzero()[0][0] for picture in (good, bad)]
    factor = plain.shape[0] // 20               # the masks are 13 pixels wide together, half as much is around them
    assert columns[1] - columns[0] == 2 * factor
    assert len({(picture == TRUTH).all(2).any(0).nonzero()[0][0] for picture in (good, bad)}) == 1


def test_pictures_of_2d_images(tmp_path):
    mask = np.zeros((32, 48), np.uint8)
    mask[4:20, 4:30] = 1
    for name in ("images/a_0000", "truth/a", "good/a"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(mask * (200 if "images" in name else 1)).save(tmp_path / f"{name}.png")
    files = CaseFiles([tmp_path / "images/a_0000.png"], tmp_path / "truth/a.png", {"good": tmp_path / "good/a.png"})
    reader = reader_of(".png", files.truth)
    part, = case_galleries({"good": {"a": 1.0}}, "good", lambda case: files, reader)
    assert part.title == "Only case of good, a" and (pixels(part.items[1]) == TRUTH).all(2).any()


@pytest.mark.parametrize("file, message", [("good/a.nii.gz", "do not lie on the same voxels"),
                                           ("images/a_0000.nii.gz", "differ in shape")])
def test_files_that_do_not_match(study, file, message):
    write(study / file, np.zeros((3, 80, 20), np.float32 if "images" in file else np.uint8))
    with pytest.raises(UserError, match=message) as error:
        galleries(study, {"good": {"a": 0.5}})
    assert "\n" not in str(error.value)
