"""Finding a class of anyone's by its dotted path."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from distill.errors import InputError


def import_from_working_folder() -> None:
    """Let modules there be imported, last, so that a file there hides nothing that is installed."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def located(path: str, where: str) -> Callable[..., Any]:
    """What lies at a dotted path. Modules in the working folder can be imported.

    Args:
        path: MODULE.NAME.
        where: named in messages, for example as what was given for which value.

    Raises:
        InputError: there is no such thing; an error inside its own module keeps its traceback.
    """
    import_from_working_folder()
    try:
        target: Callable[..., Any] = instantiate({"_target_": path, "_partial_": True}).func
    except InstantiationException as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        if isinstance(reason, ModuleNotFoundError) and f"{path}.".startswith(f"{reason.name}."):
            parent, _, name = str(reason.name).rpartition(".")
            told = (
                f"{parent} ({sys.modules[parent].__file__}) has no {name}" if parent else f"there is no module {name}"
            )
        elif traceback.extract_tb(reason.__traceback__)[-1].filename.startswith(str(Path(hydra.__file__).parent)):
            told = str(reason).partition("\n")[0]
        else:
            raise reason from None
        raise InputError(
            f"{where}: {told}; give MODULE.CLASS of a module that is installed, on PYTHONPATH or in the working folder"
        ) from error
    return target
