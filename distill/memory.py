"""How the C library treats freed memory while a network works on the CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# of <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_KEEP = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
_HAND_BACK = {_M_MMAP_MAX: 2**16, _M_MMAP_THRESHOLD: 2**16, _M_TRIM_THRESHOLD: 2**16}
# what glibc arrives at by itself when large memory is freed
_UNTOUCHED = {_M_MMAP_MAX: 2**16, _M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}
_chosen = _UNTOUCHED  # glibc cannot be asked


def keep_freed_memory() -> None:
    """Reuse freed memory instead of handing it back to the system; does nothing without glibc.

    Voxel tensors are tens of megabytes. By default glibc asks the system for each of them, which clears it page by
    page: a third of a training step on the CPU.
    """
    global _chosen
    _chosen = _KEEP
    _set(_chosen)


@contextmanager
def freed_memory_handed_back() -> Iterator[None]:
    """Inside, resident memory is memory in use: what was freed before and is freed inside goes back to the system.

    Slow, for measurements of memory. Does nothing without glibc.
    """
    _set(_HAND_BACK)
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)
    try:
        yield
    finally:
        _set(_chosen)


def _set(options: dict[int, int]) -> None:
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)


def _glibc(function: str) -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None), function, None) if sys.platform.startswith("linux") else None
