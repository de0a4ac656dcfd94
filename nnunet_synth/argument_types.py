"""Numbers on the command line: argparse types that refuse what no verb can use, with one line and exit status 2."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from nnunet_synth.bounds import Bounds

ANY = Bounds()


def whole(bounds: Bounds) -> Callable[[str], int]:
    """An argparse type: a whole number within bounds."""
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:     # no number, or of more digits than Python reads
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text[:40]!r}") from error
        return _within(bounds, value, text)

    return parse


def real(bounds: Bounds = ANY) -> Callable[[str], float]:
    """An argparse type: a finite number within bounds."""
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a number, got {text[:40]!r}") from error
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a finite number, got {text[:40]!r}")
        return _within(bounds, value, text)

    return parse


def _within(bounds: Bounds, value: float, text: str) -> float:
    if value not in bounds:
        raise argparse.ArgumentTypeError(f"must be {bounds}, got {text[:40]}")
    return value
