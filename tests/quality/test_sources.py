"""Where images come from: pictures, volumes in any axis, and nnU-Net's raw datasets."""

import json

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from nnunet_synth.errors import UserError
from nnunet_synth.quality.sources import Selection, find_source, read_images


def write_volume(array, path, spacing=(1.0, 1.0, 5.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))


def read(source, tmp_path, **selection):
    target = tmp_path / f"scratch_{len(list(tmp_path.iterdir()))}"
    return read_images(find_source(source), "set", target, Selection(**selection))


@pytest.fixture
def dataset(tmp_path):
    """Three cases of five slices; slice z of case c is c · 10 + z, with a ramp; lesions of label 2 in slice 3, of label
    1 in slice 4, the lung in slices 1 to 4."""
    folder = tmp_path / "Dataset777_Small"
    for case in range(3):
        image = np.tile(np.linspace(0, 0.5, 20), (5, 16, 1)) + case * 10 + np.arange(5)[:, None, None]
        label, layout = np.zeros((5, 16, 20), np.uint8), np.zeros((5, 16, 20), np.uint8)
        label[3, 4:8, 4:8], label[4, 4:8, 4:8], layout[1:, 2:12, 2:12] = 2, 1, 1
        write_volume(image.astype(np.float32), folder / "imagesTr" / f"c{case}_0000.nii.gz")
        write_volume(label, folder / "labelsTr" / f"c{case}.nii.gz")
        write_volume(layout, folder / "layoutsTr" / f"c{case}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "scar": 1, "infection": 2}, "numTraining": 3,
        "file_ending": ".nii.gz"}))
    return folder


def slices_of(found):
    """(case, slice) of each image."""
    values = np.round(found.images[:, 0].min((1, 2))).astype(int)
    return [(int(value) // 10, int(value) % 10) for value in values]


def test_a_dataset_gives_the_slices_that_show_anatomy(dataset, tmp_path):
    source = find_source(dataset)
    assert source.is_ct and source.metadata == dataset / "metadata.csv"
    found = read(dataset, tmp_path)
    assert slices_of(found) == [(case, z) for case in range(3) for z in (1, 2, 3, 4)]
    assert found.cases == [f"c{case}" for case in range(3) for _ in range(4)]
    assert [sorted(np.unique(label)) for label in found.labels[:4]] == [[0], [0], [0, 2], [0, 1]]


def test_a_dataset_is_found_by_its_name_and_image_folder(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    for where in (dataset / "imagesTr", "Dataset777_Small"):
        assert find_source(where).folder == dataset / "imagesTr"


def test_lesions_can_be_chosen(dataset, tmp_path):
    assert slices_of(read(dataset, tmp_path, lesions_only=True)) == [(c, z) for c in range(3) for z in (3, 4)]
    for wanted in ("infection", "2"):
        found = read(dataset, tmp_path, lesions_only=True, labels=[wanted])
        assert slices_of(found) == [(0, 3), (1, 3), (2, 3)] and set(np.unique(found.labels)) == {0, 2}
    with pytest.raises(UserError, match="unknown label 'tumour'.*scar, infection"):
        read(dataset, tmp_path, labels=["tumour"])


def test_a_limit_is_shared_among_the_cases(dataset, tmp_path):
    assert slices_of(read(dataset, tmp_path, limit=6)) == [(c, z) for c in range(3) for z in (1, 4)]
    assert slices_of(read(dataset, tmp_path, limit=2)) == [(0, 1), (2, 1)]
    assert len(read(dataset, tmp_path, limit=11)) == 11


def test_what_one_case_lacks_the_others_give(dataset, tmp_path):
    empty = np.zeros((5, 16, 20), np.uint8)
    write_volume(empty, dataset / "labelsTr" / "c0.nii.gz")
    write_volume(empty, dataset / "layoutsTr" / "c0.nii.gz")
    found = read(dataset, tmp_path, limit=6)
    assert len(found) == 6 and set(found.cases) == {"c1", "c2"}


def test_slices_lie_across_the_largest_spacing(tmp_path):
    """As nnU-Net cuts; two volumes of the three decide for all."""
    volume = np.arange(20 * 24 * 28, dtype=np.float32).reshape(20, 24, 28)
    for number, spacing in enumerate([(1, 5, 1), (1, 5, 1), (1, 1, 2)]):
        write_volume(volume, tmp_path / "volumes" / f"{number}.nii.gz", spacing)
    found = read(tmp_path / "volumes", tmp_path, limit=None)
    assert len(found) == 3 * 24 and found.shape == (1, 20, 28)
    assert np.array_equal(found.images[5, 0], volume[:, 5])


def test_volumes_of_one_slice(tmp_path):
    """As `sample` writes them, along whichever axis."""
    picture = np.random.default_rng(0).normal(0, 1, (16, 20)).astype(np.float32)
    for number in range(2):
        write_volume(picture[:, None], tmp_path / "drawn" / f"{number}.nii.gz", (1, 1, 1))
    assert np.array_equal(read(tmp_path / "drawn", tmp_path).images[:, 0], [picture, picture])


def test_pictures_are_gray_where_their_colours_are(tmp_path):
    gray = np.random.default_rng(0).integers(0, 255, (16, 20)).astype(np.uint8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(gray).save(folder / "a.png")
    Image.fromarray(np.stack([gray] * 3, -1)).save(folder / "b.png")
    Image.fromarray(np.stack([gray] * 3 + [np.full_like(gray, 255)], -1)).save(folder / "c.png")
    (folder / "notes.txt").write_text("no image")
    found = read(folder, tmp_path)
    assert found.shape == (1, 16, 20) and found.cases == ["a.png", "b.png", "c.png"] and found.labels is None
    assert (found.images[:, 0] == gray).all()


def test_colours_stay(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, picture in zip("ab", colours, strict=True):
        Image.fromarray(picture).save(folder / f"{name}.png")
    assert np.array_equal(read(folder, tmp_path).images, np.moveaxis(colours, -1, 1))


def test_constant_slices_show_nothing(tmp_path):
    volume = np.zeros((4, 16, 16), np.float32)
    volume[1, 3, 3] = volume[2, 5, 5] = 1
    write_volume(volume, tmp_path / "volumes" / "a.nii.gz")
    assert len(read(tmp_path / "volumes", tmp_path)) == 2


def test_mistakes_get_one_line(dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    for where, words in ((tmp_path / "nowhere", "no folder and no dataset"), (tmp_path / "empty", "holds no images"),
                         (dataset / "dataset.json", "is no folder: give")):
        with pytest.raises(UserError, match=words) as error:
            find_source(where)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no labels beside it"):
        read_images(find_source(write_picture(tmp_path / "plain")), "set", tmp_path / "x", Selection(lesions_only=True))
    write_volume(np.zeros((5, 16, 21), np.uint8), dataset / "labelsTr" / "c1.nii.gz")
    with pytest.raises(UserError, match="c1.nii.gz and the image of c1 differ in shape"):
        read(dataset, tmp_path)
    with pytest.raises(UserError, match="-n 1"):
        Selection(limit=1)
    with pytest.raises(UserError, match="--size 3"):
        Selection(size=3)


def write_picture(folder):
    folder.mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "a.png")
    return folder


def test_a_truncated_file_is_named(dataset, tmp_path):
    file = dataset / "imagesTr" / "c1_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="c1_0000.nii.gz is truncated"):
        read(dataset, tmp_path)
