"""Makes nnU-Net find our trainers: runs when an interpreter of the environment starts (`startup/`), so it must be fast.

nnU-Net looks for the trainer that `-tr` names in its own folder and then in those of the environment variable
`nnUNet_extTrainer`. Child processes (spawned workers, DDP ranks) inherit it.
"""

import os

VARIABLE = "nnUNet_extTrainer"
SWITCH_OFF = "NNUNET_SYNTH_NO_REGISTER"


def trainer_folder() -> str:
    """The folder that nnU-Net scans for our trainers."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "_ext")


def register() -> None:
    """Append our folder to `nnUNet_extTrainer`, after what the user set; `NNUNET_SYNTH_NO_REGISTER=1` prevents it."""
    if os.environ.get(SWITCH_OFF) == "1":
        return
    folders = os.environ.get(VARIABLE, "")
    if trainer_folder() not in folders.split(os.pathsep):
        os.environ[VARIABLE] = f"{folders}{os.pathsep}{trainer_folder()}" if folders else trainer_folder()
