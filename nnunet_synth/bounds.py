"""What a setting may be: bounds of numbers and choices of text, said once where the setting is declared.

    @dataclass(frozen=True)
    class Config(Settings):
        width: int = bounded(32, WIDTH)
        norm: str = choice("instance", "batch")

Nothing heavy is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from nnunet_synth.errors import UserError


@dataclass(frozen=True)
class Bounds:
    """The values that a number may have; a bound that is `open` does not belong to them."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:.12g}"
        high = f"{'below' if self.open_high else 'at most'} {self.high:.12g}"
        if math.isinf(self.low):
            return high
        return low if math.isinf(self.high) else f"{low} and {high}"


COUNT = Bounds(low=1)                           # of what costs time, not memory
COUNT_OR_NONE_AT_ALL = Bounds(low=0)
PROBABILITY = Bounds(low=0, high=1, open_low=True, open_high=True)
FRACTION = Bounds(low=0, high=1)
DECAY = Bounds(low=0, high=1, open_high=True)
SEED = Bounds(low=0, high=2**32 - 1)            # what NumPy takes

# Generous: nobody who means it comes near them, a slip of the finger goes beyond.
WEIGHT = Bounds(low=0, high=10**6)              # of a term of a loss
LEARNING_RATE = Bounds(low=0, high=10, open_low=True)
STEPS = Bounds(low=1, high=10**8)
BATCH = Bounds(low=1, high=2**16)
WIDTH = Bounds(low=1, high=1024)                # channels of a first layer; they double with every level
DEPTH = Bounds(low=1, high=12)                  # levels, layers and blocks in a row; sizes double with each level
SIDE = Bounds(low=1, high=2**14)                # of an image, pixels
IMAGES = Bounds(low=1, high=10**7)
JOBS = Bounds(low=1, high=4096)                 # processes
DATASET_ID = Bounds(low=1, high=999)


def bounded(default: Any, bounds: Bounds) -> Any:
    """A field of `Settings`: a number, or a tuple of numbers, within bounds."""
    return field(default=default, metadata={"bounds": bounds})


def choice(*choices: str) -> Any:
    """A field of `Settings`: one of these texts; the first is the default."""
    return field(default=choices[0], metadata={"choices": choices})


@dataclass(frozen=True)
class Settings:
    """A configuration that cannot hold what its fields do not allow.

    Raises:
        UserError: a value has another type than its field, or is out of its bounds; its name and the values that are
            allowed are said.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for setting in fields(self):
            value = checked_type(setting.name, getattr(self, setting.name), hints[setting.name])
            for part in value if isinstance(value, tuple) else (value,):
                _check_range(setting.name, part, setting.metadata)
            object.__setattr__(self, setting.name, value)


def checked_type(key: str, value: Any, hint: Any) -> Any:
    """`value`, an integer where a float is wanted made one and a list where a tuple is wanted made one; UserError where
    it has another type than `hint`."""
    optional = type(None) in get_args(hint)
    if value is None and optional:
        return None
    wanted = next(kind for kind in get_args(hint) if kind is not type(None)) if optional else hint
    if get_origin(wanted) is tuple:
        return _checked_tuple(key, value, get_args(wanted)[0])
    if get_origin(wanted) is not None:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise UserError(f"{key} must be an object with text keys ({{\"ngf\": 16}}), got {_shown(value)}")
        return dict(value)
    if wanted is float and type(value) is int and value.bit_length() < 64:
        value = float(value)
    if type(value) is not wanted or (wanted is float and not math.isfinite(value)):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise UserError(f"{key} must be {names[wanted]}{' or null' if optional else ''}, got {_shown(value)}")
    return value


def _checked_tuple(key: str, value: Any, kind: type) -> tuple:
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{key} must be a list with at least one value, got {_shown(value)}")
    return tuple(checked_type(f"each value of {key}", part, kind) for part in value)


def _check_range(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    if value is None:
        return
    if "bounds" in limits and value not in limits["bounds"]:
        raise UserError(f"{key} must be {limits['bounds']}, got {_shown(value)}")
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(f"{key} must be one of {', '.join(limits['choices'])}, got {_shown(value)}")
    if value == "":
        raise UserError(f"{key} must not be empty")


def _shown(value: Any) -> str:
    """A value as part of one line; Python refuses to print whole numbers beyond 4300 digits."""
    if isinstance(value, int) and value.bit_length() > 300:
        return f"a whole number of some {int(value.bit_length() * math.log10(2))} digits"
    text = f"{value:.12g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
