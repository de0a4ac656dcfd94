"""Nothing that is printed raises, whatever the console can show."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from nnunet_synth.console import TRANSLITERATE, make_printable, printable

CONSOLES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
HELP = """
from nnunet_synth.cli import main
from nnunet_synth.verbs import VERBS
for arguments in [[], *([verb] for verb in VERBS), ["convert", "mosmed"], ["convert", "folder"]]:
    try:
        main([*arguments, "--help"])
    except SystemExit as end:
        print("STATUS", end.code)
"""
PROGRAM = """
import sys
from nnunet_synth.cli import main
from nnunet_synth.commands import {verb} as module
from nnunet_synth.errors import UserError
{body}
module.run = run
sys.exit(main(["{verb}"]))
"""


def run(program: str, console: str, *arguments: str) -> subprocess.CompletedProcess:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LC_"))}
    variables["PYTHONPATH"] = os.pathsep.join(sys.path)
    ascii_program = program.encode("ascii", "backslashreplace")     # the one of "C" could not be read otherwise
    return subprocess.run([sys.executable, "-c", ascii_program, *arguments], capture_output=True, timeout=100,
                          env={**variables, **CONSOLES[console]})


@pytest.mark.parametrize(("text", "ascii_text", "cp1252"), [
    ("convert → train", b"convert -> train", b"convert -> train"),
    ("‖x‖² ≤ 3 − 1 … ×", b"||x||^2 <= 3 - 1 ... x", b"||x||\xb2 <= 3 - 1 \x85 \xd7"),
    ("λ₁ = ½", b"lambda1 = 1/2", b"lambda1 = \xbd"),
    ("Müller/ń.nii", b"M\\xfcller/\\u0144.nii", b"M\xfcller/\\u0144.nii"),      # names can be told from one another
    ("scan_\udcff.nii", b"scan_\\udcff.nii", b"scan_\\udcff.nii"),
])
def test_what_is_printed_instead(text, ascii_text, cp1252):
    assert text.encode("ascii", TRANSLITERATE) == ascii_text
    assert text.encode("cp1252", TRANSLITERATE) == cp1252
    assert "→ λ".encode("utf-8", TRANSLITERATE).decode() == "→ λ"


def test_all_streams_but_those_that_somebody_chose_to_be_lossy(monkeypatch):
    streams = {errors: io.TextIOWrapper(io.BytesIO(), "ascii", errors=errors) for errors in ("strict", "ignore")}
    monkeypatch.setattr(sys, "stdout", streams["strict"])
    monkeypatch.setattr(sys, "stderr", streams["ignore"])
    make_printable()
    for stream in streams.values():
        print("a → b", file=stream, flush=True)
    assert [stream.buffer.getvalue() for stream in streams.values()] == [b"a -> b\n", b"a  b\n"]
    monkeypatch.setattr(sys, "stdout", io.StringIO())       # as redirect_stdout does
    monkeypatch.setattr(sys, "stderr", None)                # pythonw has none
    make_printable()


def test_text_for_a_file_in_the_encoding_of_the_system(monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale: "cp1252")
    assert printable("a → b ×") == "a -> b ×" and printable(3) == "3"


@pytest.mark.parametrize("console", CONSOLES)
def test_every_help(console):
    child = run(HELP, console)
    assert child.returncode == 0 and child.stderr == b"", child.stderr.decode()
    assert child.stdout.count(b"STATUS 0\n") == child.stdout.count(b"STATUS") == 17
    times = {"cp1252": b"\xd7"}.get(console, b"x")
    assert b"PIXELS %b PIXELS" % times in child.stdout and b"3d_fullres, " in child.stdout
    assert b"\\u" not in child.stdout and b"\\x" not in child.stdout


@pytest.mark.parametrize("console", CONSOLES)
def test_results_bars_and_errors(console):
    body = ("def run(args):\n"
            "    from nnunet_synth.progress import progress\n"
            "    print('done → scan_\\udce9.nii')\n"
            "    list(progress([1], 'drawing → \\udce9'))\n"
            "    sys.stderr.isatty = lambda: True\n"
            "    list(progress([1], 'bar → \\udce9'))\n"
            "    raise UserError('scan_\\udce9.nii → nothing')")
    child = run(PROGRAM.format(verb="doctor", body=body), console)
    assert child.returncode == 2 and b"Traceback" not in child.stderr
    assert child.stdout.rstrip() == b"done -> scan_\\udce9.nii"
    assert b"drawing -> \\udce9: 1/1" in child.stderr and b"bar -> \\udce9: 100%" in child.stderr
    assert child.stderr.rstrip().endswith(b"nnunet_synth doctor: error: scan_\\udce9.nii -> nothing")


@pytest.mark.parametrize("console", CONSOLES)
def test_doctor(console):
    """The names of its checks stay; the heavy ones would say nothing else here."""
    body = ("def run(args, run=module.run):\n"
            "    module.CHECKS = module.versions, module.registration, module.folders, module.extras\n"
            "    run(args)")
    child = run(PROGRAM.format(verb="doctor", body=body), console)
    assert child.returncode in (0, 2) and b"Traceback" not in child.stderr
    assert b"\n      " in child.stdout and b" -> " in child.stdout and b"OK    nnunetv2" in child.stdout
