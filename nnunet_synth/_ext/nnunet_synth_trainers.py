"""The one file that nnU-Net scans. It only re-exports: the classes stay those of the installed package, so every
look-up gives the same object, and workers can unpickle them.
"""

try:
    from nnunet_synth.console import make_printable as _make_printable
    from nnunet_synth.trainers import *  # noqa: F403
    from nnunet_synth.uncaught import tell_user_errors_in_one_line as _tell_user_errors_in_one_line
except ModuleNotFoundError as error:
    # An interpreter of another environment, started by one of ours, inherits the variable but not the package.
    if error.name != "nnunet_synth":
        raise
else:
    # Here nnunet_synth is no command of its own: nnUNetv2_train prints what we say.
    _make_printable()
    _tell_user_errors_in_one_line()
