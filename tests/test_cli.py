"""What the command line does with what is not the user's mistake."""

import subprocess
import sys

PROGRAM = """
import sys
from nnunet_synth import cli
from nnunet_synth.commands import doctor
doctor.run = lambda args: [print("x" * 1000, flush=True) for _ in range(1000)]
sys.exit(cli.main(["doctor"]))
"""


def test_a_reader_that_has_seen_enough_is_no_error():
    """nnunet_synth … | head"""
    writer = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True)
    writer.stdout.readline()
    writer.stdout.close()
    errors = writer.stderr.read()
    assert writer.wait(timeout=60) == 141 and "Traceback" not in errors and "Exception" not in errors
