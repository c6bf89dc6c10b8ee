"""The one exception for what a user can cause or cure."""


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where and what to do.

    The command line prints it as one line, `igpt: error: ...`, and exits with status 2.
    """
