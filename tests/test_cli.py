"""What the command line does with what is not the user's mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITER = """
import sys
from nnunet_synth import cli
from nnunet_synth.commands import doctor
doctor.run = lambda args: [print("x" * 1000, flush=True) for _ in range(1000)]
sys.exit(cli.main(["doctor"]))
"""
CTRL_C_WHEN = """
import os, signal, sys

class PressCtrlC:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, PressCtrlC)
sys.argv = ["nnunet_synth", "evaluate", "predictions", "truth"]
from nnunet_synth.cli import main
sys.exit(main())
"""
SWALLOWED = """
import os, signal, sys
from nnunet_synth import cli
from nnunet_synth.commands import doctor

def run(args):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise {error} from None

doctor.run = run
sys.exit(cli.main(["doctor"]))
"""
WORKERS = """
import os, signal, sys, time
from nnunet_synth import cli

def work(item):
    if item == 0:
        os.killpg(os.getpgrp(), signal.SIGINT)
    time.sleep(60 * (item == 0))
    print("worked on", item)

if __name__ == "__main__":
    from nnunet_synth.commands import doctor
    from nnunet_synth.parallel import parallel_map
    doctor.run = lambda args: list(parallel_map(work, range(64), 3))
    sys.exit(cli.main(["doctor"]))
"""


def run(program: str, *arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60,
                          **options)


def test_a_reader_that_has_seen_enough_is_no_error():
    """nnunet_synth … | head"""
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True)
    writer.stdout.readline()
    writer.stdout.close()
    errors = writer.stderr.read()
    assert writer.wait(timeout=60) == 141 and "Traceback" not in errors and "Exception" not in errors


@pytest.mark.parametrize("module", ["argparse", "nnunet_synth.console", "nnunet_synth.verbs",
                                    "nnunet_synth.commands.evaluate", "nnunet_synth.evaluation.segmentation", "numpy"])
def test_ctrl_c_is_one_line_however_early(module):
    """While these are imported, the first of them right after `main` is called."""
    child = run(CTRL_C_WHEN.format(module=module))
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "nnunet_synth evaluate: interrupted\n")


@pytest.mark.parametrize("error", ["ImportError('numpy failed to import')", "KeyboardInterrupt"])
def test_a_library_that_makes_something_else_of_ctrl_c_is_not_believed(error):
    child = run(SWALLOWED.format(error=error))
    assert (child.returncode, child.stderr) == (130, "nnunet_synth doctor: interrupted\n")


def test_without_ctrl_c_an_error_stays_what_it_is():
    child = run(SWALLOWED.format(error="ImportError('broken')").replace("os.kill(os.getpid(), signal.SIGINT)",
                                                                        "raise KeyboardInterrupt"))
    assert child.returncode == 1 and child.stderr.endswith("ImportError: broken\n")


def test_workers_say_nothing_of_ctrl_c(tmp_path: Path):
    """A terminal sends it to all of them: at work, waiting, or just being started."""
    script = tmp_path / "workers.py"        # spawned processes import it
    script.write_text(WORKERS)
    child = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50,
                           start_new_session=True)
    assert (child.returncode, child.stderr) == (130, "nnunet_synth doctor: interrupted\n")
    assert "worked on 63" not in child.stdout


IMPORTED = """
import sys
sys.modules.update({{"nnunet_synth.commands." + verb: None for verb in {broken!r}}})     # importing them raises
from nnunet_synth.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    print(end.code, *(name for name in sys.modules if name.startswith("nnunet_synth.commands.") and sys.modules[name]))
"""


@pytest.mark.parametrize(("arguments", "imported"), [
    (["--version"], []), (["--help"], []), (["split", "--help"], ["nnunet_synth.commands.split"])])
def test_only_the_wanted_verb_is_imported(arguments, imported):
    from nnunet_synth.verbs import VERBS
    child = run(IMPORTED.format(broken=sorted({*VERBS} - {"split"}), arguments=arguments))
    assert child.stdout.splitlines()[-1].split() == ["0", *imported], child.stderr


def test_every_verb_is_listed_and_has_its_module(capsys):
    from nnunet_synth.cli import main
    from nnunet_synth.verbs import VERBS
    files = {path.stem for path in (Path(__file__).parents[1] / "nnunet_synth" / "commands").glob("[a-z]*.py")}
    assert set(VERBS) == files
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = " ".join(capsys.readouterr().out.split())
    assert all(f"{verb} {said}" in listed for verb, said in VERBS.items())
