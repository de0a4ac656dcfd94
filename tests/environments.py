"""Fresh virtual environments in which the dependencies are there and we are not, and a wheel to install in them.

nnU-Net and torch come to them from the environment that runs the tests, by a path file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from nnunet_synth._register import SWITCH_OFF, VARIABLE

ROOT = Path(__file__).parents[1]

CONSOLE_SCRIPT = """#!{python}
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.exit({function}())
"""


class Environment:
    """A virtual environment in which the dependencies are there, and we are not yet."""

    def __init__(self, folder: Path) -> None:
        run([sys.executable, "-m", "venv", "--without-pip", folder])
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        # A path file of the outer environment is not followed, so that its own registration is not seen here.
        (self.site_packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.variables = {key: value for key, value in os.environ.items()
                          if key not in (VARIABLE, SWITCH_OFF, "PYTHONPATH")}
        self.folder = folder

    def python(self, program: str, **variables: str) -> subprocess.CompletedProcess:
        """Run a program in a folder where nothing of ours lies."""
        return run([self.scripts / "python", "-c", program], cwd=self.folder, env={**self.variables, **variables})

    def pip(self, *arguments: str | Path) -> None:
        run([sys.executable, "-m", "pip", "--python", self.scripts / "python", "--disable-pip-version-check",
             *arguments], cwd=self.folder, env=self.variables)

    def add_scripts(self, package: str) -> None:
        """The console scripts of a package of the outer environment, as pip would write them here."""
        for entry_point in distribution(package).entry_points.select(group="console_scripts"):
            script = self.scripts / entry_point.name
            script.write_text(CONSOLE_SCRIPT.format(python=self.scripts / "python", module=entry_point.module,
                                                    function=entry_point.attr))
            script.chmod(0o755)

    def command(self, line: str) -> list[str]:
        """A line as one types it, its program taken from this environment."""
        program, *arguments = line.split()
        return [str(self.scripts / program), *arguments]

    def files(self) -> set[str]:
        paths = self.folder.rglob("*")
        return {str(path.relative_to(self.folder)) for path in paths if "__pycache__" not in path.parts}


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess:
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


def build_wheel(folder: Path) -> Path:
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT])
    built, = folder.iterdir()
    return built
