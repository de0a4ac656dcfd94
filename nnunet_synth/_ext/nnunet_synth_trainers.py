"""The one file that nnU-Net scans. It only re-exports: the classes stay those of the installed package, so every
look-up gives the same object, and workers can unpickle them.
"""

try:
    from nnunet_synth.trainers import *  # noqa: F403
except ModuleNotFoundError as error:
    # An interpreter of another environment, started by one of ours, inherits the variable but not the package.
    if error.name != "nnunet_synth":
        raise
