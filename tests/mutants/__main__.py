"""`python -m tests.mutants FORMAT NUMBER [--first N]`: so many mutants of a format, and what came of them.

They are met in processes of a hundred each, with a limit of memory and of a minute for a mutant: one that takes down an
outside decoder is counted and does not end the run.
"""

from __future__ import annotations

import argparse
import collections
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from tests.mutants.formats import FORMATS, meet

PART, SECONDS, MEMORY = 100, 60, 8 * 2 ** 30


def meet_part(name: str, root: Path, first: int, number: int) -> None:
    """In a process of its own: a line a mutant."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    for mutant in range(first, first + number):
        print(f"{mutant} begun", flush=True)
        signal.alarm(SECONDS)
        try:
            print(f"{mutant} {meet(name, root, mutant)}", flush=True)
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "nnunet_synth" in frame.filename]
            where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-2:]]
            text = " ".join(str(error).split())[:160]
            print(f"{mutant} failed {type(error).__name__} {' '.join(where)} {text}", flush=True)
        signal.alarm(0)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("number", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        meet_part(args.format, args.part, args.first, args.number)
        return 0
    root = Path(tempfile.mkdtemp())
    counts: collections.Counter[str] = collections.Counter()
    try:
        FORMATS[args.format].prepare(root)
        first, end = args.first, args.first + args.number
        while first < end:
            number = min(PART, end - first)
            command = [sys.executable, "-m", "tests.mutants", args.format, number, "--first", first, "--part", root]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            lines = [line.split(" ", 2) for line in done.stdout.splitlines() if line.split(" ")[0].isdecimal()]
            for line in lines:
                if line[1] == "failed":
                    print(*line, flush=True)
            counts.update(line[1] for line in lines if line[1] != "begun")
            last = max((int(line[0]) for line in lines), default=first)
            if done.returncode:
                counts["took the process down"] += 1
                print(f"{last} took the process down ({done.returncode}) {done.stderr[-300:]}", flush=True)
            first = last + 1
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(args.format, dict(counts))
    return int(set(counts) - {"taken", "refused"} != set())


if __name__ == "__main__":
    sys.exit(main())
