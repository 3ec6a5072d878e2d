"""What ends a program with one line instead of a traceback."""


class InputError(Exception):
    """A mistake of the user's: one line that says what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2 (see `distill.command`).
    """


class Unreachable(OSError):  # noqa: N818 - it names what was met
    """What an object store refuses or does not answer, in one line that says what to look at."""

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.strerror = told
