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
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): {if_damaged}") from error
