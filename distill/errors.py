"""The one exception a user's mistake raises."""


class InputError(Exception):
    """A mistake of the user's: one line that says what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2 (see `distill.command`).
    """
