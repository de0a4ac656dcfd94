"""Numbers on the command line that no verb can use: one line that names them and exit status 2."""

from __future__ import annotations

import pytest

from nnunet_synth.argument_types import real, whole
from nnunet_synth.bounds import SEED, Bounds
from nnunet_synth.cli import main

PRETRAIN, SAMPLE, SELECT = "pretrain 1 2d 0", "sample 1 2d 0 --output x", "select 1 2d 0"
REFUSED = [
    (PRETRAIN, "--seed", "-1", "must be at least 0 and at most 4294967295, got -1"),
    (PRETRAIN, "--seed", "4294967296", "must be at least 0 and at most 4294967295"),
    (PRETRAIN, "--seed", "9" * 5000, "must be a whole number, got '9999"),
    (PRETRAIN, "--steps", "0", "must be at least 1"),
    (PRETRAIN, "--steps", "1000000000", "at most 100000000"),
    (PRETRAIN, "--batch-size", "1e9", "must be a whole number, got '1e9'"),
    (PRETRAIN, "--batch-size", "1000000000", "at most 65536"),
    (PRETRAIN, "--patch-size", "0 8", "must be at least 1"),
    (PRETRAIN, "--samples-every", "0", "must be at least 1"),
    (PRETRAIN, "--checkpoint-every", "-5", "must be at least 1"),
    (SAMPLE, "-n", "0", "must be at least 1"),
    (SAMPLE, "-n", "1000000000", "at most 10000000"),
    (SAMPLE, "--seed", "-7", "must be at least 0"),
    ("sample 1 2d 0", "--as-dataset", "1000", "at most 999, got 1000"),
    (SELECT, "--accept-threshold", "nan", "must be a finite number, got 'nan'"),
    (SELECT, "--accept-threshold", "1.5", "at most 1, got 1.5"),
    (SELECT, "--classifier-steps", "0", "must be at least 1"),
    ("preprocess 1 2d", "--jobs", "-3", "must be at least 1"),
    ("layouts 1", "--jobs", "0", "must be at least 1"),
    ("split 1 --of-fold 0 --labelled 10%", "--seed", "-1", "must be at least 0"),
    ("quality a b", "-n", "-1", "must be at least 1"),
    ("quality a b", "--size", "1000000000", "at most 16384"),
    ("evaluate a b", "--tolerance", "inf", "must be a finite number, got 'inf'"),
    ("evaluate a b", "--tolerance", "-1", "must be at least 0"),
    ("evaluate a b", "--lesion-overlap", "2", "at most 1"),
    ("demo", "--seed", "-1", "must be at least 0"),
    ("study x.yaml", "--budget-minutes", "0", "must be above 0"),
    ("convert mosmed x", "-d", "0", "must be at least 1"),
]


@pytest.mark.parametrize(("line", "option", "value", "words"), REFUSED)
def test_refused(line: str, option: str, value: str, words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*line.split(), option, *value.split()])
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"error: argument {option}" in said or "/--" in said
    assert words in said


def test_the_bounds_themselves_are_taken() -> None:
    assert whole(SEED)("0") == 0 and whole(SEED)("4294967295") == 2**32 - 1
    assert real(Bounds(low=0, high=1))("1") == 1.0 and real()("-1e3") == -1000.0
