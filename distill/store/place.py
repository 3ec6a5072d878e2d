"""Where a store lies: what it asks of a disk, and of whatever takes the place of one.

A store writes each file whole, once, and never changes a part of it; no two files must change together. What a place
promises of its files and claims is in `Place`; tests/distill/store/test_place.py holds every place to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from typing_extensions import override

from distill.files import sync, write_durably

# what `write_durably` leaves of a file when it is killed
_PARTIAL = re.compile(r"(?P<name>.+)\.\d+\.partial")


class Place(ABC):
    """Files by name, whose parts are separated by "/", and claims.

    May be pickled and read in other processes; claims are not sent along.

    Attributes:
        remote: whether it is in an object store: it is worth a cache then, and cannot be read in a fork of the process
            that opened it.
    """

    remote = False

    @property
    @abstractmethod
    def address(self) -> str:
        """Where it is, in words."""

    @abstractmethod
    def empty(self) -> bool:
        """Whether there is nothing at all, so that `create` may make something of it."""

    @abstractmethod
    def create(self, files: Mapping[str, bytes]) -> None:
        """Make all of these files at once; where any is already there, because somebody was first, do nothing.

        Raises:
            OSError: it cannot. Nothing is there then.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    def read_several(self, names: Sequence[str]) -> list[bytes]:
        """The content of several files; of one that is not there, nothing."""
        contents = []
        for name in names:
            try:
                contents.append(self.read(name))
            except FileNotFoundError:
                contents.append(b"")
        return contents

    @abstractmethod
    def read_part(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of a file from `start` on; fewer where it ends before.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file. It is, after a crash, as before or as it should be, and the latter after returning.

        The folder in `address` that it lies in need not be there.

        Raises:
            OSError: it cannot; the file is as before.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it is there; it does not come back after a crash."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes in each file in a folder, by its name relative to it; see `names`."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that whoever asks may still write; None: there is no limit that it knows of."""

    @abstractmethod
    def version(self, name: str) -> int | None:
        """Changes when a file is written again, below 2^64; None if there is none."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """What lies in a folder, relative to it, in no order; of folders in it their files."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders in it, in no order; none if it is not there."""

    @abstractmethod
    def leftovers(self, folder: str) -> Iterator[tuple[str, str]]:
        """What interrupted writes have left in a folder: the name that they were for, and a name to `delete`.

        Both are whole names. A write that is still going on may be among them.
        """

    @abstractmethod
    def claim(self, claims: str, number: int) -> bool:
        """Claim a number for this process, until it is released or the process ends, however it ends.

        Args:
            claims: name of a file for all these claims; it may be empty, or absent.
            number: not negative. A process may claim a number again.

        Returns:
            False where another process has claimed it.

        Raises:
            OSError: nothing can be claimed here.
        """

    @abstractmethod
    def release(self, claims: str, number: int) -> None:
        """Give back a claim."""


class Local(Place):
    """A folder of a POSIX file system.

    Claims are locks on single bytes of the file of claims, past its end: they end with the process, and a forked loader
    worker does not inherit them.

    Args:
        root: the folder; it need not be there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._claims: dict[str, int] = {}

    def __reduce__(self) -> tuple[type[Local], tuple[Path]]:
        return Local, (self.root,)

    @property
    def address(self) -> str:
        """The path of the folder."""
        return str(self.root)

    def empty(self) -> bool:
        """Whether there is no such folder, or nothing in it."""
        return not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir()))

    def create(self, files: Mapping[str, bytes]) -> None:
        """Build them beside their place and move them there whole."""
        root = self.root.resolve()  # where a link points to, not in its place
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = root.with_name(f".{root.name}.{uuid.uuid4().hex}")
        try:
            for name, content in files.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).write_bytes(content)
            for path in (*sorted(draft.rglob("*"), reverse=True), draft):
                sync(path)
            try:
                draft.rename(root)
            except OSError:
                if not any((root / name).exists() for name in files):
                    raise
            sync(root.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @override
    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    @override
    def read_part(self, name: str, start: int, length: int) -> bytes:
        with (self.root / name).open("rb") as file:
            return os.pread(file.fileno(), length, start)

    @override
    def write(self, name: str, content: bytes) -> None:
        folder = (self.root / name).parent
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            sync(folder.parent)
        write_durably(self.root / name, content)

    @override
    def delete(self, name: str) -> None:
        path = self.root / name
        if path.exists():
            path.unlink(missing_ok=True)
            sync(path.parent)

    @override
    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        found = {}
        for name in self.names(folder):
            with contextlib.suppress(FileNotFoundError):
                found[name] = (self.root / folder / name).stat().st_size
        return found

    def free(self) -> int:
        """On the disk that the folder is or will be on."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def version(self, name: str) -> int | None:
        """When it was written, nanoseconds."""
        try:
            return (self.root / name).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    @override
    def names(self, folder: str) -> list[str]:
        root = self.root / folder
        return [
            str((Path(where) / file).relative_to(root)) if where != str(root) else file
            for where, _, files in os.walk(root)
            for file in files
        ]

    @override
    def folders(self) -> list[str]:
        return [each.name for each in self.root.iterdir() if each.is_dir()] if self.root.is_dir() else []

    @override
    def leftovers(self, folder: str) -> Iterator[tuple[str, str]]:
        for file in self.names(folder):
            partial = _PARTIAL.fullmatch(file)
            if partial is not None:
                yield f"{folder}/{partial['name']}", f"{folder}/{file}"

    @override
    def claim(self, claims: str, number: int) -> bool:
        if claims not in self._claims:
            # never closed: closing any descriptor of this file would give back every claim of the process
            self._claims[claims] = os.open(self.root / claims, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(self._claims[claims], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except BlockingIOError:
            return False
        return True

    @override
    def release(self, claims: str, number: int) -> None:
        fcntl.lockf(self._claims[claims], fcntl.LOCK_UN, 1, number)


class Memory(Place):
    """A place in this process, for tests.

    Args:
        other: a place whose files this one shares, as another process would; its claims end when it is no longer used.
    """

    def __init__(self, other: Memory | None = None) -> None:
        self._files: dict[str, tuple[bytes, int]] = {} if other is None else other._files
        self._owners: WeakValueDictionary[tuple[str, int], Memory] = (
            WeakValueDictionary() if other is None else other._owners
        )
        self._clock: Iterator[int] = itertools.count() if other is None else other._clock

    def __getstate__(self) -> dict[str, tuple[bytes, int]]:
        return self._files

    def __setstate__(self, files: dict[str, tuple[bytes, int]]) -> None:
        self.__init__()  # type: ignore[misc]
        self._files |= files

    @property
    def address(self) -> str:
        """In words."""
        return "memory"

    @override
    def empty(self) -> bool:
        return not self._files

    @override
    def create(self, files: Mapping[str, bytes]) -> None:
        if self.empty():
            for name, content in files.items():
                self.write(name, content)

    @override
    def read(self, name: str) -> bytes:
        if name not in self._files:
            raise FileNotFoundError(name)
        return self._files[name][0]

    @override
    def read_part(self, name: str, start: int, length: int) -> bytes:
        return self.read(name)[start : start + length]

    @override
    def write(self, name: str, content: bytes) -> None:
        self._files[name] = bytes(memoryview(content)), next(self._clock)

    @override
    def delete(self, name: str) -> None:
        self._files.pop(name, None)

    @override
    def exists(self, name: str) -> bool:
        return name in self._files

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        return {name: len(self._files[f"{folder}/{name}"][0]) for name in self.names(folder)}

    @override
    def free(self) -> None:
        return None

    @override
    def version(self, name: str) -> int | None:
        return self._files[name][1] if name in self._files else None

    @override
    def names(self, folder: str) -> list[str]:
        return [name.removeprefix(f"{folder}/") for name in self._files if name.startswith(f"{folder}/")]

    @override
    def folders(self) -> list[str]:
        return list({name.partition("/")[0] for name in self._files if "/" in name})

    def leftovers(self, folder: str) -> Iterator[tuple[str, str]]:
        """None: nothing is written in steps."""
        return iter(())

    @override
    def claim(self, claims: str, number: int) -> bool:
        return self._owners.setdefault((claims, number), self) is self

    @override
    def release(self, claims: str, number: int) -> None:
        if self._owners.get((claims, number)) is self:
            del self._owners[claims, number]
