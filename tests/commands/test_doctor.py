"""`nnunet_synth doctor`: a sound installation passes, and each fault is found and comes with a cure."""

import os
import shutil
import sys
import tempfile
from collections import namedtuple

import pytest

from nnunet_synth._register import SWITCH_OFF, VARIABLE, register
from nnunet_synth.cli import main
from nnunet_synth.commands import doctor as module
from nnunet_synth.commands.doctor import doctor

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def sound(tmp_path, monkeypatch):
    """Registered, and with nnU-Net's three folders."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(SWITCH_OFF, raising=False)
    register()
    for variable in FOLDERS:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return monkeypatch


def status_of(check) -> dict[str, str]:
    """Subject → status of one check, whose every warning and failure has a cure."""
    findings = list(check())
    assert all(finding.cure for finding in findings if finding.status != "OK")
    return {finding.subject: finding.status for finding in findings}


def test_a_sound_installation_passes(sound, capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert all(line[:4].strip() in ("OK", "WARN", "") for line in lines)
    for subject in ("nnunetv2", "torchvision", "start-up file", "-tr SACPSTrainer", "synthesizer sean", "CPU",
                    "VGG19 weights", *FOLDERS):
        assert any(line[6:].startswith(subject) for line in lines), subject
    assert "error" not in err
    assert all("→" in after for before, after in zip(lines, lines[1:], strict=False) if before.startswith("WARN"))


def test_a_failure_is_exit_status_2_and_names_what_failed(sound, capsys):
    sound.delenv("nnUNet_results")
    assert main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert "FAIL  nnUNet_results" in out and "→ export nnUNet_results=" in out
    assert err.splitlines()[-1].endswith("1 check(s) failed (nnUNet_results); the table says what to do")


def test_a_check_that_crashes_does_not_end_the_others(sound, capsys):
    def crashing():
        yield module.Finding("OK", "before", "fine")
        raise RuntimeError("two\nlines")

    sound.setattr(module, "CHECKS", (crashing, module.folders))
    findings = doctor()
    assert [finding.status for finding in findings] == ["OK", "FAIL", "OK", "OK", "OK"]
    assert findings[1].text == "RuntimeError: two lines" and findings[1].cure


def test_folders_that_are_missing_read_only_or_full(sound, tmp_path):
    assert status_of(module.folders) == dict.fromkeys(FOLDERS, "OK")

    Usage = namedtuple("Usage", "total used free")
    sound.setattr(shutil, "disk_usage", lambda folder: Usage(1, 1, 1e9))
    assert status_of(module.folders) == dict.fromkeys(FOLDERS, "WARN")

    def read_only(*args, **kwargs):     # root, who runs CI, may write anywhere
        raise PermissionError(13, "Permission denied")

    sound.setattr(tempfile, "TemporaryFile", read_only)
    assert list(status_of(module.folders).values()) == ["WARN", "FAIL", "FAIL"]

    sound.setenv("nnUNet_raw", str(tmp_path / "nowhere"))
    assert status_of(module.folders)["nnUNet_raw"] == "FAIL"


def test_registration_that_does_not_work(sound, tmp_path):
    assert status_of(module.registration)[VARIABLE] == "OK"
    sound.setenv(VARIABLE, os.environ[VARIABLE] + os.pathsep + str(tmp_path / "nowhere"))
    assert status_of(module.registration)[VARIABLE] == "WARN"
    sound.delenv(VARIABLE)
    assert status_of(module.registration)[VARIABLE] == "FAIL"
    sound.setenv(SWITCH_OFF, "1")
    switched_off = [finding for finding in module.registration() if finding.status == "FAIL"]
    assert f"unset {SWITCH_OFF}" in switched_off[0].cure


def test_a_start_up_file_that_is_missing(sound, tmp_path):
    class Distribution:
        def locate_file(self, name):
            return tmp_path / name

    sound.setattr(module, "distribution", lambda name: Distribution())
    assert status_of(module.registration)["start-up file"] == "WARN"


def test_a_trainer_that_nnunet_does_not_find_or_finds_elsewhere(sound, tmp_path):
    assert status_of(module.trainer_look_up) == {"-tr SACPSTrainer": "OK"}
    sound.delenv(VARIABLE)
    assert status_of(module.trainer_look_up) == {"-tr SACPSTrainer": "FAIL"}

    (tmp_path / "theirs.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class SACPSTrainer(nnUNetTrainer):\n    pass\n")
    sound.setenv(VARIABLE, str(tmp_path))
    finding, = module.trainer_look_up()
    assert finding.status == "FAIL" and "theirs.SACPSTrainer instead of ours" in finding.text


def test_versions_that_do_not_fit(sound):
    assert set(status_of(module.versions).values()) == {"OK"}
    sound.setattr(module, "version", lambda package: {"nnunetv2": "2.7.1"}.get(package, "1.0"))
    assert status_of(module.versions)["nnunetv2"] == "FAIL"


def test_a_torchvision_that_does_not_match(sound):
    assert status_of(module.torchvision_operators) == {"torchvision": "OK"}
    sound.setitem(sys.modules, "torchvision", None)     # import raises ImportError
    assert status_of(module.torchvision_operators) == {"torchvision": "FAIL"}


def test_a_synthesizer_that_cannot_be_loaded(sound):
    from importlib.metadata import EntryPoint

    import nnunet_synth.synthesizers as registry
    points = [EntryPoint("broken", "nnunet_synth.no_such_module:Broken", registry.ENTRY_POINT_GROUP)]
    for place in (module, registry):
        sound.setattr(place, "entry_points", lambda group: points)
    assert status_of(module.synthesizers) == {"synthesizer broken": "FAIL"}
    points.clear()
    assert status_of(module.synthesizers) == {"synthesizers": "FAIL"}


def test_extras_that_are_missing_are_only_warned_of(sound):
    sound.setattr(module, "find_spec", lambda name: None)
    assert set(status_of(module.extras).values()) == {"WARN"}


def test_weights_in_the_cache_are_seen(sound, tmp_path):
    import torch
    sound.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert status_of(module.perceptual_features) == {"VGG19 weights": "WARN"}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth").touch()
    assert status_of(module.perceptual_features) == {"VGG19 weights": "OK"}
