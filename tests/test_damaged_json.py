"""JSON that was cut off, emptied, nested beyond reason or edited by hand: one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.unlabelled import preprocess_pool
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_json, read_object
from nnunet_synth.study.values import read_yaml
from nnunet_synth.synthesizers.options import parse_options
from tests.conftest import DATASET_ID


@pytest.mark.parametrize(("text", "words"), [
    ("", "is not valid JSON"), ('{"a": 1', "is not valid JSON"), ("[]", "must hold a JSON object ({…}), not a list"),
    ("null", "not null"), ("3", "not a number"), ('"x"', "not text"), ("{}", "has no a: mend it"),
    ("[" * 100_000, "is not valid JSON"), ("\xff", "is not valid JSON"), ("9" * 5000, "is not valid JSON"),
])
def test_no_object(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        read_object(path, "make it", "mend it", "a")
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert "mend it" in str(error.value)


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1]}')
    assert read_object(tmp_path / "x.json", "", "", "a") == {"a": [1]} == read_json(tmp_path / "x.json", "", "")


# ----------------------------------------------------------------------------------------------------------------------
# nnU-Net's own files

Change = Callable[[dict[str, Any]], Any]


def replaced(*keys: str, by: Any) -> Change:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = by
        return content

    return change


DAMAGE: list[tuple[str, Change, str]] = [
    ("nnUNetPlans.json", lambda plans: [plans], "must hold a JSON object"),
    ("nnUNetPlans.json", lambda plans: {}, "has no dataset_name, plans_name, configurations"),
    ("nnUNetPlans.json", replaced("configurations", by=["2d"]), '"configurations" of'),
    ("nnUNetPlans.json", replaced("configurations", by={"2d": None}), "must be an object of objects"),
    ("nnUNetPlans.json", replaced("configurations", "2d", "inherits_from", by="2d"), "inherits from itself (2d → 2d)"),
    ("nnUNetPlans.json", lambda plans: {**plans, "configurations": {**plans["configurations"],
        "2d": {"inherits_from": "b"}, "b": {"inherits_from": "2d"}}}, "inherits from itself (2d → b → 2d)"),
    ("nnUNetPlans.json", replaced("configurations", "2d", "inherits_from", by="nowhere"),
     "inherits from 'nowhere', which does not exist; there are"),
    ("nnUNetPlans.json", replaced("configurations", "2d", "inherits_from", by=["2d"]), "which does not exist"),
    ("nnUNetPlans.json", replaced("configurations", "2d", "nnunet_synth", by=[1]),
     '"nnunet_synth" of configuration 2d'),
    ("dataset.json", lambda dataset: [], "must hold a JSON object"),
    ("dataset.json", lambda dataset: {}, "has no labels, file_ending"),
    ("dataset.json", replaced("labels", by=["lesion"]), '"labels" of'),
    ("dataset.json", replaced("labels", by={"background": 0, "lesion": "one"}), '"labels" of'),
    ("dataset.json", replaced("channel_names", by=["CT"]), '"channel_names" of'),
    ("dataset.json", replaced("channel_names", by={"first": "CT"}), '"channel_names" of'),
    ("dataset.json", replaced("file_ending", by=7), '"file_ending" of'),
    ("splits_final.json", lambda splits: {}, "must hold a list of folds"),
    ("splits_final.json", lambda splits: [[]], "must hold the keys"),
    ("dataset_fingerprint.json", lambda fingerprint: [], "must hold a JSON object"),
    ("dataset_fingerprint.json", replaced("spacings", by=[["a"]]), "must be a list of spacings in mm"),
    ("dataset_fingerprint.json", replaced("spacings", by=[]), "must be spacings above 0 mm"),
]


@pytest.mark.parametrize(("name", "change", "words"), DAMAGE)
def test_files_of_a_planned_dataset(planned_dataset: Path, name: str, change: Change, words: str) -> None:
    assert load_experiment(DATASET_ID, "2d", 0).train_ids       # writes the default folds
    path, = (planned_dataset / "nnUNet_preprocessed").glob(f"*/{name}")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError) as error:
        experiment = load_experiment(DATASET_ID, "2d", 0)
        assert experiment.train_ids and experiment.channel_names
        preprocess_pool(experiment, num_processes=1)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nnUNetPlans.json", "dataset.json", "splits_final.json", "dataset_fingerprint.json"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_files_that_were_cut_off(planned_dataset: Path, name: str, share: float) -> None:
    assert load_experiment(DATASET_ID, "2d", 0).train_ids       # writes the default folds
    path, = (planned_dataset / "nnUNet_preprocessed").glob(f"*/{name}")
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    with pytest.raises(UserError, match="is not valid JSON"):
        experiment = load_experiment(DATASET_ID, "2d", 0)
        assert experiment.train_ids
        preprocess_pool(experiment, num_processes=1)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_the_record_of_the_pool(planned_dataset: Path, text: str) -> None:
    experiment = load_experiment(DATASET_ID, "2d", 0)
    preprocess_pool(experiment, num_processes=1)
    file = experiment.pool_folder.with_name(f"{experiment.pool_folder.name}.json")
    file.write_text(text)
    with pytest.raises(UserError, match="remove it, and the pool is preprocessed again"):
        preprocess_pool(load_experiment(DATASET_ID, "2d", 0), num_processes=1)


# ----------------------------------------------------------------------------------------------------------------------
# YAML and options

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(("text", "words"), [
    (LAUGHS, "make more than 100000 values"), ("a: &a [*a]", "a block that holds itself"),
    ("[" * 5000 + "]" * 5000, "nested beyond reason"), ("day: 2026-99-99", "not valid YAML"),
    ("a: [1", "not valid YAML"), ("n: " + "9" * 5000, "not valid YAML"),
])
def test_yaml_that_no_study_is(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_yaml(tmp_path / "study.yaml")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_honest_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("a: &a {n: 1}\nb: *a\nc: [*a, *a]\nempty:\n")
    assert read_yaml(tmp_path / "study.yaml") == {"a": {"n": 1}, "b": {"n": 1}, "c": [{"n": 1}] * 2, "empty": None}


def test_an_option_nested_beyond_reason() -> None:
    with pytest.raises(UserError, match="option ngf: the value is nested beyond reason"):
        parse_options(["ngf=" + "[" * 100_000])
