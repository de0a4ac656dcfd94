"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake in the user's input.

    The message is one line: what is wrong, and what to do about it. The command line prints it and exits with
    status 2; inside `nnUNetv2_train` the trainers raise it.
    """
