import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from nnunet_synth.dataset_conversion.covid_semiseg import (
    Options,
    describe,
    find_cases,
    read_case,
    spine_side,
    volume_of,
)
from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.errors import UserError
from tests.makers.covid_semiseg import NUM_LABELLED, NUM_TEST, SLICES_OF, colour, draw_slice, write_tree


def array(image: SimpleITK.Image) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(image)


def pixels(file: Path | SourceFile) -> np.ndarray:
    return np.asarray(Image.open(Path(str(file))))


def by_role(cases: list, role: str) -> dict:
    return {case.id: case for case in cases if case.role == role}


@pytest.mark.parametrize("start", ["Dataset", ""])
def test_all_parts_are_found_from_the_folder_or_its_parent(tmp_path, start):
    write_tree(tmp_path)
    cases = list(find_cases(tmp_path / start, Options()))
    assert set(by_role(cases, "labelled")) == {str(index) for index in range(NUM_LABELLED)}
    assert set(by_role(cases, "test")) == {str(50 + index) for index in range(NUM_TEST)}
    unlabelled = by_role(cases, "unlabelled")
    assert {volume: sum(case.group == volume for case in unlabelled.values()) for volume in SLICES_OF} == SLICES_OF
    assert all(case_id.startswith(case.group) for case_id, case in unlabelled.items())


def test_the_release_as_a_zip_for_each_part(tmp_path):
    source = write_tree(tmp_path / "release")
    for part in source.glob("*/*"):
        shutil.make_archive(str(tmp_path / "zips" / part.name), "zip", part.parent, part.name)
    assert {case.id for case in find_cases(tmp_path / "zips", Options())} == \
        {case.id for case in find_cases(source, Options())}


def test_two_releases_are_one_too_many(tmp_path):
    for name in "ab":
        write_tree(tmp_path / name)
    with pytest.raises(UserError, match="twice.*give one release"):
        list(find_cases(tmp_path, Options()))


def test_a_test_set_is_optional_and_so_are_its_masks(tmp_path):
    without, images, masks = (write_tree(tmp_path / name, *options) for name, *options in
                              (("a", False), ("b", True, False), ("c", True, True)))
    assert not by_role(list(find_cases(without, Options())), "test")
    assert all(case.read().label is None for case in by_role(list(find_cases(images, Options())), "test").values())
    for task in ("infection", "multiclass"):
        for case in by_role(list(find_cases(masks, Options(task))), "test").values():
            label = array(case.read().label)
            expected = draw_slice(150 + int(case.id))[1]
            np.testing.assert_array_equal(label, expected if task == "multiclass" else expected > 0)


def test_multiclass_never_takes_the_infection_masks_of_the_test_set(tmp_path):
    source = write_tree(tmp_path, has_test=True, has_test_masks=True)
    for file in (source / "TestingSet" / "MultiClassInfection-Test").rglob("*.*"):
        file.unlink()
    for folder in ("Imgs", "GT", "."):
        (source / "TestingSet" / "MultiClassInfection-Test" / folder).rmdir()
    test = by_role(list(find_cases(source, Options("multiclass"))), "test")
    assert len(test) == NUM_TEST and all(case.read().label is None for case in test.values())


@pytest.mark.parametrize("task", ["infection", "multiclass"])
def test_labelled_slices_stay_as_published_pixel_for_pixel(tmp_path, task):
    source = write_tree(tmp_path)
    for case_id, case in by_role(list(find_cases(source, Options(task))), "labelled").items():
        content = case.read()
        image_file, _ = case.sources
        np.testing.assert_array_equal(array(content.images[0]), pixels(image_file))
        index = int(case_id)
        lesions = draw_slice(index, (120 + 2 * index, 96 + index))[1]
        np.testing.assert_array_equal(array(content.label), lesions if task == "multiclass" else lesions > 0)
        assert not content.repairs


def test_coronacases_are_mirrored_and_radiopaedia_is_not(tmp_path):
    source = write_tree(tmp_path)
    for case in by_role(list(find_cases(source, Options())), "unlabelled").values():
        content, published = case.read(), pixels(case.sources[0])
        if "coronacases" in case.id:
            np.testing.assert_array_equal(array(content.images[0]), published[:, ::-1])
            assert content.repairs == ("mirrored left to right",)
        else:
            np.testing.assert_array_equal(array(content.images[0]), published)
            assert content.repairs == ()


def test_the_way_a_volume_lies_is_seen_in_the_picture_not_in_its_name(tmp_path):
    source = write_tree(tmp_path)
    folder = source / "TrainingSet" / "LungInfection-Train" / "Pseudo-label" / "Imgs"
    for file in folder.glob("*coronacases*"):
        Image.fromarray(np.ascontiguousarray(pixels(file)[:, ::-1])).save(file, quality=95)
    assert not any(case.read().repairs for case in find_cases(source, Options()))


def test_volume_of():
    assert volume_of("Data-1_coronacases_org_001_31") == "Data-1_coronacases_org_001"
    assert volume_of("Data-1_radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm_7") == \
        "Data-1_radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm"


# -- odd pictures ------------------------------------------------------------------------------------------------------


def save(tmp_path: Path, mask: np.ndarray, **options: object) -> tuple[SourceFile, SourceFile]:
    image_file, mask_file = tmp_path / "7.jpg", tmp_path / "7.png"
    Image.fromarray(draw_slice(0, mask.shape[:2])[0]).save(image_file)
    Image.fromarray(mask).save(mask_file, **options)
    return SourceFile(tmp_path, "7.jpg"), SourceFile(tmp_path, "7.png")


def test_few_values_between_are_cut_at_128_and_counted(tmp_path):
    mask = np.zeros((60, 50), np.uint8)
    mask[20:30, 20:30] = 255
    mask[20, 20:24] = [127, 128, 3, 250]
    content = read_case(*save(tmp_path, mask), "infection", mirrored=False)
    np.testing.assert_array_equal(array(content.label), mask >= 128)
    assert content.repairs == ("4 mask pixels neither 0 nor 255: cut at 128",)


def test_label_values_0_and_1_are_taken_as_they_are(tmp_path):
    mask = np.zeros((60, 50), np.uint8)
    mask[20:30, 20:30] = 1
    np.testing.assert_array_equal(array(read_case(*save(tmp_path, mask), "infection", False).label), mask)


def test_a_photograph_is_no_mask(tmp_path):
    with pytest.raises(UserError, match="not a mask"):
        read_case(*save(tmp_path, draw_slice(1, (60, 50))[0]), "infection", False)


def test_palette_and_rgb_masks_mean_the_same(tmp_path):
    lesions = draw_slice(3, (60, 50))[1]
    files = save(tmp_path, colour(lesions))
    np.testing.assert_array_equal(array(read_case(*files, "multiclass", False).label), lesions)
    palette = Image.fromarray(lesions).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(tmp_path / "7.png")
    np.testing.assert_array_equal(array(read_case(*files, "multiclass", False).label), lesions)


def test_a_nearly_right_colour_is_repaired_and_an_unknown_one_is_not(tmp_path):
    lesions = draw_slice(3, (60, 50))[1]
    mask = colour(lesions)
    mask[0, :3] = (1, 2, 0)
    content = read_case(*save(tmp_path, mask), "multiclass", False)
    np.testing.assert_array_equal(array(content.label), lesions)
    assert content.repairs == ("3 mask pixels of another colour: set to the nearest",)
    mask[30, 30] = (0, 0, 128)
    with pytest.raises(UserError, match=r"e\.g\. \(0, 0, 128\)"):
        read_case(*save(tmp_path, mask), "multiclass", False)


def test_gray_masks_are_not_taken_for_multiclass(tmp_path):
    with pytest.raises(UserError, match="gray mask"):
        read_case(*save(tmp_path, np.zeros((60, 50), np.uint8)), "multiclass", False)


def test_gray_slices_saved_as_rgb_are_read_and_colour_pictures_are_not(tmp_path):
    gray = draw_slice(0, (60, 50))[0]
    file = tmp_path / "x.png"
    Image.fromarray(np.stack([gray] * 3, axis=-1)).save(file)
    content = read_case(SourceFile(tmp_path, "x.png"), None, "infection", False)
    np.testing.assert_array_equal(array(content.images[0]), gray)
    assert content.repairs == ("RGB to gray",)
    Image.fromarray(np.stack([gray, gray, 255 - gray], axis=-1)).save(file)
    with pytest.raises(UserError, match="colour picture"):
        read_case(SourceFile(tmp_path, "x.png"), None, "infection", False)
    Image.fromarray(gray.astype(np.uint16) * 256).save(file)
    with pytest.raises(UserError, match="8 bits"):
        read_case(SourceFile(tmp_path, "x.png"), None, "infection", False)


def test_spine_side_is_the_bright_side_of_the_middle():
    for seed in range(10):
        picture = draw_slice(seed)[0]
        assert spine_side(picture) == "right"
        assert spine_side(picture[:, ::-1]) == "left"
        assert spine_side((picture[:, ::-1] * 0.4).astype(np.uint8)) == "left"


# -- the real release --------------------------------------------------------------------------------------------------


def test_the_real_release(shared_data):
    cases = list(find_cases(shared_data / "covid_semiseg", Options()))
    labelled, unlabelled, test = (by_role(cases, role) for role in ("labelled", "unlabelled", "test"))
    assert (len(labelled), len(unlabelled), len(test)) == (50, 1600, 48)
    assert len({case.group for case in unlabelled.values()}) == 20
    # Seen in the pictures: the spine is on the left in the coronacases volumes only.
    assert all(case.metadata["mirrored"] == ("coronacases" in case.id) for case in cases)
    assert all(case.metadata["orientation_vote"] >= 0.75 for case in cases)
    infection = labelled["0"].read()
    multiclass = by_role(list(find_cases(shared_data / "covid_semiseg", Options("multiclass"))), "labelled")["0"].read()
    np.testing.assert_array_equal(array(infection.label), array(multiclass.label) > 0)
    np.testing.assert_array_equal(array(infection.images[0]), pixels(labelled["0"].sources[0]))
    assert set(describe(Options("multiclass")).labels) == {"background", "ground_glass", "consolidation"}
