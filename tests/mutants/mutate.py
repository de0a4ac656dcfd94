"""Small changes to valid files: of bytes, and of what JSON and YAML hold. A number says which mutant it is."""

from __future__ import annotations

import copy
import struct
from typing import Any

import numpy as np

# What does not belong where something else stood: other types, empty, negative, beyond every range.
STRANGE = (None, True, False, 0, 1, -1, 3, 2 ** 31, 2 ** 63, 10 ** 30, 1e-30, -0.5, 1e308, float("nan"), float("inf"),
           "", "x", "1", "../x", "\x00", "x" * 300, [], {}, [0], [[]], [None], ["x", 1], {"x": 1}, list(range(9)))
NUMBERS = (0, 1, -1, 2, 7, 16, 255, 256, 512, 32767, -32768, 65535, 2 ** 31 - 1, -2 ** 31, 10 ** 9)
REALS = (0.0, 1.0, -1.0, 1e-30, 1e30, 0.001, 1000.0, float("nan"), float("inf"), -1024.0)


def mutated_bytes(content: bytes, rng: np.random.Generator, length: int | None = None) -> bytes:
    """One to three changes within the first `length` bytes."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        end = min(len(changed), len(content) if length is None else length)
        if end < 9:
            break
        _BYTE_CHANGES[rng.integers(len(_BYTE_CHANGES))](changed, int(rng.integers(end - 8)), rng)
    return bytes(changed)


def _flip(content: bytearray, place: int, rng: np.random.Generator) -> None:
    content[place] ^= 1 << int(rng.integers(8))


def _overwrite(content: bytearray, place: int, rng: np.random.Generator) -> None:
    content[place] = int(rng.integers(256))


def _write_integer(content: bytearray, place: int, rng: np.random.Generator) -> None:
    width = int(rng.choice([2, 4, 8]))
    number = NUMBERS[rng.integers(len(NUMBERS))] % (1 << 8 * width)
    place -= place % 2
    content[place:place + width] = number.to_bytes(width, "little")


def _write_real(content: bytearray, place: int, rng: np.random.Generator) -> None:
    place -= place % 4
    content[place:place + 4] = struct.pack("<f", REALS[rng.integers(len(REALS))])


def _cut(content: bytearray, place: int, rng: np.random.Generator) -> None:
    del content[place:]


def _remove(content: bytearray, place: int, rng: np.random.Generator) -> None:
    del content[place:place + int(rng.integers(1, 9))]


def _insert(content: bytearray, place: int, rng: np.random.Generator) -> None:
    content[place:place] = rng.bytes(int(rng.integers(1, 9)))


def _repeat(content: bytearray, place: int, rng: np.random.Generator) -> None:
    content[place:place] = content[place:place + int(rng.integers(1, 33))]


_BYTE_CHANGES = (_flip, _flip, _overwrite, _write_integer, _write_integer, _write_real, _cut, _remove, _insert, _repeat)


def mutated_tree(content: Any, rng: np.random.Generator) -> Any:
    """JSON-like content with one to three of its parts removed, made strange, or exchanged for another part."""
    changed = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        places = list(_places(changed))
        if not places:
            break
        holder, key = places[rng.integers(len(places))]
        what = rng.integers(6)
        if what == 0:
            del holder[key]
        elif what == 1:
            other, place = places[rng.integers(len(places))]
            holder[key] = copy.deepcopy(other[place])
        elif what == 2 and isinstance(holder, dict):
            holder[str(STRANGE[rng.integers(len(STRANGE))])] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(STRANGE[rng.integers(len(STRANGE))])
    return changed


def _places(content: Any) -> Any:
    """(holder, key or index) of every part."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])
