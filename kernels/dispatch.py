"""Which twin of an op runs: said here once, for all ops.

The package of an op holds twins, modules with the same functions and the same results: `reference` is the definition,
plain torch or Python, and runs anywhere; `triton` runs on a GPU; `cpu`, where there is one, does on the CPU what would
take the reference too long.

In Triton's interpreter (TRITON_INTERPRET=1, as in the tests) the Triton twins run on the CPU, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by Triton, too, as it is imported
_chosen: list[str] = []  # see `only`


def twin(package: str, device: torch.device) -> ModuleType:
    """The module of an op's package, such as "kernels.splat", that computes on a device."""
    if _chosen:
        return import_module(f"{package}.{_chosen[-1]}")
    return _fastest(package, device.type == "cuda" or _INTERPRETED)


@contextmanager
def only(name: str) -> Iterator[None]:
    """Within the block, every op runs this twin on every device, for tests and benchmarks.

    Args:
        name: "reference", "cpu" or "triton".
    """
    _chosen.append(name)
    try:
        yield
    finally:
        _chosen.pop()


@cache
def _fastest(package: str, triton: bool) -> ModuleType:
    if triton:
        return import_module(f"{package}.triton")  # only here: it needs a GPU driver
    return import_module(f"{package}.cpu" if find_spec(f"{package}.cpu") else f"{package}.reference")
