"""A progress bar with an ETA on a terminal, and plain lines elsewhere (log files, job schedulers)."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int | None = None, initial: int = 0,
             seconds_between_lines: float = 15.0) -> Iterator[T]:
    """Iterate over `items` and show how far it got on stderr.

    Args:
        items: what to iterate over.
        description: what is being done, shown in front of the bar.
        total: number of items, including the `initial` ones that an earlier run did; `len(items)` if not given.
        initial: how many were done before.
        seconds_between_lines: without a terminal, at most one line in this time (and one at the end).
    """
    if total is None and hasattr(items, "__len__"):
        total = initial + len(items)
    if sys.stderr.isatty():
        from tqdm import tqdm
        yield from tqdm(items, desc=description, total=total, initial=initial)
        return

    start = last = time.monotonic()
    done = initial
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= seconds_between_lines or done == total:
            last = now
            remaining = f", {(now - start) / (done - initial) * (total - done):.0f} s left" if total else ""
            print(f"{description}: {done}{f'/{total}' if total else ''}{remaining}", file=sys.stderr, flush=True)
