"""Case names and labels that begin like a formula do not run in a spreadsheet, and are found again."""

import csv
import io

import pytest

from nnunet_synth.csv_file import as_cell, from_cell, to_csv
from nnunet_synth.dataset_conversion.report import CaseReport, write_metadata
from nnunet_synth.evaluation.segmentation import COUNTS, DETECTIONS, METRICS, write_results
from nnunet_synth.quality.metadata import read_metadata

HOSTILE = ['=HYPERLINK("http://x","y")', "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "'=1", "''"]
HARMLESS = ["case_1", "a=b", "x-1", "", "it's", "'tis", "-781", "+5", "-.5e-3"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_formula_becomes_text_and_comes_back(text):
    assert as_cell(text) == "'" + text and from_cell(as_cell(text)) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_all_else_comes_back_too(text):
    assert from_cell(as_cell(text)) == text


@pytest.mark.parametrize("number", [-1, -0.5, 3, "-781", "+5", "-.5e-3"])
def test_numbers_stay_numbers(number):
    assert as_cell(number) == number


def test_a_table():
    text = to_csv(["id", "=b"], [{"id": "@x", "=b": -1.5, "more": 1}, {"id": "y"}])
    assert list(csv.reader(io.StringIO(text))) == [["id", "'=b"], ["'@x", "-1.5"], ["y", ""]]


@pytest.mark.parametrize("name", HOSTILE[:4])
def test_scores(tmp_path, name):
    row = {"case": name, "class": name, **dict.fromkeys(METRICS, 0.5), **dict.fromkeys((*COUNTS, *DETECTIONS), 1)}
    write_results({"cases": [row]}, tmp_path)
    with open(tmp_path / "evaluation.csv", newline="") as file:
        found, = csv.DictReader(file)
    assert found["case"] == found["class"] == "'" + name and found["DSC"] == "0.5"


@pytest.mark.parametrize("name", HOSTILE[:4])
def test_metadata_is_read_back_by_name(tmp_path, name):
    case = CaseReport(name, "labelled", "written", metadata={"sex": "F", "hu": -781.5, "note": name})
    write_metadata([case], tmp_path / "metadata.csv")
    assert f"'{name[:1]}" in (tmp_path / "metadata.csv").read_text()
    assert read_metadata(tmp_path / "metadata.csv")[name] == {"role": "labelled", "id": name, "sex": "F",
                                                             "hu": "-781.5", "note": name}
