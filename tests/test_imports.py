"""Imports point one way, and start-up stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nnunet_synth"
# What knows neither nnU-Net nor where anything lies, and the rooms of ours that it may use.
PLAIN_TORCH = {
    "losses": ("losses",),
    "mask_sources": ("mask_sources", "synthesizers", "superpixels", "losses"),
    "superpixels.py": (),
    "synthesizers": ("synthesizers", "superpixels", "losses"),
}
COMMON = ("errors", "bounds", "json_file", "atomic", "kept_aside", "progress", "mixed_precision", "__version__")


def sources(room: str) -> list[Path]:
    path = PACKAGE / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path] * path.exists()


def imported_modules(source: Path) -> set[str]:
    """Every module that a file imports anywhere, in functions too; `from a import b` counts as a.b."""
    modules = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("room", PLAIN_TORCH)
def test_synthesizers_and_losses_never_import_nnunet(room):
    allowed = COMMON + PLAIN_TORCH[room]
    for source in sources(room):
        for module in imported_modules(source):
            top, _, rest = module.partition(".")
            assert top != "nnunetv2", f"{source} imports {module}"
            assert top != "nnunet_synth" or rest.split(".")[0] in allowed, f"{source} imports {module}"


def test_nor_does_anything_that_they_import():
    modules = [str(source.relative_to(PACKAGE.parent).with_suffix("")).replace("/", ".")
               for room in PLAIN_TORCH for source in sources(room) if source.name != "__init__.py"]
    assert "nnunet_synth.synthesizers.base" in modules
    program = (f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
               "print(sorted(name for name in sys.modules if name.startswith('nnunetv2')))")
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.stdout.strip() == "[]", child.stdout + child.stderr


def newly_imported(statement: str) -> set[str]:
    program = f"import sys; before = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before))"
    # Without site (-S), so that what start-up imports is not there before.
    child = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path.append({str(PACKAGE.parent)!r})\n"
                            + program], capture_output=True, text=True, check=True)
    return set(child.stdout.split())


def test_start_up_imports_nothing_but_os():
    assert newly_imported("import os; before = set(sys.modules); import nnunet_synth._register") == {
        "nnunet_synth", "nnunet_synth._register"}


def test_the_command_line_is_light_until_a_verb_runs():
    heavy = {"torch", "nnunetv2", "numpy", "scipy", "skimage", "matplotlib", "SimpleITK"}
    assert not heavy & newly_imported("from nnunet_synth.verbs import build_parser; build_parser()")
