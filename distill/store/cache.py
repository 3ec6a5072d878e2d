"""What was read from object stores, on a local disk: so that a student's second epoch reads it there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from distill.signals.arrays import is_sealed

_GIGABYTE = 10**9
_ROOM = 0.9  # of the limit is filled after room was made
_LOOK_EVERY = 0.02  # of the limit, written by one process, until it looks how much all have written
_SAID_FOR = 3600  # seconds in which nobody says again that nothing can be kept


class Cache:
    """Chunks of samples in files of their own, those that were read last.

    A chunk is known by the address of its store, its name there and its checksum, so that what was dumped again is not
    taken for what was there before; it is looked at for its checksum whenever it is read. Processes share a cache
    without waiting for each other; one that is killed leaves nothing behind but a file that is removed with the others.

    Args:
        folder: made if absent; nothing else should lie in it.
        gb: how much it may hold, 1e9 bytes.
    """

    def __init__(self, folder: str, gb: float) -> None:
        self.folder, self.limit = Path(folder), int(gb * _GIGABYTE)
        self._kept, self._off = self.limit, False  # so that it looks at the first chunk

    def read(self, address: str, checksum: bytes) -> bytes | None:
        """A chunk that is sealed with this checksum; None if there is none."""
        file = self._file(address, checksum)
        try:
            chunk = file.read_bytes()
            if is_sealed(chunk) and chunk[-4:] == checksum:
                os.utime(file)  # when it was read last
                return chunk
        except OSError:
            pass  # another process has made room, or nobody has kept it
        return None

    def keep(self, address: str, chunk: bytes) -> None:
        """Keep a chunk, if the disk has room for it."""
        if self._off:
            return
        file = self._file(address, chunk[-4:])
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(chunk)
                partial.replace(file)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
            self._kept += len(chunk)
            if self._kept > _LOOK_EVERY * self.limit:
                self._kept = 0
                self._make_room()
        except OSError as error:
            self._off = True
            self._say_once(str(error.strerror))

    def _file(self, address: str, checksum: bytes) -> Path:
        name = hashlib.sha256(address.encode() + checksum).hexdigest()[:32]
        return self.folder / name[:2] / name[2:]

    def _make_room(self) -> None:
        """Remove what was not read for longest, if there is too much."""
        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody does it
            files = sorted(self._files())
            held = sum(size for _, size, _ in files)
            if held <= self.limit:
                return
            for _, size, path in files:
                if held <= _ROOM * self.limit:
                    return
                Path(path).unlink(missing_ok=True)
                held -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """When it was read last, its size and its path, of each file."""
        for part in self.folder.glob("??"):
            for file in os.scandir(part):
                with contextlib.suppress(FileNotFoundError):
                    found = file.stat()
                    yield found.st_mtime, found.st_size, file.path

    def _say_once(self, why: str) -> None:
        """Of all processes that share it, one says that nothing more is kept."""
        said = self.folder / ".full"
        with contextlib.suppress(OSError):
            if time.time() - said.stat().st_mtime < _SAID_FOR:
                return
        with contextlib.suppress(OSError):
            said.touch()
        print(f"cache {self.folder}: {why}: going on without keeping what is read", file=sys.stderr, flush=True)
