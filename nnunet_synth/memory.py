"""Memory that ran out, told by what asked for it: torch, NumPy and Python each say it in words of their own."""

from __future__ import annotations

import re

_SIGNS = ("not enough memory", "can't allocate memory", "out of memory", "Unable to allocate")
_AMOUNT = re.compile(r"(?:tried|unable) to allocate\s+([\d.]+)\s*(bytes|[KMGTPE]iB)", re.IGNORECASE)
_SETTING = {"pretrain": "--batch-size", "layouts": "--batch-size or --jobs", "convert": "--jobs",
            "preprocess": "--jobs", "quality": "-n or --size", "select": "-n", "sample": "-n", "demo": "--quick"}


def out_of_memory(error: BaseException, verb: str) -> str | None:
    """One line for an error that says that memory ran out, else None: how much was asked for, what needs less."""
    text = str(error)
    if not isinstance(error, MemoryError) and not any(sign in text for sign in _SIGNS):
        return None
    found = _AMOUNT.search(text)
    amount = f" when {_readable(float(found[1]), found[2])} were asked for" if found else ""
    setting = _SETTING.get(verb)
    cure = f"halve {setting}" if setting else "close other programs, or use a machine with more memory"
    return f"memory ran out{amount}: {cure}"


def _readable(number: float, unit: str) -> str:
    return f"{number:g} {unit}" if unit.lower() != "bytes" else f"{number / 2 ** 30:.3g} GiB"
