"""Registration: what it does to the environment, and that nnU-Net then finds the trainers."""

import os
import pickle
import pkgutil
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_synth._register import SWITCH_OFF, VARIABLE, register, trainer_folder

STARTUP = Path(__file__).parents[1] / "startup"


@pytest.fixture
def clean_environment(monkeypatch):
    """As if nothing were registered."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(SWITCH_OFF, raising=False)
    return monkeypatch


def test_the_folder_holds_the_shim_and_nothing_else_that_nnunet_would_import(clean_environment):
    register()
    assert os.environ[VARIABLE] == trainer_folder()
    assert [module.name for module in pkgutil.iter_modules([trainer_folder()])] == ["nnunet_synth_trainers"]


def test_the_users_own_folders_stay_in_front(clean_environment):
    theirs = os.pathsep.join(["/their/trainers", "", "/more"])
    clean_environment.setenv(VARIABLE, theirs)
    register()
    assert os.environ[VARIABLE] == theirs + os.pathsep + trainer_folder()


def test_a_child_does_not_register_twice(clean_environment):
    clean_environment.setenv(VARIABLE, "/their/trainers")
    register()
    once = os.environ[VARIABLE]
    register()
    assert os.environ[VARIABLE] == once


def test_it_can_be_switched_off(clean_environment):
    clean_environment.setenv(SWITCH_OFF, "1")
    register()
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("present", [True, False])
def test_the_start_up_line_registers_and_never_complains(clean_environment, monkeypatch, present):
    """Python executes the .pth line as it is; a package that is broken or gone must not be heard of."""
    line, = (STARTUP / "nnunet_synth_register.pth").read_text().splitlines()
    assert line.startswith("import ")       # other lines are taken for folders
    if not present:
        monkeypatch.setitem(sys.modules, "nnunet_synth._register", None)    # import raises ModuleNotFoundError
    exec(line)
    assert os.environ.get(VARIABLE) == (trainer_folder() if present else None)


def test_the_start_file_names_the_same_function():
    """Python ≥ 3.15 resolves it in this way (PEP 829)."""
    entry_point, = (STARTUP / "nnunet_synth_register.start").read_text().splitlines()
    assert pkgutil.resolve_name(entry_point) is register


@pytest.mark.parametrize("name", ["SACPSTrainer", "CPSTrainer", "SASTTrainer", "STTrainer", "SemiSupervisedTrainer",
                                  "SupervisedTrainer", "MeanTeacherTrainer", "UAMTTrainer", "UniMatchTrainer",
                                  "CCTTrainer", "UDCTrainer", "SelfEnsemblingTrainer", "SemiInfNetTrainer"])
def test_nnunet_finds_the_same_picklable_class_each_time(clean_environment, name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    import nnunet_synth.trainers
    register()
    found = recursive_find_trainer_class_by_name(name)
    assert found is recursive_find_trainer_class_by_name(name)
    assert found is getattr(nnunet_synth.trainers, name)
    assert found.__module__.startswith("nnunet_synth.trainers.")
    assert pickle.loads(pickle.dumps(found)) is found


def test_every_trainer_is_offered(clean_environment):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    import nnunet_synth.trainers
    assert nnunet_synth.trainers.__all__
    for name in nnunet_synth.trainers.__all__:
        assert issubclass(getattr(nnunet_synth.trainers, name), nnUNetTrainer)


SHIM = os.path.join(trainer_folder(), "nnunet_synth_trainers.py")


def test_the_shim_is_silent_where_the_package_is_not_installed():
    """Interpreters of other environments inherit the variable without the package: there, the look-up of other
    people's trainers must go on."""
    child = subprocess.run([sys.executable, "-I", "-S", SHIM], capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")


def test_the_shim_is_not_silent_when_the_package_is_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "nnunet_synth.trainers", None)     # import raises ModuleNotFoundError
    with pytest.raises(ModuleNotFoundError):
        runpy.run_path(SHIM)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_find_objects.py", "test_paths.py"])
def test_nnunets_own_tests_of_its_look_up_still_pass(tmp_path, name):
    import nnunetv2
    tests = Path(nnunetv2.__path__[0]) / "tests" / name
    environment = {**os.environ, VARIABLE: trainer_folder()}
    child = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
                           cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout
