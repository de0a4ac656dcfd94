"""Reading JSON files that a user may have lost or broken."""

import json
from pathlib import Path
from typing import Any

from nnunet_synth.errors import UserError


def read_json(path: Path, if_missing: str, if_damaged: str) -> Any:
    """The content of a UTF-8 JSON file.

    Args:
        if_missing, if_damaged: what the user should do, the end of the message.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: {if_missing}") from error
    except (ValueError, RecursionError) as error:       # JSON that is nested beyond reason
        raise UserError(f"{path} is not valid JSON ({error}): {if_damaged}") from error


def read_object(path: Path, if_missing: str, if_damaged: str, *keys: str) -> dict[str, Any]:
    """`read_json` of a file that must hold an object with at least these keys. Raises UserError."""
    content = read_json(path, if_missing, if_damaged)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object ({{…}}), not {_kind(content)}: {if_damaged}")
    lacking = [key for key in keys if key not in content]
    if lacking:
        raise UserError(f"{path} has no {', '.join(lacking)}: {if_damaged}")
    return content


def _kind(content: Any) -> str:
    return {list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(type(content), "a number")
