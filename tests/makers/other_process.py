"""A real second process that holds the lock of a file or folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from nnunet_synth.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_writer(target: Path, program: str = HOLD) -> subprocess.Popen:
    """A process that has said its first word, with the lock in its hands; it ends when its input does."""
    process = subprocess.Popen([sys.executable, "-c", program, str(target)], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline(), "it did not get the lock"
    return process


@contextmanager
def written_by_another(target: Path) -> Iterator[int]:
    """Yield the number of the process."""
    with start_writer(target) as process:
        try:
            yield process.pid
        finally:
            process.kill()
