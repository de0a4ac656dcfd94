"""Classes from metadata.csv."""

import pytest

from nnunet_synth.dataset_conversion.report import CaseReport, write_metadata
from nnunet_synth.errors import UserError
from nnunet_synth.quality.metadata import age_group, classes_of, read_metadata


def test_age_groups_are_the_papers():
    """(0, 44], (44, 64], (64, 74], (74, 100]."""
    found = {age: age_group(str(age)) for age in (0, 44, 45, 64, 65, 74, 75, 90)}
    assert found == {0: "≤ 44", 44: "≤ 44", 45: "45–64", 64: "45–64", 65: "65–74", 74: "65–74", 75: "≥ 75", 90: "≥ 75"}
    assert age_group("unknown") is None and age_group("071Y") == "65–74"


def test_what_our_converters_write_is_read(tmp_path):
    reports = [CaseReport(id=f"c{number}", role="labelled", status="written", metadata={"sex": sex, "age": age})
               for number, (sex, age) in enumerate([("F", 40), ("M", 70), ("F", 44), ("M", 90)])]
    write_metadata(reports, tmp_path / "metadata.csv")
    metadata = read_metadata(tmp_path / "metadata.csv")
    cases = ["c0", "c0", "c1", "c2", "c3", "c9"]
    assert classes_of(metadata, cases, "sex") == ["F", "F", "M", "F", "M", None]
    assert classes_of(metadata, cases, "age") == ["≤ 44", "≤ 44", None, "≤ 44", None, None]     # one case is too few


def test_files_are_found_with_and_without_ending(tmp_path):
    (tmp_path / "m.csv").write_text("name,Sex\na,F\nb.png,M\nc,F\nd,male\n")
    metadata = read_metadata(tmp_path / "m.csv")
    assert classes_of(metadata, ["a.png", "b.png", "c.png", "d.nii.gz"], "sex") == ["F", "M", "F", "M"]


@pytest.mark.parametrize("content, words", [(None, "does not exist"), (b"id,sex\n", "no row"),
                                            (b"\xff\xfe\x00", "not a CSV file in UTF-8")])
def test_mistakes_get_one_line(tmp_path, content, words):
    file = tmp_path / "m.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_metadata(file)
