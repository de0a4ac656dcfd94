import csv
import gc
import gzip
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.cli import main
from nnunet_synth.commands.convert import convert
from nnunet_synth.dataset_conversion import nccid
from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.dataset_conversion.writer import write_dataset
from nnunet_synth.errors import UserError
from tests.conftest import FOLDERS
from tests.dataset_conversion.test_dicom_series import edit, values_where_planted
from tests.dataset_conversion.test_round_trip import dice, save, stored_as
from tests.makers.dicom import CORONAL, PATIENT, CTSeries, random_hu, uid
from tests.makers.nccid import MASKED, NO_SOFT_SERIES, PATIENTS, STUDIES, TWICE, planted, write_tree, written_series

SIZE = 32


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("bucket"), size=SIZE)


@pytest.fixture(scope="module")
def converted(bucket, tmp_path_factory):
    return convert_to(bucket, tmp_path_factory.mktemp("raw") / "Dataset001_N")


def convert_to(source: Path, target: Path, **options):
    options = nccid.Options(**{"masks": source.parent / "masks", **options})
    return write_dataset(nccid.find_cases(source, options), nccid.describe(options), target,
                         make_splits=lambda cases: nccid.make_splits(cases, options),
                         preprocessed=target.parent / "preprocessed" / target.name)


def names(table: Path) -> dict[str, str]:
    """Study UID → id."""
    return {entry["study_uid"]: case_id for case_id, entry in json.loads(table.read_text())["ids"].items()}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# -- the whole bucket --------------------------------------------------------------------------------------------------


def test_every_study_is_one_case_with_its_hu_and_its_lesion_in_place(bucket, converted):
    ids = names(bucket.parent / "nccid_ids.json")
    assert len(ids) == len(STUDIES) == len(converted.cases)             # one of them lies in the tree twice
    by_id = {case.id: case for case in converted.cases}
    for patient, index in STUDIES:
        case = by_id[ids[patient.study(index)]]
        if patient.pseudonym == NO_SOFT_SERIES:
            assert case.status == "rejected" and case.reason.count("1 slice(s) missing") == 2
            continue
        masked = patient.masked[index]
        series = written_series(patient, index, masked or "soft", size=SIZE)
        folder = converted.folder / ("imagesTr" if masked else "imagesUl")
        image = SimpleITK.ReadImage(str(folder / f"{case.id}_0000.nii.gz"))
        hu = series.hu.copy()
        if series.padding is not None:
            hu[:, series.outside()] = -1024
        np.testing.assert_array_equal(values_where_planted(series, image), hu)
        assert image.GetPixelID() == SimpleITK.sitkInt16
        if masked:
            label = SimpleITK.ReadImage(str(converted.folder / "labelsTr" / f"{case.id}.nii.gz"))
            lesion = patient.phantom(index, SIZE).label
            assert lesion.any() and dice(values_where_planted(series, label), lesion) == 1.0
    assert converted.select("labelled", "rejected") == []
    assert len(converted.select("labelled")) == len(MASKED) == 5


def test_each_series_that_was_left_says_why(bucket, converted):
    ids = names(bucket.parent / "nccid_ids.json")
    by_id = {case.id: case for case in converted.cases}
    for patient, index in STUDIES:
        case = by_id[ids[patient.study(index)]]
        if case.status == "rejected":
            continue
        left = case.metadata["rejected_series"]
        taken = int(case.metadata["series"].split()[0])
        assert sorted([taken, *(one["series"] for one in left)]) == [1, 2, 3, 4]
        other = "usable, but it has no mask" if patient.masked[index] else "usable, but sharper kernel"
        assert sorted(one["reason"] for one in left) == sorted(
            [other, "coronal, not axial", "a scout (localizer), no scan"])
        assert case.metadata["kernel"] == written_series(patient, index, patient.masked[index] or "soft").kernel
    assert [case.repairs for case in converted.cases if case.id == ids[PATIENTS[3].study(0)]] == [
        ("24 duplicate slice(s) dropped",)] and PATIENTS[3].pseudonym == TWICE


def test_clinical_data_becomes_a_table(bucket, converted):
    ids = names(bucket.parent / "nccid_ids.json")
    with open(converted.folder / "metadata.csv", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    columns = ("covid_status", "sex", "age", "centre", "days_from_swab_to_scan", "clinical_note")

    def row(number: int, index: int = 0) -> tuple:
        return tuple(rows[ids[PATIENTS[number].study(index)]][name] for name in columns)

    assert row(0) == ("positive", "F", "66", "Trust A", "10", "")       # the later data_, not the still later status_
    assert row(1) == ("negative", "M", "90", "Trust A", "-3", "")
    assert row(2) == row(2, 1) == ("positive", "M", "33", "", "", "")   # all null: sex and age of the DICOM header
    assert row(3) == ("positive", "F", "34", "", "", "the data_ file is not valid JSON")
    assert row(4) == ("", "M", "35", "", "", "no clinical file")
    assert row(6) == ("negative", "M", "37", "Trust A", "", "not understood: Age, SwabDate")


def test_folds_keep_the_studies_of_a_patient_together(bucket, converted):
    ids = names(bucket.parent / "nccid_ids.json")
    both = {ids[PATIENTS[2].study(0)], ids[PATIENTS[2].study(1)]}
    folds = json.loads((converted.folder.parent / "preprocessed" / "Dataset001_N" / "splits_final.json").read_text())
    assert len(folds) == 4 and all(both <= set(fold["train"]) or both <= set(fold["val"]) for fold in folds)
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(
        case.id for case in converted.select("labelled"))
    alone = [case for case in converted.cases if case.id != min(both)]
    assert nccid.make_splits(alone, nccid.Options()) == []


def test_nothing_written_names_a_patient(bucket, converted):
    """Every byte of every file, and of what is compressed in them; and what is printed."""
    secrets = planted(bucket)
    assert {"Covid1001", "Surname1001", "Given1001", "20200412", "ACC4711"} <= secrets and len(secrets) > 1000
    written = files_of(converted.folder) | files_of(converted.folder.parent / "preprocessed")
    assert len(written) >= 16
    texts = {"table": converted.table().encode()}
    for name, content in written.items():
        texts[name] = content
        texts[f"name of {name}"] = name.encode()
        if name.endswith(".gz"):
            texts[f"{name}, decompressed"] = gzip.decompress(content)
            header = gzip.decompress(content)[:352]         # the NIfTI header: its text fields are empty
            assert not header[148:228].strip(b"\0") and not header[228:252].strip(b"\0")    # descrip, aux_file
            assert not header[328:344].strip(b"\0") and not header[4:32].strip(b"\0")       # intent_name, db_name
    for secret in secrets:
        found = [name for name, content in texts.items() if secret.encode() in content]
        assert not found, (secret, found)
    table = (bucket.parent / "nccid_ids.json").read_text()
    assert all(patient.pseudonym in table for patient in PATIENTS)      # it is where the way back is kept


def test_the_source_is_left_alone_and_the_table_is_beside_it(bucket, converted):
    assert {path.name for path in bucket.parent.iterdir()} == {"nccid", "masks", "nccid_ids.json"}
    assert (bucket.parent / "nccid_ids.json").stat().st_mode & 0o777 == 0o600
    assert not [file for file in bucket.rglob("*") if file.suffix not in (".dcm", ".json", "")
                and file.is_file()]


# -- the ways a bucket may lie -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lone(tmp_path_factory) -> Path:
    """Two studies of one tiny series each, the first with a mask: root/nccid, root/masks."""
    root = tmp_path_factory.mktemp("lone")
    small_study(root)
    small_study(root, "Covid0043", CTSeries(random_hu(seed=1), study="other", series="other"))
    write_mask(root, CTSeries(random_hu()))
    return root / "nccid"


def small_study(root: Path, patient: str = "Covid0042", series: CTSeries | None = None, prefix: str = "training",
                skip=()) -> Path:
    series = series or CTSeries(random_hu())
    series = replace(series, patient={**PATIENT, "PatientID": patient})
    folder = root / "nccid" / prefix / "ct" / patient / uid(series.study) / series.uid
    series.write(folder, skip)
    return folder


def lesion() -> np.ndarray:
    """[x, y, z], different from every side."""
    array = np.zeros((10, 12, 24), np.uint8)
    array[1:3, 4:9, 2:5] = array[8, 10, 20] = 1
    return array


def write_mask(root: Path, series: CTSeries, order: str = "LPS", affine: np.ndarray | None = None,
               array: np.ndarray | None = None) -> Path:
    path = root / "masks" / f"{series.uid}.nii.gz"
    save(*stored_as(order, lesion() if array is None else array, series.affine() if affine is None else affine), path)
    return path


def only_case(root: Path, **options):
    if (root / "masks").exists():
        options["masks"] = root / "masks"
    case, = nccid.find_cases(root / "nccid", nccid.Options(**options))
    return case


def test_without_the_prefix_in_an_archive_or_in_archives_it_is_the_same(lone, tmp_path):
    """The ids too, by the table of the first conversion."""
    expected = files_of(convert_to(lone, tmp_path / "a" / "Dataset001_A").folder)
    table = lone.parent / "nccid_ids.json"
    (tmp_path / "flat").mkdir()
    shutil.copytree(lone / "training", tmp_path / "flat" / "nccid")
    shutil.make_archive(str(tmp_path / "whole"), "tar", lone)
    (tmp_path / "parts").mkdir()
    shutil.make_archive(str(tmp_path / "parts" / "training"), "zip", lone / "training")
    for name, source in (("b", tmp_path / "flat" / "nccid"), ("c", tmp_path / "whole.tar"), ("d", tmp_path / "parts"),
                         ("e", lone / "training")):
        report = convert_to(source, tmp_path / name / "Dataset001_A", masks=lone.parent / "masks", id_table=table)
        assert files_of(report.folder) == expected, name
    assert not (tmp_path / "whole_ids.json").exists()


def test_ids_come_from_the_table_and_nothing_else(lone, tmp_path):
    options = nccid.Options(id_table=tmp_path / "a.json")
    first = [case.id for case in nccid.find_cases(lone, options)]
    before = (tmp_path / "a.json").stat().st_mtime_ns
    assert [case.id for case in nccid.find_cases(lone, options)] == first
    assert (tmp_path / "a.json").stat().st_mtime_ns == before
    other = [case.id for case in nccid.find_cases(lone, nccid.Options(id_table=tmp_path / "b.json"))]
    assert not set(first) & set(other)                                  # another salt
    with pytest.raises(UserError, match="lies in the source"):
        list(nccid.find_cases(lone, nccid.Options(id_table=lone / "ids.json")))


@pytest.mark.parametrize("content", ["", "[]", '{"salt": 3, "ids": {}}', '{"ids": {}}', '{"salt": "xy", "ids": {}}'])
def test_a_broken_table_is_not_replaced(lone, tmp_path, content):
    table = tmp_path / "ids.json"
    table.write_text(content)
    with pytest.raises(UserError, match="restore it"):
        list(nccid.find_cases(lone, nccid.Options(id_table=table)))
    assert table.read_text() == content


def test_a_killed_conversion_goes_on_with_the_same_ids(bucket, converted, tmp_path):
    """SIGKILL after four of the cases; what is there in the end is what an undisturbed conversion writes."""
    target = tmp_path / "Dataset001_N"
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from nnunet_synth.dataset_conversion import nccid
        from tests.dataset_conversion.test_nccid import convert_to
        read, left = nccid.read_study, iter(range(4))
        def read_study(*arguments):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(*arguments)
        nccid.read_study = read_study
        convert_to(Path({str(bucket)!r}), Path({str(target)!r}))
    """)
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not target.exists()
    read = []
    with pytest.MonkeyPatch.context() as patch:
        original = nccid.read_study
        patch.setattr(nccid, "read_study", lambda *arguments: read.append(1) or original(*arguments))
        report = convert_to(bucket, target)
    assert 0 < len(read) < len(report.cases)
    assert files_of(target) == files_of(converted.folder)


def test_what_is_held_does_not_grow_with_the_number_of_files(monkeypatch, tmp_path):
    """No file lives longer than its turn in the listing, and the cases are as large for many files as for few."""
    alive = []

    def num_alive() -> int:
        return sum(type(thing) is SourceFile for thing in gc.get_objects())

    def cases_of(num_files: int) -> list:
        def many(source, under=""):
            for study, index in product(range(5), range(num_files // 5)):
                if index % 100 == 99:
                    alive.append(num_alive())
                series = f"training/ct/Covid{study}/1.2.{study}/1.3.{study}.{index % 3}"
                yield SourceFile(tmp_path, f"{series}/{index}.dcm")
        monkeypatch.setattr(nccid, "list_files", many)
        return list(nccid.find_cases(tmp_path / "nccid", nccid.Options(id_table=tmp_path / "ids.json")))

    gc.collect()
    before = num_alive()        # what other tests of this process left
    few, many = cases_of(100), cases_of(5000)
    assert len(few) == len(many) == 5 and len(alive) == 50 and max(alive) <= before + 2
    assert pickle.dumps(few) == pickle.dumps(many)


def test_another_download_is_told(tmp_path):
    (tmp_path / "studies" / "CT-0").mkdir(parents=True)
    (tmp_path / "studies" / "CT-0" / "study_0001.nii.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="holds no ct/PATIENT/STUDY_UID/SERIES_UID"):
        list(nccid.find_cases(tmp_path, nccid.Options()))
    assert not list(tmp_path.parent.glob("*_ids.json"))


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["".join(letters) for letters in product("LR", "PA", "SI")] + ["SLP", "AIR"])
def test_masks_in_every_flip_and_axis_order(tmp_path, order):
    series = CTSeries(random_hu())
    small_study(tmp_path)
    write_mask(tmp_path, series, order)
    content = only_case(tmp_path).read()
    label = values_where_planted(series, content.label)
    assert dice(label, lesion().transpose(2, 1, 0)) == 1.0
    assert content.label.GetDirection() == content.images[0].GetDirection()
    assert not content.label.GetMetaDataKeys() and not content.images[0].GetMetaDataKeys()     # notes of the header


def test_a_header_rounded_by_another_tool_is_good_enough(tmp_path):
    small_study(tmp_path)
    affine = CTSeries(random_hu()).affine()
    affine[2, 2] += 0.01
    affine[:3, 3] += 0.02
    write_mask(tmp_path, CTSeries(random_hu()), affine=affine)
    content = only_case(tmp_path).read()
    assert content.label.GetSpacing() == content.images[0].GetSpacing()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(content.label), lesion().transpose(2, 1, 0))


def moved(axis: int, by: float) -> np.ndarray:
    affine = CTSeries(random_hu()).affine()
    affine[axis, 3] += by
    return affine


@pytest.mark.parametrize(("change", "reason"), [
    ({"affine": moved(0, 0.7)}, r"does not lie where the series does: up to 1\.0 voxels"),
    ({"affine": moved(2, -5)}, "does not lie where the series does"),
    ({"affine": np.diag([0.7, 0.75, 4, 1])}, "does not lie where the series does"),
    ({"array": lesion()[:, :, 1:]}, r"its mask has \(10, 12, 23\) voxels, the series \(10, 12, 24\)"),
])
def test_a_mask_of_another_geometry_is_refused(tmp_path, change, reason):
    small_study(tmp_path)
    write_mask(tmp_path, CTSeries(random_hu()), **change)
    with pytest.raises(UserError, match=reason):
        only_case(tmp_path).read()


def test_a_mask_decides_which_series_is_taken(tmp_path):
    sharp = CTSeries(random_hu(seed=2), series="sharp", kernel="LUNG")
    small_study(tmp_path)
    small_study(tmp_path, series=sharp)
    assert only_case(tmp_path).read().metadata["kernel"] == "STANDARD"
    write_mask(tmp_path, sharp)
    content = only_case(tmp_path).read()
    assert content.metadata["kernel"] == "LUNG"
    np.testing.assert_array_equal(values_where_planted(sharp, content.images[0]), sharp.hu)


def test_a_mask_on_a_series_that_cannot_be_used_is_told(tmp_path):
    gaps = CTSeries(random_hu(seed=2), series="gaps")
    small_study(tmp_path)
    small_study(tmp_path, series=gaps, skip=[3])
    write_mask(tmp_path, gaps)
    case = only_case(tmp_path)
    assert case.role == "labelled"
    with pytest.raises(UserError, match=r"no usable axial CT series with a mask \(series \d: 1 slice\(s\) missing"):
        case.read()


def test_gaps_are_filled_if_the_user_says_so(tmp_path):
    small_study(tmp_path, skip=[12])
    with pytest.raises(UserError, match="--allow-gaps"):
        only_case(tmp_path).read()
    content = only_case(tmp_path, allow_gaps=True).read()
    assert content.images[0].GetSize()[2] == 24
    assert content.repairs == ("1 slice(s) interpolated to a regular spacing of 5.00 mm",)


def test_masks_of_unknown_series_are_reported(lone, tmp_path):
    shutil.copytree(lone.parent / "masks", tmp_path / "masks")
    stranger = write_mask(tmp_path, CTSeries(random_hu(), series="stranger"))
    options = nccid.Options(masks=tmp_path / "masks", id_table=tmp_path / "ids.json")
    report = write_dataset(nccid.find_cases(lone, options), nccid.describe(options), tmp_path / "Dataset001_A",
                           allow_rejected=True)
    rejected, = report.rejected
    assert rejected.role == "labelled" and "mask whose series is not in the source" in rejected.reason
    table = json.loads((tmp_path / "ids.json").read_text())["ids"]
    assert table[rejected.id] == {"series_uid": stranger.name.removesuffix(".nii.gz")}
    assert len(report.select("labelled", "written")) == len(report.select("unlabelled", "written")) == 1


def test_masks_must_be_there_and_of_one_series_each(lone, tmp_path):
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match=r"holds no masks: name them SERIES_UID\.nii\.gz"):
        list(nccid.find_cases(lone, nccid.Options(masks=tmp_path / "masks")))
    for name in ("1.2.3.nii.gz", "1.2.3.nrrd"):
        (tmp_path / "masks" / name).write_bytes(b"x")
    with pytest.raises(UserError, match="masks of one series"):
        list(nccid.find_cases(lone, nccid.Options(masks=tmp_path / "masks")))


# -- bad input ---------------------------------------------------------------------------------------------------------


def cut(folder: Path, length: int) -> None:
    file = sorted(folder.iterdir())[4]
    file.write_bytes(file.read_bytes()[:length])


def copy_with_other_pixels(folder: Path) -> None:
    CTSeries(random_hu(seed=9)).write(folder.parent / uid("another folder"))


BAD = {
    "missing slice": (dict(skip=[7]), None, r"1 slice\(s\) missing at 1 place"),
    "mixed orientations": (dict(edit=edit(3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])), None,
                           "mixed orientations in one series"),
    "not CT": (dict(edit=edit(Modality="PT")), None, "modality PT, not CT"),
    "few slices": (dict(hu=random_hu((7, 12, 10))), None, r"7 slice\(s\), fewer than 20 \(--min-slices\)"),
    "same UID twice": ({}, copy_with_other_pixels, "file 1 of the study and file 25 of the study have the same UID"),
    "truncated header": ({}, lambda folder: cut(folder, 700), "file 5 of the study is truncated"),
    "truncated pixels": ({}, lambda folder: cut(folder, -50), "file 5 of the study is truncated or corrupt"),
    "no DICOM": ({}, lambda folder: (folder / "x.dcm").write_text("hello"), "file 25 of the study is not a DICOM file"),
    "zero bytes": ({}, lambda folder: cut(folder, 0), "file 5 of the study is not a DICOM file"),
    "missing file": ({}, lambda folder: [file.unlink() for file in folder.iterdir()], "none of its files is there"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_studies_are_refused_in_one_line_that_names_nobody(tmp_path, capsys, monkeypatch, name):
    options, spoil, expected = BAD[name]
    options = {"hu": random_hu((30, 12, 10)) if "skip" in options else random_hu(), **options}
    skip = options.pop("skip", ())
    series = CTSeries(**options)
    folder = small_study(tmp_path, series=series, skip=skip)
    write_mask(tmp_path, series)
    secrets = [*folder.relative_to(tmp_path).parts[3:], *(file.stem for file in folder.iterdir()),
               *PATIENT.values(), str(tmp_path / "nccid" / "training")]
    cases = list(nccid.find_cases(tmp_path / "nccid", nccid.Options(masks=tmp_path / "masks")))
    if spoil is not None:
        spoil(folder)
    with pytest.raises(UserError, match=expected) as told:
        cases[0].read()
    assert "\n" not in str(told.value) and not [secret for secret in secrets if secret in str(told.value)]
    if name == "missing file":
        return
    for variable in FOLDERS:
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    capsys.readouterr()
    command = ["convert", "nccid", str(tmp_path / "nccid"), "--masks", str(tmp_path / "masks"), "-d", "1"]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert len([line for line in printed.err.splitlines() if "rejected" in line]) == 1
    assert not [secret for secret in secrets if secret in printed.err + printed.out]
    assert not list((tmp_path / "nnUNet_raw").glob("Dataset*"))


def test_a_mask_that_cannot_be_read_names_nobody(tmp_path):
    small_study(tmp_path)
    series = CTSeries(random_hu())
    path = write_mask(tmp_path, series)
    case = only_case(tmp_path)
    for content in (b"", b"nonsense", path.read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="its mask") as told:
            case.read()
        assert series.uid not in str(told.value) and str(tmp_path) not in str(told.value)
        assert "unreadable" not in case.sources[0].sha256()
    path.unlink()
    with pytest.raises(UserError, match="its mask does not exist"):
        case.read()
    with pytest.raises(UserError) as told:
        case.sources[0].sha256()                        # what the writer puts into the report
    assert series.uid not in str(told.value) and str(tmp_path) not in str(told.value)


def test_a_series_that_breaks_on_reading_gives_way_to_the_next(tmp_path):
    best = small_study(tmp_path, series=CTSeries(random_hu(seed=2), series="best"))
    small_study(tmp_path, series=CTSeries(random_hu(), series="second", kernel="LUNG"))
    cut(best, -50)
    content = only_case(tmp_path).read()
    assert content.metadata["kernel"] == "LUNG"
    left, = content.metadata["rejected_series"]
    assert left["kernel"] == "STANDARD" and "is truncated or corrupt" in left["reason"]


def test_a_scout_that_shares_the_uid_of_the_scan_is_dropped(tmp_path):
    folder = small_study(tmp_path)

    def scout(dataset, index):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("scout")
    CTSeries(random_hu((1, 30, 10)), orientation=CORONAL, edit=scout).write(folder)
    content = only_case(tmp_path).read()
    np.testing.assert_array_equal(values_where_planted(CTSeries(random_hu()), content.images[0]), random_hu())
    assert content.repairs == ("1 stray image(s) dropped: a scout (localizer), no scan",)
    dropped, = content.metadata["files_not_used"]
    assert re.fullmatch(r"file \d+ of the study", dropped["file"])


@pytest.mark.parametrize("intercept", [0, -20000])
def test_values_that_are_no_hu_are_told(tmp_path, intercept):
    small_study(tmp_path, series=CTSeries(random_hu(), edit=edit(RescaleIntercept=intercept)))
    repairs = only_case(tmp_path).read().repairs
    assert "NOT repaired: values do not look like HU, written as they are" in repairs


def test_one_study_of_two_patients_is_refused(tmp_path):
    small_study(tmp_path)
    small_study(tmp_path, "Covid0099")
    with pytest.raises(UserError, match="its study lies under 2 patients"):
        only_case(tmp_path).read()


def test_a_study_changes_when_one_of_its_files_does(tmp_path):
    folder = small_study(tmp_path)
    clinical = tmp_path / "nccid" / "training" / "data" / "Covid0042" / "data_2020-05-14.json"
    clinical.parent.mkdir(parents=True)
    clinical.write_text("{}")
    before = only_case(tmp_path).sources[0]
    seen = {(before.sha256(), before.stamp())}
    renamed = sorted(folder.iterdir())[3]
    renamed.rename(renamed.with_name("renamed.dcm"))
    assert only_case(tmp_path).sources[0].sha256() == before.sha256()
    for change in (lambda: clinical.write_text('{"Age": 3}'), lambda: cut(folder, -2),
                   lambda: write_mask(tmp_path, CTSeries(random_hu()))):
        change()
        source = only_case(tmp_path).sources[0]
        seen.add((source.sha256(), source.stamp()))
    assert len(seen) == len({first for first, _ in seen}) == len({second for _, second in seen}) == 4


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    for variable in FOLDERS:
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    return tmp_path / "nnUNet_raw"


def test_without_masks_the_scans_join_the_pool_of_another_dataset(lone, tmp_path, raw):
    with pytest.raises(UserError, match="--add-to-pool"):
        convert("nccid", lone, 1)
    convert("nccid", lone, 1, masks=lone.parent / "masks")
    others = tmp_path / "later" / "nccid"
    small_study(others.parent, "Covid0077", CTSeries(random_hu(seed=3), study="new", series="new"))
    report = convert("nccid", others, add_to_pool=1)
    dataset, = raw.glob("Dataset*")
    pool = {file.name for file in (dataset / "imagesUl").iterdir()}
    assert pool >= {f"{case.id}_0000.nii.gz" for case in report.cases} and len(pool) == 2
    assert not [file for file, content in files_of(dataset).items() if b"Covid0077" in content]


def test_two_workers_write_the_same(lone, tmp_path, raw):
    convert("nccid", lone, 1, masks=lone.parent / "masks", name="A")
    convert("nccid", lone, 2, masks=lone.parent / "masks", name="A", jobs=2)
    first, second = sorted(raw.glob("Dataset*"))
    for name, content in files_of(first).items():
        if name.endswith(".nii.gz") or name == "metadata.csv":
            assert (second / name).read_bytes() == content


def test_min_slices_must_be_a_number_of_slices():
    with pytest.raises(UserError, match="--min-slices 0"):
        nccid.Options(min_slices=0)


def test_errors_travel_back_from_workers_without_names(lone):
    """Cases travel to workers and their errors back: what is pickled on the way back is without names."""
    case = next(iter(nccid.find_cases(lone, nccid.Options(min_slices=99))))
    with pytest.raises(UserError) as told:
        case.read()
    assert b"Covid00" not in pickle.dumps(told.value) and os.fsencode(lone) not in pickle.dumps(told.value)
