"""Environment variables that nnU-Net, OpenMP or we cannot follow are called out, and never crash the planner."""

from __future__ import annotations

import pytest

from nnunet_synth.cli import main
from nnunet_synth.commands import doctor as doctor_module
from nnunet_synth.commands.doctor import environment
from nnunet_synth.environment import VARIABLES, nonsense, planning_environment


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(("name", "value"), [
    ("nnUNet_n_proc_DA", "0"), ("nnUNet_n_proc_DA", "12"), ("nnUNet_def_n_proc", "1"),
    ("nnUNet_wandb_enabled", "False"),
    ("nnUNet_compile", "F"), ("nnUNet_compile", "true"), ("nnUNet_synth_cpu_bf16", "1"), ("nnUNet_synth_cpu_bf16", ""),
    ("NNUNET_SYNTH_NO_REGISTER", "1"), ("OMP_NUM_THREADS", "4"), ("OMP_NUM_THREADS", "4, 2"), ("OMP_NUM_THREADS", ""),
    ("nnUNet_raw", "/data"), ("nnUNet_extTrainer", "/theirs"), ("nnUNet_npp", "2"), ("nnUNet_raw_data_base", "/v1"),
    ("HOME", "x")])
def test_sense(name, value):
    assert nonsense({name: value}) == []


@pytest.mark.parametrize(("name", "value", "breaks"), [
    ("nnUNet_n_proc_DA", "x", True), ("nnUNet_n_proc_DA", "", True), ("nnUNet_n_proc_DA", "-1", True),
    ("nnUNet_n_proc_DA", "2.5", True), ("nnUNet_def_n_proc", "0", True), ("nnUNet_def_n_proc", "many", True),
    ("nnUNet_wandb_enabled", "yes", True), ("nnUNet_synth_cpu_bf16", "maybe", True), ("nnUNet_compile", "yes", False),
    ("NNUNET_SYNTH_NO_REGISTER", "true", False), ("OMP_NUM_THREADS", "0", False), ("OMP_NUM_THREADS", "x", False)])
def test_nonsense(name, value, breaks):
    found, = nonsense({name: value})
    assert (found.variable, found.text, found.breaks) == (name, f"is {value!r}", breaks) and name in found.cure


@pytest.mark.parametrize(("written", "meant"), [("nnUNet_n_proc_da", "nnUNet_n_proc_DA"), ("NNUNET_RAW", "nnUNet_raw"),
                                                ("nnUNet_result", "nnUNet_results")])
def test_misspelt(written, meant):
    found, = nonsense({written: "1"})
    assert (found.variable, found.text, found.cure) == (written, "is read by nobody", f"did you mean {meant}?")
    assert not found.breaks


def test_nnunet_itself_takes_what_is_called_sense(clean):
    """And would raise ValueError, RuntimeError for what is called broken."""
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
    for value in ("0", "1", " 1 "):
        clean.setenv("nnUNet_n_proc_DA", value)
        assert get_allowed_n_proc_DA() == int(value) and nonsense({"nnUNet_n_proc_DA": value}) == []
    for value in ("x", "", "2.5"):
        clean.setenv("nnUNet_n_proc_DA", value)
        with pytest.raises(ValueError):
            get_allowed_n_proc_DA()


def test_doctor_tells_and_says_when_to_set_it(clean):
    assert list(environment()) == []
    clean.setenv("nnUNet_n_proc_DA", "0")
    warning, = environment()
    assert (warning.status, warning.subject) == ("WARN", "nnUNet_n_proc_DA")
    assert "nnUNetv2_plan_and_preprocess crashes" in warning.text
    assert warning.cure.endswith("nnUNet_n_proc_DA=0 nnUNetv2_train …")
    clean.setenv("nnUNet_n_proc_DA", "x")
    clean.setenv("nnUNet_compile", "yes")
    assert [(found.status, found.subject) for found in environment()] == [
        ("FAIL", "nnUNet_n_proc_DA"), ("WARN", "nnUNet_compile")]


def test_doctor_fails_and_other_verbs_refuse(clean, capsys):
    clean.setenv("nnUNet_n_proc_DA", "x")
    clean.setattr(doctor_module, "CHECKS", (doctor_module.environment,))
    assert main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("FAIL  nnUNet_n_proc_DA") and "1 check(s) failed (nnUNet_n_proc_DA)" in err
    assert main(["preprocess", "501", "2d"]) == 2
    assert capsys.readouterr().err == ("nnunet_synth preprocess: error: environment variable nnUNet_n_proc_DA is 'x': "
                                       "set it to a number of worker processes, or unset nnUNet_n_proc_DA\n")


@pytest.mark.parametrize(("environment", "beside"), [
    ({"nnUNet_n_proc_DA": "0"}, {"nnUNet_n_proc_DA": "1"}), ({"nnUNet_n_proc_DA": " 00 "}, {"nnUNet_n_proc_DA": "1"}),
    ({"nnUNet_n_proc_DA": "10"}, {}), ({}, {})])
def test_the_planner_never_gets_no_workers(environment, beside):
    assert planning_environment(environment) == beside
