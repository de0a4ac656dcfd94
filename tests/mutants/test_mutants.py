"""The first mutants of each format; `python -m tests.mutants FORMAT 2000` meets many."""

from __future__ import annotations

import collections

import pytest

from tests.mutants.formats import FORMATS, meet

NUMBER = 40


@pytest.mark.parametrize("name", FORMATS)
def test_each_is_taken_or_refused_with_one_line(name, tmp_path, monkeypatch):
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(folder, str(tmp_path / folder))      # and as it was afterwards
    FORMATS[name].prepare(tmp_path)
    outcomes = collections.Counter(meet(name, tmp_path, number) for number in range(NUMBER))
    assert set(outcomes) <= {"taken", "refused"} and outcomes["refused"] >= NUMBER / 10, outcomes
