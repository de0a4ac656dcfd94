import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.cli import main
from nnunet_synth.commands.convert import convert
from nnunet_synth.commands.layouts import layouts
from nnunet_synth.data.phantom import write_phantom_dataset
from nnunet_synth.errors import UserError
from tests.conftest import set_folders
from tests.makers.covid_semiseg import NUM_LABELLED, SLICES_OF, draw_slice, write_tree


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    set_folders(monkeypatch, tmp_path)
    (tmp_path / "nnUNet_raw").mkdir()
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def pictures(raw) -> Path:
    convert("covid-semiseg", write_tree(raw.parent / "source"), 520)
    return raw / "Dataset520_COVIDSemiSeg"


@pytest.fixture
def volumes(raw) -> Path:
    return write_phantom_dataset(raw, 501, num_labelled=2, num_unlabelled=1, num_test=1, size=64, num_slices=10)


def read(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_pictures_get_layouts_of_their_own_shape_with_the_left_lung_below(pictures, capsys):
    before = json.loads((pictures / "dataset.json").read_text())
    assert main(["layouts", "520", "--method", "threshold"]) == 0
    assert "left_lung, share of the slice: median" in capsys.readouterr().out
    assert len(list((pictures / "layoutsTr").iterdir())) == NUM_LABELLED
    assert len(list((pictures / "layoutsUl").iterdir())) == sum(SLICES_OF.values())
    for index in range(NUM_LABELLED):
        expected = draw_slice(index, (120 + 2 * index, 96 + index))[2]
        found = read(pictures / "layoutsTr" / f"{index}.png")
        assert found.shape == expected.shape and found.dtype == np.uint8
        for side in (1, 2):
            assert dice(found == side, expected == side) > 0.93
    for file in (pictures / "layoutsUl").iterdir():                     # mirrored or not: one orientation now
        assert dice(read(file) == 1, draw_slice(100 + int(file.stem.split("_")[-1]))[2] == 1) > 0.9

    after = json.loads((pictures / "dataset.json").read_text())
    assert after["nnunet_synth"].pop("layout_labels") == {"left_lung": 1, "right_lung": 2}
    before["nnunet_synth"].pop("layout_labels")
    assert after == before
    report = json.loads((pictures / "layouts_report.json").read_text())
    assert {case["unit"] for case in report["cases"]} == {"share"}


def test_volumes_keep_their_geometry_and_are_measured_in_litres(volumes, capsys):
    truth = {file.name: read(file) for file in (volumes / "layoutsTr").iterdir()}
    layouts(501, "threshold", overwrite=True, jobs=2)
    assert "right_lung, litres: median" in capsys.readouterr().out
    report = {case["id"]: case for case in json.loads((volumes / "layouts_report.json").read_text())["cases"]}
    for name, expected in truth.items():
        file = volumes / "layoutsTr" / name
        image = SimpleITK.ReadImage(str(volumes / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz")))
        found = SimpleITK.ReadImage(str(file))
        for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(found, geometry)(), getattr(image, geometry)(), rtol=1e-5)
        assert dice(read(file) == 1, expected == 1) > 0.9 and dice(read(file) == 2, expected == 2) > 0.9
        voxel = np.prod(image.GetSpacing()) / 1e6
        case = report[name.removesuffix(".nii.gz")]
        for side, value in (("left_lung", 1), ("right_lung", 2)):
            assert case["amounts"][side] == pytest.approx((read(file) == value).sum() * voxel, abs=1e-3)
        assert case["unit"] == "l"


def test_existing_layouts_are_kept_unless_overwritten(volumes, capsys):
    file = sorted((volumes / "layoutsTr").iterdir())[0]
    before = {path: path.read_bytes() for folder in ("layoutsTr", "layoutsUl") for path in (volumes / folder).iterdir()}
    layouts(501)
    assert "3 kept" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())
    file.unlink()                                                       # an interrupted run goes on
    layouts(501)
    assert file.exists() and "1 case(s) done, 2 kept" in capsys.readouterr().out
    report = json.loads((volumes / "layouts_report.json").read_text())["cases"]
    assert sorted(case["status"] for case in report) == ["kept", "kept", "written"]
    assert all(min(case["amounts"].values()) > 0.2 for case in report)  # those that were kept are measured, too
    layouts(501, overwrite=True)
    assert any(path.read_bytes() != content for path, content in before.items())


def test_layouts_of_other_labels_are_not_mixed(volumes):
    description = json.loads((volumes / "dataset.json").read_text())
    description["nnunet_synth"]["layout_labels"] = {"liver": 1}
    (volumes / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"other labels \(liver\)"):
        layouts(501)
    layouts(501, overwrite=True)
    labels = json.loads((volumes / "dataset.json").read_text())["nnunet_synth"]["layout_labels"]
    assert labels == {"left_lung": 1, "right_lung": 2}


def test_labels_become_layouts_and_lesions_go_to_the_nearest_lung(raw):
    folder = raw / "Dataset600_Lungs"
    label = np.zeros((4, 20, 40), np.uint8)
    label[:, 5:15, 3:17], label[:, 5:15, 23:37] = 2, 1                  # right_lung = 2, left_lung = 1 … in THIS order
    label[1:3, 8:11, 14:17] = 3                                         # a lesion in the right lung
    label[1:3, 8:11, 37:39] = 3                                         # and one just beside the left lung
    for name, array in (("imagesTr/a_0000", label.astype(np.int16)), ("labelsTr/a", label)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(folder / f"{name}.nii.gz"))
    labels = {"background": 0, "Left lung": 1, "right-lung": 2, "infection": 3}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz", "numTraining": 1,
                                                     "channel_names": {"0": "CT"}}))
    layouts(600, "labels", layout_labels=["right_lung", "left_lung"])
    expected = np.select([label == 2, label == 1], [1, 2])
    expected[1:3, 8:11, 14:17], expected[1:3, 8:11, 37:39] = 1, 2
    np.testing.assert_array_equal(read(folder / "layoutsTr" / "a.nii.gz"), expected)
    written = json.loads((folder / "dataset.json").read_text())
    assert written["nnunet_synth"]["layout_labels"] == {"right_lung": 1, "left_lung": 2}
    assert not (folder / "layoutsUl").exists()
    layouts(600, "labels", inside=[], layout_labels=["right_lung", "left_lung"], overwrite=True)
    np.testing.assert_array_equal(read(folder / "layoutsTr" / "a.nii.gz") > 0, (label == 1) | (label == 2))


def test_superpixels_of_pictures(pictures, capsys):
    argv = ["layouts", "520", "--method", "superpixel", "--step", "85", "--segments", "2000"]
    assert main(argv) == 0
    assert "superpixel 0-85, share of the slice: median" in capsys.readouterr().out
    for index in range(NUM_LABELLED):
        gray = draw_slice(index, (120 + 2 * index, 96 + index))[0].astype(float)
        low, high = np.percentile(gray, (0.05, 99.95))
        expected = 1 + np.clip((gray - low) / (high - low) * 255, 0, 255) // 85
        found = read(pictures / "layoutsTr" / f"{index}.png")
        assert found.shape == expected.shape and found.dtype == np.uint8 and set(np.unique(found)) <= {1, 2, 3, 4}
        assert (found == expected).mean() > 0.85                        # a superpixel is wider than the finest detail
    assert main([*argv, "--into", "cluster", "--segmentation", "felzenszwalb"]) == 0
    assert len(list((pictures / "clustersUl").iterdir())) == sum(SLICES_OF.values())


# -- lungmask ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def air_by_side(tmp_path, monkeypatch) -> Path:
    """Weights of lungmask's architecture whose network is replaced by: air in the right half of the body is class 1."""
    pytest.importorskip("lungmask")
    import torch
    from lungmask.resunet import UNet
    torch.save(UNet(n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True).state_dict(),
               tmp_path / "weights.pth")

    def forward(self, x):
        side = torch.where(torch.arange(256) < 128, 1, 2)
        middle = (torch.arange(256)[:, None] - 128).abs() < 80
        is_air = (x[:, 0] < 0.35) & middle
        return torch.nn.functional.one_hot(is_air * side, 3).permute(0, 3, 1, 2).float()
    monkeypatch.setattr(UNet, "forward", forward)
    return tmp_path / "weights.pth"


def test_lungmask_writes_layouts_with_the_left_lung_as_one(volumes, air_by_side, capsys):
    truth = {file.name: read(file) for file in (volumes / "layoutsTr").iterdir()}
    argv = ["layouts", "501", "--method", "lungmask", "--weights", str(air_by_side), "--device", "cpu", "--overwrite"]
    assert main(argv) == 0
    assert "left_lung, litres: median" in capsys.readouterr().out
    for name, expected in truth.items():
        found = read(volumes / "layoutsTr" / name)
        for side in (1, 2):
            assert dice(found == side, expected == side) > 0.7
            assert (found[expected == side] == 3 - side).mean() < 0.05
    report = json.loads((volumes / "layouts_report.json").read_text())
    assert report["method"] == "lungmask" and report["model"] == "weights.pth" and len(report["weights_sha256"]) == 1


def test_lungmask_masks_copies_and_looks_at_pictures(pictures, volumes, air_by_side, tmp_path):
    options = dict(method="lungmask", weights=air_by_side, device="cpu")
    layouts(520, **options)
    report = json.loads((pictures / "layouts_report.json").read_text())
    assert len(report["cases"]) == NUM_LABELLED + sum(SLICES_OF.values())
    assert np.median([sum(case["amounts"].values()) for case in report["cases"]]) > 0.1
    layouts(501, images=volumes / "imagesTs", masked=tmp_path / "out", **options)
    layouts(501, images=volumes / "imagesTs", masked=tmp_path / "threshold")
    for file in (tmp_path / "out").iterdir():
        assert dice(read(file) > -1024, read(tmp_path / "threshold" / file.name) > -1024) > 0.7


# -- masked copies -----------------------------------------------------------------------------------------------------


def test_masked_copies_are_air_outside_the_lungs_and_unchanged_inside(volumes, tmp_path):
    layouts(501, images=volumes / "imagesTr", masked=tmp_path / "out")
    source = sorted((volumes / "imagesTr").iterdir())[0]
    image, copy = SimpleITK.ReadImage(str(source)), SimpleITK.ReadImage(str(tmp_path / "out" / source.name))
    assert copy.GetPixelID() == image.GetPixelID()
    np.testing.assert_allclose(copy.GetSpacing(), image.GetSpacing(), rtol=1e-6)
    before, after = SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(copy)
    assert ((after == before) | (after == -1024)).all()
    lungs = read(volumes / "layoutsTr" / source.name.replace("_0000", "")) > 0
    assert dice(after > -1024, lungs) > 0.9
    assert not (volumes / "layoutsTs").exists()


def test_masked_pictures_are_black_outside_and_need_no_dataset(pictures, tmp_path):
    layouts(None, images=pictures / "imagesTs", masked=tmp_path / "out", orientation="LP")
    layouts(520, images=pictures / "imagesTs", masked=tmp_path / "out2")
    for file in (pictures / "imagesTs").iterdir():
        lungs = draw_slice(150 + int(file.name[:2]))[2] > 0
        before, after = read(file), read(tmp_path / "out" / file.name)
        assert after.dtype == np.uint8 and dice(after > 0, lungs) > 0.93
        assert ((after == before) | (after == 0)).all()
        np.testing.assert_array_equal(after, read(tmp_path / "out2" / file.name))


# -- plausibility and mistakes -----------------------------------------------------------------------------------------


def test_a_mirrored_header_is_flagged_and_nothing_is_swapped(volumes, capsys):
    """The image says that its columns grow to the right; the anatomy says left."""
    file = sorted((volumes / "imagesTr").iterdir())[0]
    image = SimpleITK.ReadImage(str(file))
    expected = read(volumes / "layoutsTr" / file.name.replace("_0000", ""))
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(file))
    (volumes / "layoutsTr" / file.name.replace("_0000", "")).unlink()
    layouts(501)
    case_id = file.name.removesuffix("_0000.nii.gz")
    assert f"look at {case_id}: the heart is on the right" in capsys.readouterr().out
    found = read(volumes / "layoutsTr" / f"{case_id}.nii.gz")
    assert dice(found == 2, expected == 1) > 0.9                        # as the geometry says
    report = {case["id"]: case for case in json.loads((volumes / "layouts_report.json").read_text())["cases"]}
    assert "swapped" in report[case_id]["doubts"][0]
    assert not any("swapped" in doubt for case in report.values() if case["id"] != case_id for doubt in case["doubts"])


def test_a_patient_turned_against_the_header_is_flagged(volumes):
    file = sorted((volumes / "imagesTr").iterdir())[0]
    image = SimpleITK.ReadImage(str(file))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(file))
    layouts(501, overwrite=True)
    report = {case["id"]: case for case in json.loads((volumes / "layouts_report.json").read_text())["cases"]}
    doubts = report[file.name.removesuffix("_0000.nii.gz")]["doubts"]
    assert any("spine is in front" in doubt for doubt in doubts)


def test_a_corrupt_image_is_one_line(volumes, capsys):
    file = sorted((volumes / "imagesUl").iterdir())[0]
    file.write_bytes(file.read_bytes()[:-500])
    layout = volumes / "layoutsUl" / file.name.replace("_0000", "")
    layout.unlink()
    assert main(["layouts", "501"]) == 2
    assert "truncated" in capsys.readouterr().err and not layout.exists()
    assert not [path for path in (volumes / "layoutsUl").iterdir() if path.name.startswith(".")]


def test_values_that_are_neither_hu_nor_8_bit_are_refused(volumes):
    description = json.loads((volumes / "dataset.json").read_text())
    description["channel_names"] = {"0": "T1"}
    (volumes / "dataset.json").write_text(json.dumps(description))
    file = sorted((volumes / "imagesTr").iterdir())[0]
    image = SimpleITK.ReadImage(str(file))
    SimpleITK.WriteImage(image + 1024, str(file))
    with pytest.raises(UserError, match="neither HU nor 8-bit"):
        layouts(501, overwrite=True)


@pytest.mark.parametrize("options, message", [
    (dict(dataset=999), "found none"), (dict(dataset=None), "name the DATASET"),
    (dict(method="magic"), "unknown method"), (dict(jobs=0), "--jobs 0"), (dict(images="x"), "belong together"),
    (dict(orientation="LR"), "one of L R and one of A P"), (dict(method="labels"), "no label 'left_lung'"),
    (dict(images="/nowhere", masked="out"), "not a folder"),
    (dict(images="x", masked="out", method="labels"), "has no labels"),
])
def test_bad_arguments(pictures, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        layouts(**{"dataset": 520, **options})
    assert not (pictures / "layoutsTr").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"model": "R231"}, {"weights": "x"}, {"device": "cpu"}, {"batch_size": 2}])
def test_options_of_lungmask_are_not_swallowed_by_other_methods(pictures, options):
    with pytest.raises(UserError, match="options of --method lungmask"):
        layouts(520, **options)


def test_an_unknown_method_is_refused_by_the_command_line(pictures, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["layouts", "520", "--method", "magic"])
    assert "invalid choice" in capsys.readouterr().err


def test_masked_never_overwrites(pictures, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        layouts(520, images=pictures / "imagesTs", masked=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
