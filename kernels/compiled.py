"""Functions that numba compiles, and keeps on disk where it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator like `numba.njit`; what it compiles is there at the next start.

    Unless neither the folder of the package nor HOME can be written, as in many containers: then it compiles at each
    start. The environment variable NUMBA_CACHE_DIR names another folder.

    Args:
        options: of `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache
            return numba.njit(**options)(function)

    return decorate
