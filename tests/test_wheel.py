"""What `pip install` leaves in an environment, as a wheel and editable, and what uninstalling leaves: nothing."""

import os
import zipfile
from pathlib import Path

import pytest

from nnunet_synth import __version__
from nnunet_synth._register import SWITCH_OFF, VARIABLE
from tests.environments import ROOT, Environment, build_wheel, run

STARTUP_FILES = {"nnunet_synth_register.pth", "nnunet_synth_register.start"}
PRINT_FOLDERS = f"import os; print(os.environ.get({VARIABLE!r}))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("build", reason="needs the extra `test`")
    return build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.fixture(params=["wheel", "editable"])
def installed(request, tmp_path) -> Environment:
    environment = Environment(tmp_path / "venv")
    environment.before = environment.files()
    what = [request.getfixturevalue("wheel")] if request.param == "wheel" else ["--no-build-isolation", "-e", ROOT]
    environment.pip("install", "--no-deps", "--ignore-installed", *what)
    environment.package = (environment.site_packages if request.param == "wheel" else ROOT) / "nnunet_synth"
    return environment


def test_the_wheel_holds_the_package_and_the_start_up_files_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert top == {"nnunet_synth", f"nnunet_synth-{__version__}.dist-info"} | STARTUP_FILES
    ours = {name for name in names if name.startswith("nnunet_synth/")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nnunet_synth").rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}
    assert ours == sources
    assert "nnunet_synth/_ext/nnunet_synth_trainers.py" in ours


def test_every_interpreter_of_the_environment_is_registered(installed):
    ours = str(installed.package / "_ext")
    assert installed.python(PRINT_FOLDERS).stdout.strip() == ours
    assert installed.python(PRINT_FOLDERS).stderr == ""
    assert installed.python(PRINT_FOLDERS, **{VARIABLE: "/theirs"}).stdout.strip() == f"/theirs{os.pathsep}{ours}"
    assert installed.python(PRINT_FOLDERS, **{SWITCH_OFF: "1"}).stdout.strip() == "None"

    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PRINT_FOLDERS!r}], check=True)"
    assert installed.python(child, **{VARIABLE: "/theirs"}).stdout.strip() == f"/theirs{os.pathsep}{ours}"


@pytest.mark.slow
def test_nnunet_finds_the_trainer_in_workers_too(installed):
    """Spawned workers unpickle classes of ours without looking them up."""
    (installed.folder / "look_up.py").write_text(
        "import multiprocessing\n"
        "def base_names(trainer): return [base.__name__ for base in trainer.__mro__]\n"
        "if __name__ == '__main__':\n"
        "    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print('found', pool.apply(base_names, (find('SACPSTrainer'),)))\n")
    finished = run([installed.scripts / "python", "look_up.py"], cwd=installed.folder, env=installed.variables)
    assert "found ['SACPSTrainer', " in finished.stdout and "'nnUNetTrainer'" in finished.stdout
    assert f"from: {installed.package / '_ext'}" in finished.stdout


def test_uninstalling_leaves_nothing(installed):
    assert STARTUP_FILES <= {path.name for path in installed.site_packages.iterdir()}
    installed.python("import nnunet_synth.cli")     # leaves byte code behind
    installed.pip("uninstall", "-y", "nnunet_synth")
    assert installed.files() == installed.before
    finished = installed.python(PRINT_FOLDERS)
    assert (finished.stdout.strip(), finished.stderr) == ("None", "")


@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
@pytest.mark.parametrize("harm", ["raise RuntimeError", "this is no Python"])
def test_a_broken_package_does_not_disturb_the_interpreter(installed, harm):
    (installed.package / "__init__.py").write_text(harm)
    finished = installed.python("print('alive')")
    assert (finished.stdout, finished.stderr) == ("alive\n", "")


@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
def test_the_command_is_installed(installed):
    assert run([installed.scripts / "nnunet_synth", "--version"], cwd=installed.folder,
               env=installed.variables).stdout.strip() == f"nnunet_synth {__version__}"
    assert "doctor" in run([installed.scripts / "python", "-m", "nnunet_synth", "--help"], cwd=installed.folder,
                           env=installed.variables).stdout
