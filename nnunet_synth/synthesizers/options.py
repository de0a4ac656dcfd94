"""A synthesizer's hyper-parameters from a preset and `key=value` options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.base import Synthesizer


def parse_options(options: Iterable[str]) -> dict[str, Any]:
    """`["ngf=16", "noise=false"]` → `{"ngf": 16, "noise": False}`; what is no JSON is text. Raises UserError."""
    parsed = {}
    for option in options:
        key, separator, text = option.partition("=")
        if not separator or not key:
            raise UserError(f"option {option!r} is not of the form key=value")
        try:
            parsed[key] = json.loads(text)
        except ValueError:
            parsed[key] = text
        except RecursionError as error:
            raise UserError(f"option {key}: the value is nested beyond reason") from error
    return parsed


def make_config(synthesizer: type[Synthesizer], preset: str = "default",
                options: Mapping[str, Any] | None = None) -> Any:
    """The `synthesizer.Config` of a preset with some fields replaced.

    Raises:
        UserError: the preset or an option is unknown (the known ones are named), or an option has another type than
            the preset's value.
    """
    if preset not in synthesizer.PRESETS:
        raise UserError(f"synthesizer {synthesizer.name} has no preset {preset!r}; it has: "
                        f"{', '.join(synthesizer.PRESETS)}")
    config = synthesizer.PRESETS[preset]
    options = dict(options or {})
    for key, value in options.items():
        options[key] = _checked(synthesizer.name, config, key, value)
    return replace(config, **options)


def apply_drawing_options(synthesizer: Synthesizer, options: Mapping[str, Any]) -> None:
    """Change how a trained synthesizer draws: its `config` gets these values, the description of its training stays.

    Raises:
        UserError: an option cannot be changed after training, has another type than the one that it was trained with,
            or does not go with what was trained.
    """
    changed = {}
    for key, value in options.items():
        if key not in synthesizer.drawing_options:
            known = ", ".join(synthesizer.drawing_options) or "none"
            raise UserError(f"option {key}: of a trained {synthesizer.name} it cannot be changed; what can be: {known}")
        changed[key] = _checked(synthesizer.name, synthesizer.config, key, value)
    synthesizer.config = replace(synthesizer.config, **changed)


def config_from_json(synthesizer: type[Synthesizer], content: Mapping[str, Any]) -> Any:
    """The Config that was stored as JSON. Raises UserError when it holds a field that this version does not know."""
    known = {field.name for field in fields(synthesizer.Config)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise UserError(f"the stored configuration of synthesizer {synthesizer.name} has unknown option(s) "
                        f"{', '.join(unknown)}, it was written by another version")
    return synthesizer.Config(**{key: tuple(value) if isinstance(value, list) else value
                                 for key, value in content.items()})


def _checked(name: str, config: Any, key: str, value: Any) -> Any:
    known = [field.name for field in fields(config)]
    if key not in known:
        raise UserError(f"synthesizer {name} has no option {key!r}; it has: {', '.join(known)}")
    present = getattr(config, key)
    if isinstance(present, tuple) and isinstance(value, list):
        value = tuple(value)
    if isinstance(present, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if present is not None and type(value) is not type(present):
        raise UserError(f"option {key} of synthesizer {name} must be {type(present).__name__} as in {key}={present}, "
                        f"got {value!r}")
    return value
