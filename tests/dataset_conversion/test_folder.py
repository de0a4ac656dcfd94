import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion import folder
from nnunet_synth.dataset_conversion.folder import Options, find_cases, make_splits, safe_id
from nnunet_synth.dataset_conversion.writer import ConversionReport, write_dataset
from nnunet_synth.errors import UserError
from tests.makers.dicom import CORONAL, CTSeries, random_hu, uid
from tests.makers.folder import LABELLED, write_tree


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("own"), size=32, num_slices=6).parent


@pytest.fixture
def scans(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "own") / "scans"


def convert(source: Path, tmp_path: Path, **options) -> ConversionReport:
    chosen = Options(**options)
    return write_dataset(find_cases(source, chosen), folder.describe(chosen), tmp_path / "raw" / "Dataset009_Own")


def read(file: Path) -> SimpleITK.Image:
    return SimpleITK.ReadImage(str(file))


def both(scans: Path) -> dict:
    return {"labels": scans.parent / "labels", "unlabelled": scans.parent / "more"}


def test_every_format_is_written_with_its_label_map(scans, tmp_path):
    report = convert(scans, tmp_path, **both(scans))
    target = report.folder
    assert {file.name for file in (target / "imagesTr").iterdir()} == {
        f"{name}_0000.nii.gz" for name in ("ann", "bob", "cem", "dora", "eve_01")}
    assert {file.name for file in (target / "imagesUl").iterdir()} == {
        f"{name}_0000.nii.gz" for name in ("fay", "more_1", "more_2")}
    for name in LABELLED:
        case = name.split(".")[0]
        for written, stored in ((target / "imagesTr" / f"{case}_0000.nii.gz", scans / name),
                                (target / "labelsTr" / f"{case}.nii.gz", scans.parent / "labels" / f"{case}.nii.gz")):
            written, stored = read(written), read(stored)
            np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written), SimpleITK.GetArrayFromImage(stored))
            np.testing.assert_allclose(written.GetOrigin(), stored.GetOrigin(), atol=1e-4)
            np.testing.assert_allclose(written.GetSpacing(), stored.GetSpacing(), atol=1e-4)
    assert {case.status for case in report.cases} == {"written"}
    dora, = (case for case in report.cases if case.id == "dora")
    assert {Path(file).name for file in dora.sources} == {"dora.mhd", "dora.zraw", "dora.nii.gz"}
    description = json.loads((target / "dataset.json").read_text())
    assert description["licence"] == description["citation"] == "user's own data"
    assert description["channel_names"] == {"0": "CT"} and description["labels"] == {"background": 0, "infection": 1}


def test_a_conversion_needs_neither_torch_nor_nnunet(scans, tmp_path):
    """They would take longer to import than a small dataset to convert, and 600 MB."""
    program = ("import sys; from nnunet_synth.commands.convert import convert\n"
               f"convert('folder', {str(scans)!r}, 9, labels={str(scans.parent / 'labels')!r})\n"
               "print(*({'torch', 'nnunetv2'} & set(sys.modules)))")
    environment = {**os.environ, "nnUNet_raw": str(tmp_path), "nnUNet_preprocessed": str(tmp_path)}
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert child.stdout.splitlines()[-1] == "" and (tmp_path / "Dataset009_Own" / "dataset.json").is_file()


def test_the_same_out_of_archives(scans, tmp_path):
    for name in ("scans", "labels", "more"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for file in (scans.parent / name).iterdir():
                if file.suffix not in (".mhd", ".zraw") and file.name != "dora.nii.gz":
                    archive.write(file, f"a/folder/{file.name}")
    report = convert(tmp_path / "scans.zip", tmp_path, labels=tmp_path / "labels.zip", unlabelled=tmp_path / "more.zip")
    assert {case.id for case in report.select("labelled")} == {"ann", "bob", "cem", "eve_01"}
    assert {case.id for case in report.select("unlabelled")} == {"fay", "more_1", "more_2"} and not report.rejected


def test_labels_and_more_scans_may_lie_in_source(scans, tmp_path):
    report = convert(scans.parent, tmp_path, **both(scans))
    assert len(report.select("labelled")) == 5 and len(report.select("unlabelled")) == 3


def test_without_labels_all_are_unlabelled(scans, tmp_path):
    cases = list(find_cases(scans, Options()))
    assert {case.role for case in cases} == {"unlabelled"} and len(cases) == 6
    with pytest.raises(UserError, match="no labelled case"):
        convert(scans, tmp_path)


def test_nnunet_suffix(scans):
    ids = lambda: {case.id for case in find_cases(scans, Options())}             # noqa: E731
    for file in scans.glob("dora.*"):
        file.unlink()
    for file in list(scans.iterdir()):
        file.rename(scans / file.name.replace(".", "_0000.", 1))
    assert ids() == {"ann", "bob", "cem", "eve_01", "fay"}
    (scans / "fay_0000.nii.gz").rename(scans / "fay_0001.nii.gz")               # so it is a number, not a channel
    assert ids() == {"ann_0000", "bob_0000", "cem_0000", "eve_01_0000", "fay_0001"}


def test_labels_of_several_kinds(scans, tmp_path):
    file = scans.parent / "labels" / "ann.nii.gz"
    label = read(file)
    label[0, 0, 0] = 2
    SimpleITK.WriteImage(label, str(file))
    with pytest.raises(UserError, match=r"labelled case ann was rejected: .*ann.nii.gz holds 1 value\(s\) without a "
                                        r"name, 2: name them with --label-names background=0 infection=1 NAME2=2, or "
                                        r"say which label they are, for example --label-values 2=1;"):
        convert(scans, tmp_path, **both(scans))
    report = convert(scans, tmp_path, **both(scans), label_names=[("background", 0), ("ggo", 1), ("fluid", 2)])
    assert next(case for case in report.cases if case.id == "ann").label_counts["2"] == 1
    assert json.loads((report.folder / "dataset.json").read_text())["labels"] == {"background": 0, "ggo": 1, "fluid": 2}


def test_masks_of_0_and_255(scans, tmp_path):
    plain = convert(scans, tmp_path / "plain", **both(scans))
    for file in (scans.parent / "labels").iterdir():
        SimpleITK.WriteImage(read(file) * 255, str(file))
    with pytest.raises(UserError, match=r"ann.nii.gz holds 1 value\(s\) without a name, 255: say which label they are, "
                                        r"for example --label-values 255=1 \("):
        convert(scans, tmp_path, **both(scans))
    report = convert(scans, tmp_path, **both(scans), label_values={255: 1})
    assert [case.label_counts for case in report.cases] == [case.label_counts for case in plain.cases]
    assert f"{len(LABELLED)} x label map: values changed: 255=1" in report.table()
    written, = (case for case in json.loads((report.folder / "conversion_report.json").read_text())["cases"]
                if case["id"] == "ann")
    assert written["repairs"] == ["label map: values changed: 255=1"] and written["status"] == "repaired"


def test_labels_that_a_header_scaled(scans, tmp_path):
    plain = convert(scans, tmp_path / "plain", **both(scans))
    file = scans.parent / "labels" / "ann.nii.gz"
    label = read(file)
    SimpleITK.WriteImage(SimpleITK.Cast(label, SimpleITK.sitkFloat32) * 0.99999, str(file))
    report = convert(scans, tmp_path, **both(scans))
    assert [case.label_counts for case in report.cases] == [case.label_counts for case in plain.cases]
    ann, = (case for case in report.cases if case.id == "ann")
    assert ann.repairs == ("label map: values within 0.001 of an integer rounded",)
    written = read(report.folder / "labelsTr" / "ann.nii.gz")
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written), SimpleITK.GetArrayFromImage(label))


def test_pairs_of_header_and_voxels_are_to_be_converted(scans, tmp_path):
    for name in ("ann", "bob"):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.Image(4, 4, 4, SimpleITK.sitkInt16), str(tmp_path / "pairs" / f"{name}.img"))
    for source, labels in ((tmp_path / "pairs", None), (scans, tmp_path / "pairs")):
        with pytest.raises(UserError, match=r"pairs of .hdr and .img, such as .*ann.hdr, must be converted to .nii.gz"):
            list(find_cases(source, Options(labels=labels)))


def rescaled(scans: Path, change) -> None:
    for file in list(scans.iterdir()):
        if file.suffix != ".zraw":
            image = SimpleITK.Cast(change(SimpleITK.Cast(read(file), SimpleITK.sitkFloat32)), SimpleITK.sitkFloat32)
            SimpleITK.WriteImage(image, str(file), useCompression=file.suffix == ".mhd")


def test_stored_values_without_their_intercept_are_no_hu(scans, tmp_path):
    rescaled(scans, lambda hu: hu + 1024)
    with pytest.raises(UserError, match=r"ann was rejected: the image holds values from \d+ on with tissue around 1024 "
                                        r"instead of 0, .* subtract 1024 .* or give .* another name .*--channel"):
        convert(scans, tmp_path, **both(scans))
    assert not convert(scans, tmp_path, **both(scans), channel="stored").rejected


@pytest.mark.parametrize("change", [
    lambda hu: (hu + 1250) * (255 / 1500),                  # windowed
    lambda hu: hu / 1000,                                   # normalised
])
def test_values_that_are_not_hu_are_told_and_kept(scans, tmp_path, change):
    plain = convert(scans, tmp_path / "plain", **both(scans))
    assert not any(case.repairs for case in plain.cases)
    rescaled(scans, change)
    report = convert(scans, tmp_path, **both(scans))
    assert {case.status for case in report.select("labelled")} == {"repaired"}
    assert "6 x NOT repaired: values do not look like HU" in report.table()      # of SOURCE, the pool is untouched
    written = SimpleITK.GetArrayFromImage(read(report.folder / "imagesTr" / "bob_0000.nii.gz"))
    np.testing.assert_array_equal(written, SimpleITK.GetArrayFromImage(read(scans / "bob.nrrd")))

    other = convert(scans, tmp_path / "other", **both(scans), channel="MR")
    assert not any(case.repairs for case in other.cases)
    assert json.loads((other.folder / "dataset.json").read_text())["channel_names"] == {"0": "MR"}


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def with_nan(file: Path) -> None:
    image = SimpleITK.Cast(read(file), SimpleITK.sitkFloat32)
    image[1, 1, 1] = np.nan
    SimpleITK.WriteImage(image, str(file))


def moved(file: Path) -> None:
    image = read(file)
    image.SetOrigin((0.0, 0.0, 0.0))
    SimpleITK.WriteImage(image, str(file))


def with_time_axis(file: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.JoinSeries([read(file), read(file)]), str(file))


@pytest.mark.parametrize("damage, name, message", [
    (truncated, "scans/ann.nii.gz", "ann.nii.gz is truncated"), (truncated, "scans/bob.nrrd", "bob.nrrd is truncated"),
    (truncated, "scans/cem.mha", "cem.mha is truncated"), (truncated, "scans/dora.zraw", "dora.mhd is truncated"),
    (Path.unlink, "scans/dora.zraw", "dora.mhd is truncated, corrupt"),
    (truncated, "scans/eve_01.nii", "eve_01.nii is truncated"), (truncated, "labels/bob.nii.gz", "is truncated"),
    (with_nan, "scans/ann.nii.gz", "1 voxels that are NaN"), (with_nan, "scans/bob.nrrd", "1 voxels that are NaN"),
    (with_nan, "scans/cem.mha", "1 voxels that are NaN"),
    (lambda file: file.write_bytes(b""), "scans/cem.mha", "0 bytes"),
    (lambda file: file.write_text("patient"), "scans/bob.nrrd", "bob.nrrd is truncated, corrupt or no image"),
    (moved, "labels/cem.nii.gz", "label and image differ in origin"),
    (with_time_axis, "scans/ann.nii.gz", "4-D"),
    (lambda file: shutil.copy(file, file.with_name("zoe.nii.gz")), "labels/ann.nii.gz", "zoe.nii.gz: give a label map"),
    (lambda file: shutil.copy(file, file.with_name("ann.nii")), "scans/eve_01.nii", "would both be case ann"),
    (lambda file: shutil.copy(file, file.with_name("an n.nii")), "scans/eve_01.nii", None),
    (lambda file: shutil.copy(file, file.with_name("eve 01.nii")), "scans/eve_01.nii", "would both be case eve_01"),
    (lambda file: shutil.copy(file, file.parent.parent / "more" / "ann.nii.gz"), "scans/ann.nii.gz", "used twice"),
    (lambda file: shutil.rmtree(file.parent), "labels/ann.nii.gz", "labels does not exist"),
    (lambda file: [one.unlink() for one in file.parent.iterdir()], "labels/ann.nii.gz", "holds no label maps"),
    (lambda file: [one.unlink() for one in file.parent.iterdir()], "more/more 2.mha", "holds no volumes"),
])
def test_bad_input_is_one_line_and_leaves_nothing(scans, tmp_path, damage, name, message):
    damage(scans.parent / name)
    if message is None:                                         # another case, not a mistake
        assert "an_n" in {case.id for case in convert(scans, tmp_path, **both(scans)).cases}
        return
    with pytest.raises(UserError, match=message) as caught:
        convert(scans, tmp_path, **both(scans))
    assert "\n" not in str(caught.value) and not list((tmp_path / "raw").glob("Dataset*"))


def test_mhd_in_an_archive_is_refused(scans, tmp_path):
    shutil.make_archive(str(tmp_path / "packed"), "zip", scans)
    with pytest.raises(UserError, match="dora.mhd has its voxels in another file: extract"):
        list(find_cases(tmp_path / "packed.zip", Options()))


def write_series(root: Path) -> dict[str, CTSeries]:
    """Two patients with a folder a series, one with two series in one folder; label maps by folder and by UID."""
    series = {name: CTSeries(random_hu(seed=seed), series=name) for seed, name in enumerate(("ann", "bob", "c1", "c2"))}
    for name, one in series.items():
        one.write(root / "dicom" / (name if name in ("ann", "bob") else "cem"))
    (root / "dicom" / "ann" / "README").write_text("no DICOM")
    for name, label in (("ann", "ann"), ("c1", series["c1"].uid)):
        image = SimpleITK.GetImageFromArray((series[name].hu > 1000).astype(np.uint8))
        image.SetSpacing(series[name].spacing[::-1])
        image.SetOrigin(series[name].origin)
        (root / "labels").mkdir(exist_ok=True)
        SimpleITK.WriteImage(image, str(root / "labels" / f"{label}.nrrd"))
    return series


def test_dicom_series_are_named_by_folder_or_by_uid(tmp_path):
    series = write_series(tmp_path)
    report = convert(tmp_path / "dicom", tmp_path, labels=tmp_path / "labels")
    names = {"ann": "ann", "bob": "bob", "c1": series["c1"].uid, "c2": series["c2"].uid}
    assert {case.id: case.role for case in report.cases} == {
        names["ann"]: "labelled", names["c1"]: "labelled", names["bob"]: "unlabelled", names["c2"]: "unlabelled"}
    for name, case in names.items():
        part = "Tr" if name in ("ann", "c1") else "Ul"
        written = read(report.folder / f"images{part}" / f"{case}_0000.nii.gz")
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written), series[name].hu)
    label = read(report.folder / "labelsTr" / f"{names['c1']}.nii.gz")
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(label), series["c1"].hu > 1000)
    ann, = (case for case in report.cases if case.id == "ann")
    assert len(ann.sources) == 2 and all(len(digest) == 64 for digest in ann.sources.values())


def test_the_digest_of_a_series_is_that_of_all_its_files(tmp_path):
    write_series(tmp_path)
    source, = next(case for case in find_cases(tmp_path / "dicom", Options()) if case.id == "bob").sources
    digest, stamp = source.sha256(), source.stamp()
    last = sorted((tmp_path / "dicom" / "bob").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    assert source.sha256() != digest and source.stamp() != stamp


def test_a_series_that_cannot_be_used_is_rejected_with_its_reason(tmp_path):
    write_series(tmp_path)
    CTSeries(random_hu(), series="front", orientation=CORONAL).write(tmp_path / "dicom" / "front")
    CTSeries(random_hu(), series="gap").write(tmp_path / "dicom" / "gap", skip=[5])
    CTSeries(random_hu((3, 12, 10)), series="scout").write(tmp_path / "dicom" / "short")
    (tmp_path / "dicom" / "broken").mkdir()
    (tmp_path / "dicom" / "broken" / "1.dcm").write_bytes(b"DICM")
    options = dict(labels=tmp_path / "labels")
    reasons = {case.id: case.reason for case in convert(tmp_path / "dicom", tmp_path, **options).rejected}
    assert reasons["front"] == "coronal, not axial" and reasons["gap"].startswith("1 slice(s) missing at 1 place(s)")
    assert reasons["short"].startswith("3 slice(s), fewer than 20")
    broken, = (case for case in reasons if case.startswith("unreadable_"))
    assert len(reasons) == 4 and "broken/1.dcm is not a DICOM file" in reasons[broken]

    more = convert(tmp_path / "dicom", tmp_path / "more", **options, min_slices=3, allow_gaps=True)
    assert {case.id for case in more.rejected} & {"gap", "short"} == set()
    gap, = (case for case in more.cases if case.id == "gap")
    assert gap.shape[0] == 24 and "interpolated" in gap.repairs[0]


def test_every_file_that_was_not_used_stands_in_the_report(tmp_path):
    write_series(tmp_path)
    CTSeries(random_hu((1, 12, 10)), series="bob", orientation=CORONAL, edit=scout).write(tmp_path / "dicom" / "bob")
    shutil.copy(next((tmp_path / "dicom" / "ann").glob("*.dcm")), tmp_path / "dicom" / "ann" / "copy.dcm")
    for number in range(300):
        (tmp_path / "dicom" / "cem" / f"{number:03}.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "dicom" / "cem" / "voxels.raw").write_bytes(b"0")
    (tmp_path / "labels" / "notes.txt").write_text("drawn by A")
    report = convert(tmp_path / "dicom", tmp_path, labels=tmp_path / "labels")
    stored = json.loads((report.folder / "conversion_report.json").read_text())
    assert {one["reason"]: one["number"] for one in stored["files_not_used"]} == {"no DICOM file": 302, "no volume": 1}
    assert len(stored["files_not_used"][1]["files"]) == 302
    of_case = {case["id"]: case["metadata"].get("files_not_used", []) for case in stored["cases"]}
    assert [one["reason"] for one in of_case["bob"]] == ["a scout (localizer), no scan"]
    assert [one["reason"] for one in of_case["ann"]] == ["duplicate slice"]
    assert sum(map(len, of_case.values())) == 2
    lines = [line for line in report.table().splitlines() if line.startswith("not used: ")]
    assert len(lines) == 2 and lines[1].startswith("not used: 302 file(s), e.g. ")


def test_files_beside_volumes_stand_in_the_report(scans, tmp_path):
    (scans / "ann.json").write_text("{}")
    (scans / "stray.raw").write_bytes(b"0")
    report = convert(scans, tmp_path, **both(scans))
    assert {Path(one.file).name: one.reason for one in report.passed_over} == {
        "ann.json": "no volume", "stray.raw": "no volume"}
    checked = write_dataset(find_cases(scans, Options()), folder.describe(Options()), tmp_path / "x", check_only=True)
    assert {Path(one.file).name for one in checked.passed_over} == {"ann.json", "stray.raw"}


def scout(dataset, index):
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("scout")


def test_dicom_problems_that_need_the_user(tmp_path):
    series = write_series(tmp_path)
    shutil.copy(tmp_path / "labels" / "ann.nrrd", tmp_path / "labels" / f"{series['ann'].uid}.nrrd")
    with pytest.raises(UserError, match="would both be the label map of ann"):
        list(find_cases(tmp_path / "dicom", Options(labels=tmp_path / "labels")))
    shutil.copy(tmp_path / "labels" / "ann.nrrd", tmp_path / "dicom")
    with pytest.raises(UserError, match="holds 1 volumes and 4 DICOM series"):
        list(find_cases(tmp_path / "dicom", Options()))


@pytest.mark.parametrize("options, message", [
    (dict(label_names={"infection": 1}), "background=0"),
    (dict(label_names={"background": 0, "a": 2}), "without a gap"),
    (dict(label_names={"background": 0}), "background=0"), (dict(channel=""), "needs a name"),
    (dict(min_slices=0), "--min-slices 0"),
])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


def test_command_line_options():
    parser = argparse.ArgumentParser()
    folder.add_arguments(parser)
    assert Options(**vars(parser.parse_args([]))) == Options()
    given = vars(parser.parse_args("--labels a --unlabelled b --label-names background=0 ggo=1 --channel MR "
                                   "--min-slices 3 --allow-gaps --label-values 255=1 2=0".split()))
    assert Options(**given) == Options(Path("a"), Path("b"), {"background": 0, "ggo": 1}, "MR", 3, True,
                                       {255: 1, 2: 0})
    with pytest.raises(SystemExit):
        parser.parse_args(["--label-names", "infection"])
    assert make_splits([], Options()) == []


@pytest.mark.parametrize("name, expected", [
    ("scan 1 (Köln)_seg", "scan_1_K_ln-seg"), ("1.2.840.113", "1.2.840.113"), ("A-0180_0", "A-0180_0"), ("..x_", "x"),
])
def test_safe_id(name, expected):
    assert safe_id(name) == expected
