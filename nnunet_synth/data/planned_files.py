"""What nnU-Net's plans and `dataset.json` must look like before anybody looks something up in them: a file that was cut
off, or edited by hand, is told in one line, with its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object

_PLANS_KEYS = ("dataset_name", "plans_name", "configurations", "image_reader_writer", "transpose_forward",
               "foreground_intensity_properties_per_channel")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_lengths(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) in (2, 3) and all(
        type(length) is int and 1 <= length <= 10**5 for length in value)


def _are_spacings(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) in (2, 3) and all(
        type(step) in (int, float) and 0 < step < math.inf for step in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_text, value))


_CONFIGURATION: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data_identifier": (_is_text, "the name of a folder"),
    "preprocessor_name": (_is_text, "the name of nnU-Net's preprocessor"),
    "patch_size": (_are_lengths, "two or three numbers of pixels"),
    "spacing": (_are_spacings, "two or three distances in mm"),
    "normalization_schemes": (_are_texts, "one name for each channel"),
}


def read_plans(path: Path, cure: str) -> dict[str, Any]:
    """The content of a plans file. Raises UserError."""
    plans = read_object(path, cure, cure, *_PLANS_KEYS)
    configurations = plans["configurations"]
    if not isinstance(configurations, dict) or not all(isinstance(block, dict) for block in configurations.values()):
        raise UserError(f"\"configurations\" of {path} must be an object of objects: {cure}")
    for name, block in configurations.items():
        if not isinstance(block.get("nnunet_synth", {}), dict):
            raise UserError(f"\"nnunet_synth\" of configuration {name} in {path} must be an object: make it again with "
                            "nnunet_synth configure")
    return plans


def check_inheritance(configurations: Mapping[str, Mapping[str, Any]], configuration: str, path: Path) -> None:
    """Raises UserError where a configuration inherits from one that does not exist, or in a circle."""
    chain = [configuration]
    while (parent := configurations[chain[-1]].get("inherits_from")) is not None:
        if not isinstance(parent, str) or parent not in configurations:
            raise UserError(f"configuration {chain[-1]} of {path} inherits from {parent!r}, which does not exist; "
                            f"there are {', '.join(configurations)}")
        if parent in chain:
            raise UserError(f"configuration {configuration} of {path} inherits from itself "
                            f"({' → '.join([*chain, parent])}): correct \"inherits_from\"")
        chain.append(parent)


def check_configuration(configuration: Mapping[str, Any], name: str, path: Path, cure: str) -> None:
    """Raises UserError where a configuration, with all that it inherits, lacks what every verb looks up, or has it in
    another form."""
    for key, (is_right, wanted) in _CONFIGURATION.items():
        if key not in configuration or not is_right(configuration[key]):
            found = f"is {str(configuration[key])[:40]}" if key in configuration else "is missing"
            raise UserError(f"\"{key}\" of configuration {name} in {path} {found}, it must be {wanted}: {cure}")
    if len(configuration["patch_size"]) != len(configuration["spacing"]):
        raise UserError(f"patch_size and spacing of configuration {name} in {path} differ in length: {cure}")


@contextmanager
def naming_unusable_plans(path: Path) -> Iterator[None]:
    """Where nnU-Net stumbles over its own plans in here, say in one line over which file and what.

    Raises:
        UserError: instead of whatever nnU-Net raises for a key that is missing or a value of another type.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError, ImportError,
            RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"nnU-Net cannot work with {path} ({type(error).__name__}: {reason}): plan the dataset again, "
                        "or correct it") from error


def read_dataset_json(path: Path, if_missing: str, if_damaged: str) -> dict[str, Any]:
    """The content of a `dataset.json`. Raises UserError."""
    content = read_object(path, if_missing, if_damaged, "labels", "file_ending")
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or not channels or not all(key.isdigit() for key in channels):
        raise UserError(f"\"channel_names\" of {path} must be an object like {{\"0\": \"CT\"}}: {if_damaged}")
    if not isinstance(content["labels"], dict) or not all(map(_is_label, content["labels"].values())):
        raise UserError(f"\"labels\" of {path} must be an object like {{\"background\": 0, \"lesion\": 1}}: "
                        f"{if_damaged}")
    if not isinstance(content["file_ending"], str):
        raise UserError(f"\"file_ending\" of {path} must be text like \".nii.gz\": {if_damaged}")
    return _checked_additions(content, path, if_damaged)


def _checked_additions(content: dict[str, Any], path: Path, if_damaged: str) -> dict[str, Any]:
    ours = content.get("nnunet_synth", {})
    layouts = ours.get("layout_labels", {}) if isinstance(ours, dict) else None
    if not isinstance(layouts, dict) or not all(type(value) is int and 0 <= value < 256 for value in layouts.values()):
        raise UserError(f"\"nnunet_synth\" of {path} must be an object whose \"layout_labels\" are like "
                        f"{{\"left_lung\": 1}}: {if_damaged}")
    return content


def _is_label(value: Any) -> bool:
    values = value if isinstance(value, list) and value else [value]
    return all(type(part) is int and part >= 0 for part in values) or value == "ignore"
