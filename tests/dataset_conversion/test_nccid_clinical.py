import json
from datetime import date
from pathlib import Path

import pytest

from nnunet_synth.dataset_conversion.nccid_clinical import clean_age, clean_date, clean_sex, read_clinical
from nnunet_synth.dataset_conversion.sources import list_files


def read(folder: Path, patient: str = "Covid7", **files):
    """Write `NAME_DATE` = content (text as it is) and read them."""
    for name, content in files.items():
        name = name[:-10] + name[-10:].replace("_", "-")
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_clinical(list(list_files(folder)), patient)


def test_the_latest_data_file_counts_else_the_latest_status_file(tmp_path):
    assert read(tmp_path).note == "no clinical file"
    assert read(tmp_path, status_2020_05_01={"Age": 1}).fields == {"age": 1, "covid_status": "negative"}
    assert read(tmp_path, status_2020_11_01={"Age": 2}, status_2020_10_01={"Age": 3}).fields["age"] == 2
    assert read(tmp_path, data_2020_03_01={"Age": 4}).fields == {"age": 4, "covid_status": "positive"}
    assert read(tmp_path, data_2021_01_01={"Age": 5}, data_2020_12_31={"Age": 6}).fields["age"] == 5
    (tmp_path / "notes.json").write_text('{"Age": 7}')
    assert read(tmp_path).fields["age"] == 5


@pytest.mark.parametrize(("status", "expected"), [(0, "negative"), ("0", "negative"), ("Negative", "negative"),
                                                  (None, "negative"), (1, "positive"), ("POSITIVE", "positive")])
def test_status_files_are_of_negative_swabs_unless_they_say_otherwise(tmp_path, status, expected):
    assert read(tmp_path, status_2020_05_01={"SwabStatus": status}).fields == {"covid_status": expected}


def test_fields_are_cleaned_and_only_four_are_taken(tmp_path):
    found = read(tmp_path, data_2020_05_14={
        "Pseudonym": "Covid7", "SubmittingCentre": " Trust B ", "Sex": 1, "Age": 65.889, "Ethnicity": "A", "Death": 1,
        "Date of Positive Covid Swab": "3/31/20", "Date of Birth": "1955-01-02", "Name": "Erika"})
    assert found.fields == {"covid_status": "positive", "sex": "M", "age": 66, "centre": "Trust B"}
    assert found.swab == date(2020, 3, 31) and found.note == ""
    assert found.days_from_swab(date(2020, 4, 2)) == {"days_from_swab_to_scan": 2}
    assert found.days_from_swab(None) == {}


@pytest.mark.parametrize(("content", "note"), [
    ('{"Age": ', "not valid JSON"), ("", "not valid JSON"), ("\xff\xfe", "not valid JSON"), ("[" * 100000, "not valid"),
    ("null", "holds no fields"), ("[1, 2]", "holds no fields"), ('"text"', "holds no fields"),
])
def test_broken_files_are_noted_and_the_patient_stays_positive(tmp_path, content, note):
    (tmp_path / "data_2020-05-14.json").write_bytes(content.encode("latin-1"))
    found = read(tmp_path)
    assert note in found.note and found.fields == {"covid_status": "positive"}


def test_nulls_lists_and_nonsense_are_left_out(tmp_path):
    nothing = read(tmp_path, data_2020_05_14=dict.fromkeys(
        ("Pseudonym", "SubmittingCentre", "Sex", "Age", "SwabDate", "Date of Positive Covid Swab")))
    assert nothing.fields == {"covid_status": "positive"} and not nothing.swab and not nothing.note
    odd = read(tmp_path, data_2020_05_15={"Sex": 3, "Age": "old", "SwabDate": "[Text]", "SubmittingCentre": ["x"]})
    assert odd.fields == {"covid_status": "positive"} and odd.note == "not understood: Sex, Age, SwabDate"


def test_another_patients_file_is_not_believed(tmp_path):
    found = read(tmp_path, data_2020_05_14={"Pseudonym": "Covid8", "Age": 3})
    assert found.fields == {} and found.note == "the data_ file is another patient's"


def test_a_utf8_mark_does_not_matter(tmp_path):
    (tmp_path / "data_2020-05-14.json").write_bytes(b"\xef\xbb\xbf" + b'{"Age": 40}')
    assert read(tmp_path).fields["age"] == 40


@pytest.mark.parametrize(("value", "expected"), [
    ("F", "F"), ("m", "M"), (0, "F"), (1, "M"), ("0", "F"), (1.0, "M"), ("1.0", "M"), ("Male", "M"), ("Female", "F"),
    (2, None), (3, None), ("t", None), ("Unknown", None), (" ", None), (None, None), (True, None), ([0], None)])
def test_sex(value, expected):
    assert clean_sex(value) == expected


@pytest.mark.parametrize(("value", "expected"), [
    (12, 12), (30.5, 31), (65.889, 66), ("44", 44), ("071Y", 71), ("081", 81), ("018M", 1), ("030W", 0), ("100D", 0),
    (90, 90), (91, 90), (103, 90), (0, 0), (121, None), ("", None), ("old", None), (None, None), (-3, None),
    (float("nan"), None), (True, None)])
def test_age(value, expected):
    assert clean_age(value) == expected


@pytest.mark.parametrize(("value", "day_first", "expected"), [
    ("05/06/2020", True, date(2020, 6, 5)), ("05/06/2020", False, date(2020, 5, 6)),
    ("5/6/2020", False, date(2020, 5, 6)), ("3/31/20", False, date(2020, 3, 31)),
    ("31/03/2020", False, date(2020, 3, 31)), ("05/16/2020", True, date(2020, 5, 16)),
    ("[Text] - 2020-03-20", False, date(2020, 3, 20)), ("2020-03-20", True, date(2020, 3, 20)),
    ("29/02/2020", True, date(2020, 2, 29)), ("29/02/2021", True, None), ("45/13/2020", True, None),
    ("2020-13-45", True, None), ("43909", True, None), ("", True, None), (None, True, None), ("soon", False, None)])
def test_dates(value, day_first, expected):
    assert clean_date(value, day_first) == expected


def test_the_example_table_of_the_publisher(shared_data):
    """Every row of it is read, with what its schema says of the anomalies in it."""
    import csv
    with open(shared_data / "nccid_schema" / "example_clinical.csv", newline="") as file:
        rows = {row["Pseudonym"]: row for row in csv.DictReader(file)}
    found = {name: (clean_sex(row["Sex"]), clean_age(row["Age"]), clean_date(row["SwabDate"], True)
                    or clean_date(row["Date of Positive Covid Swab"], False)) for name, row in rows.items()}
    assert found == {
        "Patient1": ("F", 12, date(2020, 5, 5)), "Patient2": ("M", 44, date(2020, 3, 31)),
        "Patient3": ("F", 31, date(2020, 4, 24)), "Patient4": ("M", 88, date(2020, 1, 24)),
        "Patient5": (None, None, date(2020, 4, 2)), "Patient6": (None, 90, date(2020, 5, 6)),
        "Patient7": (None, 66, date(2020, 5, 16)), "Patient8": (None, None, date(2020, 3, 15)),
        "Patient9": (None, 0, date(2020, 3, 30)), "Patient10": (None, None, None)}
