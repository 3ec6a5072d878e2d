"""How the programs start and how they end: Hydra in front, one line and an exit code behind."""

from __future__ import annotations

import difflib
import errno
import functools
import hashlib
import os
import re
import select
import sys
from collections.abc import Callable, Collection, Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from conf.renamed import renamed
from conf.schema import checked
from distill.errors import InputError, Unreachable
from distill.located import import_from_working_folder

USER_ERROR = 2
INTERRUPTED = 130
UNREAD = 141  # what a shell says of a program whose output nobody reads any more
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # what no program can mend, wherever it happens to write
_SHOWN = 3  # problems of a configuration in one line
_LONGEST_NAME = 120  # characters; file systems take 255 bytes


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turn `task(config)` into a program configured by `conf/<config_name>.yaml`.

    A user's mistake (`InputError`, an unknown override, a missing value) is printed as one line and ends the process
    with exit code 2; Ctrl-C ends it with 130. Anything else is a defect of ours and keeps its traceback.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def on_checked(config: DictConfig) -> None:
            import_from_working_folder()  # a configuration may name classes of the user's
            task(checked_config(config_name, config))

        # inside Hydra as well, which would otherwise announce the error with a line of its own
        program = hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)(
            _guarded(on_checked)
        )

        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors of the configuration itself reach us as they are
            # argparse takes all overrides in one go: `kd=none -m seed=0,1` has two
            arguments, told = renamed(config_name, sys.argv[1:])
            sys.argv[1:] = sorted(arguments, key=_is_override)
            for line in told:
                print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
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
        except BrokenPipeError:
            _leave_unread()
        except Exception as error:
            message = user_mistake(error)
            if message is None:
                raise
            if _launched():
                _say(message)
                raise  # to whoever waits for this task, and ends with this line
            _leave(message, USER_ERROR)

    return guarded


def _launched() -> bool:
    """Whether this is a task of a sweep that a launcher such as SLURM's has started in a process of its own."""
    if not HydraConfig.initialized():
        return False
    sweep = HydraConfig.get()
    return sweep.mode == RunMode.MULTIRUN and not sweep.launcher._target_.endswith("BasicLauncher")


def script(program: Callable[[], None]) -> Callable[[], None]:
    """`program`, a small one that reads its own arguments, ending as the large ones do: with one line and a code."""

    @functools.wraps(program)
    def main() -> None:
        try:
            program()
        except KeyboardInterrupt:
            _leave("interrupted", INTERRUPTED)
        except BrokenPipeError:
            _leave_unread()
        except InputError as error:
            _leave(_one_line(error), USER_ERROR)

    return main


def checked_config(program: str, config: DictConfig) -> DictConfig:
    """The configuration, resolved and with absolute paths, after every value was checked against `conf.schema`.

    Raises:
        InputError: values that cannot be.
    """
    if "variant" in config:
        config.variant = distinct(HydraConfig.get().overrides.task, but=config.not_in_name)
    values, problems = checked(program, OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise InputError(f"configuration: {'; '.join(problems[:_SHOWN])}{more} (see --help)")
    return OmegaConf.create(values)


def distinct(overrides: Sequence[str], but: Collection[str]) -> str:
    """What tells this call from the plain one, as the end of a file name: "-trainer.learning_rate_1e-3", or "".

    Args:
        overrides: of the command line, in any order.
        but: keys that are left out, `data.` for all below data.
    """
    told = [
        override
        for override in sorted(overrides)
        if not (key := override.lstrip("+~").partition("=")[0]).startswith(tuple(k for k in but if k.endswith(".")))
        and key not in but
    ]
    plain = [override.lstrip("+").replace("~", "no-").replace("/", "+") for override in told]
    name = "".join(f"-{re.sub('[^A-Za-z0-9.+-]+', '_', part).strip('_')}" for part in plain)
    if len(name) <= _LONGEST_NAME:
        return name
    # readable as far as it goes, and different where the rest is
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(''.join(told).encode()).hexdigest()[:8]}"


def user_mistake(error: BaseException | None) -> str | None:
    """The one-line message if `error`, or what caused it, is a mistake of the user's; otherwise None."""
    configuration: str | None = None
    while error is not None:
        if isinstance(error, InputError | Unreachable):
            return _one_line(error)
        if isinstance(error, OverrideParseException):
            return _how_to_write(error.override)
        if isinstance(error, OSError) and error.errno in _DISK:
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror}: see to the disk (df), then run the same command again to go on"
        if isinstance(error, ConfigKeyError | ConfigAttributeError) and "is not in struct" in str(error):
            return _no_such_value(error)
        if isinstance(error, InterpolationToMissingValueError):
            value = str(error).partition("value: ")[2].split()[0]
            return f"configuration: {value} must be given: {value}=... ({error.full_key} needs it)"
        if isinstance(error, MissingConfigException) and "/submitit_" in str(error.missing_cfg_file):
            return f"configuration: {error.missing_cfg_file} is of another package: pip install 'occ-distill[slurm]'"
        if isinstance(error, HydraException | OmegaConfBaseException):
            # Hydra's advice to append what we would refuse, and where it looked, help nobody
            said = re.split(r"\s*(?:To append to your|Config search path:)", str(error))[0]
            configuration = f"configuration: {' '.join(said.split())} (see --help, or --cfg job for all values)"
        elif str(error).startswith("Config group override must be"):  # a plain ValueError of Hydra's
            return "configuration: a group takes the name of an option (see --help), not null or a number: leave it out"
        elif configuration is not None:
            return None  # a defect that surfaced while Hydra was building an object
        error = error.__cause__
    return configuration


def _how_to_write(override: str) -> str:
    if "=" not in override:
        return f"{override}: neither an option nor an override: write KEY=VALUE without spaces around =, or ~KEY"
    key, _, value = override.partition("=")
    return (
        f"{override}: brackets, commas, =, ~ and the like have a meaning here: quote the value twice, "
        f"once for the shell and once for the configuration: '{key}=\"{value}\"'"
    )


def _no_such_value(error: ConfigKeyError | ConfigAttributeError) -> str:
    names = [str(name) for name in error.parent_node or ()]  # type: ignore[attr-defined]
    near = difflib.get_close_matches(str(error.key), names, 1)
    path = str(error.full_key).rpartition(".")[0]
    meant = [f"{path}.{name}" if path else name for name in near]
    there = f"{path or 'the configuration'} has {', '.join(names)}" if names else f"{path} is one value"
    hint = f"did you mean {meant[0]}?" if meant else there
    return f"configuration: there is no {error.full_key}: {hint} (see --help, or --cfg job for all values)"


def _is_override(argument: str) -> bool:
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def _one_line(error: BaseException) -> str:
    # an exception from a loader worker arrives as the text of its traceback, which ends with the message
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return " ".join(str(error).rpartition(name)[2].split())


def _say(message: str) -> None:
    program = os.path.basename(sys.argv[0]).removesuffix(".py")
    print(f"{program}: error: {message}", file=sys.stderr, flush=True)


def _leave(message: str, code: int) -> None:
    _say(message)
    sys.exit(code)


def _leave_unread() -> None:
    """End where whoever read our output has gone, as in `occ-eval --help | head`; any other pipe is its owner's."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)  # of a pipe without a reader an error is told unasked
    if not poll.poll(0):
        raise  # what is being handled
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python flushes once more when it ends
    sys.exit(UNREAD)
