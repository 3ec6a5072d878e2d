"""Files that several processes write and a crash may interrupt: durable writes, and locks that end with their owner.

And `leaves`: what they say, as far as it is nested, for those who compare.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from distill.errors import InputError


@contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A stream whose file is, after a crash, there whole or not at all, and there once the block ended.

    Raises:
        OSError: the disk refuses; the file is as it was before.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file as `durable` does."""
    with durable(path) as file:
        file.write(content)


def sync(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait until no other process is in such a block; the system lets the next one in even when this one is killed.

    Args:
        lock: a file; made if absent.
    """
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def owned(lock: Path, what: str) -> Iterator[None]:
    """Own `what` until the end of the block, or of this process, however it ends.

    Args:
        lock: a file that says who the owner is; made if absent.
        what: named to whom is refused.

    Raises:
        InputError: another process owns it.
    """
    with open(lock, "a+") as file:
        try:
            # a record lock, which loader workers do not inherit: it ends with this process, not with its last child
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise InputError(
                f"{what} is in use by {file.read().strip() or 'another process'}: wait for it or stop it, or choose "
                "another output="
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def leaves(node: Any, lists: bool = False, key: str = "") -> dict[str, Any]:
    """Everything in nested dicts by its dotted key, so that two of them can be compared.

    Args:
        node: what is nested.
        lists: whether lists and tuples are gone through, too; otherwise each is one value.
        key: of the node itself.
    """
    if not isinstance(node, (dict, list, tuple) if lists else dict):
        return {key: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {
        inner: value
        for name, child in items
        for inner, value in leaves(child, lists, f"{key}.{name}" if key else str(name)).items()
    }
