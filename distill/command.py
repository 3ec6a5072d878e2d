"""How the three programs start and how they end: Hydra in front, one line and an exit code behind."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from distill.errors import InputError

USER_ERROR = 2
INTERRUPTED = 130


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turn `task(config)` into a program configured by `conf/<config_name>.yaml`.

    A user's mistake (`InputError`, an unknown override, a missing value) is printed as one line and ends the process
    with exit code 2; Ctrl-C ends it with 130. Anything else is a defect of ours and keeps its traceback.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        # inside Hydra as well, which would otherwise announce the error with a line of its own
        program = hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)(_guarded(task))

        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors of the configuration itself reach us as they are
            _guarded(program)()

        return main

    return decorate


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    """`function`, leaving the process with one line when the user made a mistake."""

    @functools.wraps(function)
    def guarded(*arguments: DictConfig) -> None:
        try:
            function(*arguments)
        except KeyboardInterrupt:
            _leave("interrupted; run the same command again to go on where it stopped", INTERRUPTED)
        except Exception as error:
            message = user_mistake(error)
            if message is None:
                raise
            _leave(message, USER_ERROR)

    return guarded


def user_mistake(error: BaseException | None) -> str | None:
    """The one-line message if `error`, or what caused it, is a mistake of the user's; otherwise None."""
    configuration: str | None = None
    while error is not None:
        if isinstance(error, InputError):
            return _one_line(error)
        if isinstance(error, HydraException | OmegaConfBaseException):
            configuration = f"configuration: {_one_line(error)} (see --help, or --cfg job for all values)"
        elif configuration is not None:
            return None  # a defect that surfaced while Hydra was building an object
        error = error.__cause__
    return configuration


def _one_line(error: BaseException) -> str:
    # an exception from a loader worker arrives as the text of its traceback, which ends with the message
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return " ".join(str(error).rpartition(name)[2].split())


def _leave(message: str, code: int) -> None:
    program = os.path.basename(sys.argv[0])
    print(f"{program}: error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
