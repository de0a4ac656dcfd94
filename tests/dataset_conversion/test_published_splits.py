import json

import pytest

from nnunet_synth.data.splits import PARTS
from nnunet_synth.dataset_conversion.published_splits import (
    assign,
    check_usable,
    compared,
    folds_of,
    ids_sha256,
    read_parts,
    report,
)
from nnunet_synth.dataset_conversion.writer import CaseReport
from nnunet_synth.errors import UserError
from tests.makers.covid_19_20 import write_workbook

SPLIT = {"test": ["t1"], "val": ["v1"], "train": ["a", "b", "c"]}


def written(case_id: str, role: str = "labelled", part: str | None = None, has_label: bool = True) -> CaseReport:
    return CaseReport(case_id, role, "written", has_label=has_label, metadata={} if part is None else {"f": part})


def test_json_and_workbook_say_the_same(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps(SPLIT | {"more": "ignored"}))
    book = write_workbook(SPLIT, tmp_path / "split.xlsx")
    for file in (tmp_path / "split.json", book):
        assert read_parts(file, list(SPLIT)) == SPLIT
        assert read_parts(file, ["val"]) == {"val": ["v1"]}


@pytest.mark.parametrize("name, content, message", [
    ("none.json", None, "does not exist"), ("none.xlsx", None, "does not exist"),
    ("broken.json", "{", "not valid JSON"), ("list.json", "[1]", "no named lists"),
    ("other.json", '{"train": []}', r"lacks test, val \(it has: train\)"),
    ("text.json", '{"test": "a", "val": [], "train": []}', '"test" of .* is not a list of case ids'),
    ("numbers.json", '{"test": [1], "val": [], "train": []}', '"test" of .* is not a list of case ids'),
    ("broken.xlsx", "no zip", "no Excel workbook"), ("split.csv", "a,b", "neither .json nor .xlsx"),
])
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_parts(tmp_path / name, ["test", "val", "train"])
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_workbook_with_other_columns(tmp_path):
    with pytest.raises(UserError, match="split.xlsx lacks val, train .it has: test.: it is not the split"):
        read_parts(write_workbook({"test": ["t1"]}, tmp_path / "split.xlsx"), ["test", "val", "train"])


def test_blanks_around_ids_in_a_workbook_do_not_count(tmp_path):
    book = write_workbook({"val ": [" v1", "v2  "], "train": ["a"]}, tmp_path / "split.xlsx")
    assert read_parts(book, ["val", "train"]) == {"val": ["v1", "v2"], "train": ["a"]}


def test_the_hash_ignores_the_order_and_nothing_else():
    published = {part: ids_sha256(ids) for part, ids in SPLIT.items()}
    assert compared({part: ids[::-1] for part, ids in SPLIT.items()}, published).startswith("is the published split")
    assert compared(SPLIT | {"train": ["a", "b"]}, published) == "differs from the published split in train"
    assert ids_sha256(["ab", "c"]) != ids_sha256(["a", "bc"])


@pytest.mark.parametrize("parts", [{"train": ["a"], "val": ["a"]}, {"train": ["a", "a"], "val": ["b"]}])
def test_a_case_belongs_to_one_part(parts):
    with pytest.raises(UserError, match="split.json lists a as labelled and as"):
        assign(parts, "split.json")


@pytest.mark.parametrize("labelled, found, message", [
    (["x"], ["x"], "none of the 3 ids of split.json is there: it is the split of another dataset"),
    (["v"], ["v", "a"], "f has no labelled case: none of the 1 ids that split.json names .e.g. a. is there with a"),
    (["a"], ["v", "a"], "f has no validation case: none of the 1 ids .* is there with a label, so give some"),
])
def test_a_split_that_cannot_be_trained_with(labelled, found, message):
    with pytest.raises(UserError, match=message):
        check_usable({"f": {"a": "train", "v": "val", "u": "unlabelled"}}, labelled, found, "split.json",
                     ", so give some")


def test_folds_hold_what_was_written_with_its_label():
    cases = [written("b", part="train"), written("a", part="train"), written("h", part="unlabelled"),
             written("v", part="val"), written("w", "unlabelled", "val", has_label=False), written("x"),
             written("t", "test", "test")]
    fold, = folds_of(["f"], cases)
    assert fold == {"name": "f", "train": ["a", "b"], "unlabelled": ["h"], "val": ["v"]}
    assert set(fold) - {"name"} == set(PARTS)


def test_the_report_names_what_is_lacking_and_why():
    fold = dict.fromkeys("ab", "train") | dict.fromkeys(["h", "p", "g"], "unlabelled") | \
        dict.fromkeys("vw", "val") | dict.fromkeys("st", "test")
    cases = [written("a"), written("h"), written("p", "unlabelled", has_label=False), written("v"),
             written("w", "unlabelled", has_label=False), written("t", "test"), written("x"),
             written("y", "unlabelled", has_label=False)]
    assert report({"f": fold}, cases) == [
        "fold f: labelled 1 of 2, unlabelled 2 of 3, validation 1 of 2, test 1 of 2",
        "labelled cases of the split that were not written: 1 (b)",
        "unlabelled cases of the split that were not written: 1 (g)",
        "validation cases of the split without a label, in imagesUl now: 1 (w)",
        "test cases of the split that were not written: 1 (s)",
        "labelled cases that the split does not name, unused by its folds: 1 (x)",
        "unlabelled cases that the split does not name, in imagesUl all the same: 1 (y)",
    ]


def test_the_report_of_a_complete_split_is_one_line():
    assert report({"f": {"a": "train", "v": "val"}}, [written("a"), written("v")]) == [
        "fold f: labelled 1 of 1, validation 1 of 1"]
