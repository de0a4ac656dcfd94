"""Is what stands in a `meta.json` possible? Asked before a network of its sizes is built, or an image scaled by it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nnunet_synth.bounds import SEED, SIDE, Bounds
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from nnunet_synth.synthesizers.base import SynthMeta

_LABEL = Bounds(low=0, high=2**16 - 1)
_MILLIMETRES = Bounds(low=0, high=10**4, open_low=True)


def check_meta(meta: SynthMeta) -> None:
    """Raises UserError where a field has another type, a number no one can use, or an empty or infinite range."""
    for key, value, kind in (("config", meta.config, dict), ("metrics", meta.metrics, dict),
                             ("synthesizer", meta.synthesizer, str), ("dataset", meta.dataset, str),
                             ("plans_sha256", meta.plans_sha256, str), ("split_sha256", meta.split_sha256, str)):
        if not isinstance(value, kind):
            raise _wrong(key, value)
    for key, value in (("channel_names", meta.channel_names), ("train_case_ids", meta.train_case_ids),
                       ("semantic.names", meta.semantic.names)):
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise _wrong(key, value)
    if not meta.channel_names or not meta.semantic.names:
        raise _wrong("channel_names or semantic.names", [])
    _check_numbers(meta)
    _check_classes(meta)
    if not _is_list(meta.intensity_range, len(meta.channel_names)) or not all(map(_is_range, meta.intensity_range)):
        raise UserError(f"meta.json is damaged: intensity_range is {_shown(meta.intensity_range)}, it must be a finite "
                        "[low, high] for each channel: copy it again, or pretrain the synthesizer again")


def _check_numbers(meta: SynthMeta) -> None:
    wholes = {"divisor": ([meta.divisor], SIDE), "steps": ([meta.steps], Bounds(low=0, high=10**10)),
              "seed": ([meta.seed], SEED), "patch_size": (meta.patch_size, SIDE),
              "montage": (meta.montage, Bounds(low=1, high=64)), "target_labels": (meta.target_labels, _LABEL)}
    for key, (values, bounds) in wholes.items():
        if not isinstance(values, list) or not all(type(value) is int and value in bounds for value in values):
            raise _wrong(key, getattr(meta, key))
    if len(meta.patch_size) != 2 or len(meta.montage) not in (0, 2):
        raise _wrong("patch_size or montage", [meta.patch_size, meta.montage])
    if not isinstance(meta.spacing, list) or not all(_is_number(value) and value in _MILLIMETRES
                                                     for value in meta.spacing):
        raise _wrong("spacing", meta.spacing)
    if type(meta.fold) is not int and not isinstance(meta.fold, str):
        raise _wrong("fold", meta.fold)


def _check_classes(meta: SynthMeta) -> None:
    for key in ("layout_classes", "label_classes"):
        classes = getattr(meta.semantic, key)
        if not isinstance(classes, dict) or not all(
                value.isdecimal() and len(value) < 6 and int(value) in _LABEL and type(number) is int
                and 0 <= number < len(meta.semantic.names) for value, number in classes.items()):
            raise _wrong(f"semantic.{key}", classes)


def _is_range(value: Any) -> bool:
    return _is_list(value, 2) and all(map(_is_number, value)) and value[0] < value[1]


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _wrong(key: str, value: Any) -> UserError:
    return UserError(f"meta.json is damaged: {key} cannot be {_shown(value)}: copy it again, or pretrain the "
                     "synthesizer again")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:      # a whole number of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
