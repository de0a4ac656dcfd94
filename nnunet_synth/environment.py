"""Environment variables of nnU-Net, of OpenMP and of ours: what they may be set to.

nnU-Net reads its own when it is imported, and a value that it cannot read ends every command in a traceback.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from nnunet_synth.errors import UserError


@dataclass(frozen=True)
class Variable:
    """What one variable may be set to.

    Attributes:
        allowed: regular expression of the values, upper or lower case.
        said: the same in words.
        breaks: whether another value ends commands, or is merely not followed.
    """

    allowed: str
    said: str
    breaks: bool = True


SWITCH = r"1|true|t|0|false|f"
NUMBERS = r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*"
VARIABLES = {
    "nnUNet_n_proc_DA": Variable(r"\s*\d+\s*", "a number of worker processes"),
    "nnUNet_def_n_proc": Variable(r"\s*0*[1-9]\d*\s*", "a number of processes, 1 or more"),
    "nnUNet_wandb_enabled": Variable("0|1|true|false", "1 or 0"),
    "nnUNet_compile": Variable(SWITCH, "t or f; nnU-Net takes all else for f", breaks=False),
    "nnUNet_synth_cpu_bf16": Variable(rf"|{SWITCH}|y|yes|n|no", "1 or 0"),
    "NNUNET_SYNTH_NO_REGISTER": Variable("|0|1", "1 or not at all; all else is ignored", breaks=False),
    "OMP_NUM_THREADS": Variable(rf"|{NUMBERS}", "a number of threads; all else is ignored", breaks=False),
    "MKL_NUM_THREADS": Variable(rf"|{NUMBERS}", "a number of threads; all else is ignored", breaks=False),
}
OTHERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer", "nnUNet_wandb_project",
          "nnUNet_wandb_mode", "nnUNet_npp", "nnUNet_nps")


@dataclass(frozen=True)
class Nonsense:
    """A variable that is set to what is not followed, or that nobody reads."""

    variable: str
    text: str
    cure: str
    breaks: bool


def nonsense(environment: Mapping[str, str]) -> list[Nonsense]:
    """All that is wrong with these variables."""
    found = [Nonsense(name, f"is {environment[name]!r}", f"set it to {variable.said}, or unset {name}",
                      variable.breaks)
             for name, variable in VARIABLES.items()
             if name in environment and not re.fullmatch(variable.allowed, environment[name], re.IGNORECASE)]
    known = {name.lower(): name for name in (*VARIABLES, *OTHERS)}
    for name in sorted(environment):
        if name.lower().startswith("nnunet_") and name not in known.values():
            meant = [known[match] for match in get_close_matches(name.lower(), known, 1, cutoff=0.85)]
            if meant:
                found.append(Nonsense(name, "is read by nobody", f"did you mean {meant[0]}?", breaks=False))
    return found


def check_environment() -> None:
    """Raise UserError where nnU-Net could not be imported, or we could not read what is ours."""
    for found in nonsense(os.environ):
        if found.breaks:
            raise UserError(f"environment variable {found.variable} {found.text}: {found.cure}")


def planning_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What must be set beside `environment` where nnU-Net plans: its planner calls torch.set_num_threads with
    nnUNet_n_proc_DA, which refuses the 0 of a training in one process."""
    workers = environment.get("nnUNet_n_proc_DA", "1")
    return {"nnUNet_n_proc_DA": "1"} if workers.strip().strip("0") == "" else {}
