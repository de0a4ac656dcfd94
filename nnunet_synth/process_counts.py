"""Numbers of worker processes, as users give them."""

from __future__ import annotations

import os

from nnunet_synth.errors import UserError


def check_jobs(jobs: int | None) -> None:
    """Raise UserError where `--jobs` is no number of processes; None = not given."""
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least one worker is needed")


def processes_from_environment(variable: str, default: int) -> int:
    """A number of processes that is set by one of nnU-Net's environment variables.

    Raises:
        UserError: it is no whole number, or below 1.
    """
    if variable not in os.environ:
        return default
    text = os.environ[variable].strip()
    if not text.removeprefix("-").isdecimal() or int(text) < 1:
        raise UserError(f"the environment variable {variable} is {text!r}: set it to a number of processes, 1 or "
                        "more, or unset it")
    return int(text)
