"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake in the user's input.

    The message is one line: what is wrong, and what to do about it. Libraries whose reasons are quoted in it may speak
    in several; they are joined. The command line prints it and exits with status 2, and so does `nnUNetv2_train` where
    one of our trainers raises it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))
