"""Which twin of an op runs: said here once, for all ops.

The package of an op holds twins, modules with the same functions and the same results: `reference` is the definition,
plain torch or Python, and runs anywhere. Where there are such, `triton` runs on a GPU, and `cpu` does on the CPU what
would take the reference too long; `graph` is what goes into an exported network, in operators that other runtimes know.

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
    if torch.compiler.is_exporting():
        return import_module(f"{package}.graph")
    return _fastest(package, device.type)


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
def _fastest(package: str, device: str) -> ModuleType:
    candidates = ["triton"] if device == "cuda" or _INTERPRETED else []
    candidates += ["cpu"] if device == "cpu" else []
    there = [name for name in candidates if find_spec(f"{package}.{name}")]
    return import_module(f"{package}.{[*there, 'reference'][0]}")  # only here: Triton needs a GPU driver
