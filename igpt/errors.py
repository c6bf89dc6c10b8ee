"""The one exception for what a user can cause or cure."""


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where and what to do.

    The command line prints it as one line, `igpt: error: ...`, and exits with status 2.
    """


class Interrupted(Exception):
    """A signal asked a long run to stop, and what it had done is saved.

    Args:
        message: what was saved and how to go on.
        signal_number: SIGINT or SIGTERM; the exit status is 128 above it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
