"""What was read from the tables of a dataroot, kept as files that are mapped, not read, from the second time on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill.errors import InputError
from distill.files import durable, one_at_a_time
from distill.nuscenes.layout import check_version

# Part of the name of a cache: raise it whenever the meaning or layout of records changes.
_FORMAT = 5
_LONGEST_HEADER = 2**20  # bytes; NumPy's own limit is about files of strangers


def cache_file(root: Path, version: str, cache_dir: Path) -> Path:
    """Where the keyframes of these very tables are kept: a changed dataroot is another one.

    The name holds a hash of the dataroot's path, the version and the name, size and modification time of every table.

    Raises:
        InputError: a missing dataroot or version.
    """
    check_version(root, version)
    tables = sorted((root / version).glob("*.json"))
    state = [(table.name, table.stat().st_size, table.stat().st_mtime_ns) for table in tables]
    description = json.dumps([_FORMAT, str(root.resolve()), version, state])
    return cache_dir / f"{version}-{hashlib.sha256(description.encode()).hexdigest()[:16]}.npy"


def file_cache(file: Path, cache_dir: Path, *settings: object) -> Path:
    """Where the keyframes of a file that describes all of them are kept: a changed file is another one.

    The name holds a hash of the file's path, size and modification time, and of how it is read (`settings`).
    """
    state = file.stat()
    description = json.dumps([_FORMAT, str(file.resolve()), state.st_size, state.st_mtime_ns, *settings])
    return cache_dir / f"{file.stem}-{hashlib.sha256(description.encode()).hexdigest()[:16]}.npy"


def cached(file: Path, read: Callable[[], np.ndarray], notice: str) -> np.ndarray:
    """The records in `file`, mapped from disk; if there is no such file, they are read first, by one process.

    Args:
        file: .npy, made with its folder.
        read: from the tables.
        notice: what to tell who waits for that.

    Raises:
        InputError: it is damaged, or cannot be kept there.
    """
    try:
        if not file.exists():
            _make(file, read, notice)
        return _open(file)
    except OSError as error:
        raise InputError(
            f"cannot keep the index of keyframes in {file.parent} ({error}): choose another folder with "
            "data.cache_dir= or the environment variable OCC_DISTILL_CACHE"
        ) from error


def _open(file: Path) -> np.ndarray:
    try:
        # stubs of older NumPys lack the limit
        records = np.load(file, mmap_mode="r", max_header_size=_LONGEST_HEADER)  # type: ignore[call-arg]
    except (ValueError, EOFError) as error:
        raise InputError(f"{file}: not an index of keyframes any more ({error}): delete this file") from error
    return records.view(np.ndarray)  # memmap objects are slow to index


def _make(file: Path, read: Callable[[], np.ndarray], notice: str) -> None:
    """Read the tables into `file`, in one process per machine, so that it is complete or absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # ranks started together: one reads gigabytes of tables, the others wait
    with one_at_a_time(file.with_suffix(".lock")):
        if file.exists():
            return
        print(notice, file=sys.stderr)
        records = read()
        with durable(file) as stream:
            np.lib.format.write_array(stream, records, version=(3, 0))  # names of cameras may be of any script
