"""What nnU-Net's plans and `dataset.json` must look like before anybody looks something up in them: a file that was cut
off, or edited by hand, is told in one line, with its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object

_PLANS_KEYS = ("dataset_name", "plans_name", "configurations", "image_reader_writer", "transpose_forward",
               "foreground_intensity_properties_per_channel")


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
