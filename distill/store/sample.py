"""`Sample`: what a store holds of one keyframe, in files of its own or in a pack, checked as it is read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from distill.errors import InputError
from distill.signals.arrays import is_sealed, seal
from distill.store.packs import DamagedIndex, Pack
from distill.store.schema import commit_name

if TYPE_CHECKING:
    from distill.store.reader import TeacherStore

_AGAIN = "re-dump it with dump.verify=true, or with dump.overwrite=true"


class AbsentSample(InputError):  # noqa: N818 - it names what was met, as InputError's one line does
    """A sample that is not in the store."""


class DamagedSample(InputError):  # noqa: N818
    """A committed sample whose chunks are not what was written."""

    @property
    def what(self) -> str:
        """Which it is and where, without advice."""
        return str(self).removesuffix(f": {_AGAIN}")


class _InFiles:
    """A sample in files of its own."""

    def __init__(self, store: TeacherStore, row: int) -> None:
        self.store, self.row = store, row
        self.record = store.place.read(commit_name(row))

    def version(self) -> int:
        return self.store.place.version(commit_name(self.row)) or 0

    def file(self, name: str) -> str:
        return self.store.arrays[name].chunk(self.row)

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """What is there of these chunks, read at once."""
        return dict(zip(names, self.store.place.read_several([self.file(name) for name in names]), strict=True))


class _InPack:
    """A sample in a pack."""

    def __init__(self, store: TeacherStore, row: int, pack: Pack) -> None:
        self.store, self.pack, self.index = store, pack, store.layout.index(pack)[row - pack.first]
        self.record = seal(self.index["checksum"].tobytes())

    def version(self) -> int:
        return int(self.index["version"])

    def _span(self, name: str) -> tuple[int, int]:
        start, size = (int(self.index[field][self.store.column(name)]) for field in ("start", "size"))
        return start, start + size

    def file(self, name: str) -> str:
        return self.pack.name

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """What is there of these chunks, read at once, with what lies between them."""
        spans = {name: self._span(name) for name in names}
        first, end = min(start for start, _ in spans.values()), max(end for _, end in spans.values())
        content = self.store.place.read_part(self.pack.name, first, end - first)
        return {name: content[start - first : end - first] for name, (start, end) in spans.items()}


class Sample:
    """The arrays of a store as they stand for one keyframe, wherever they lie.

    Args:
        store: whose.
        token: of the keyframe.
        wanted: the arrays that are going to be read, as far as that is known.

    Raises:
        AbsentSample: it is not there, where the store has last looked.
        DamagedSample: the pack that it should be in is damaged, or no longer there.
    """

    def __init__(self, store: TeacherStore, token: str, wanted: Collection[str] = ()) -> None:
        self.store, self.token = store, token
        row = store.row(token)
        pack = store.layout.pack(row)
        try:
            self.found = _InFiles(store, row) if pack is None else _InPack(store, row, pack)
            self._chunks = self._read(wanted)
        except FileNotFoundError as error:
            if pack is None:
                raise AbsentSample(f"sample {token} is not in {store.path}: dump it with occ-dump") from error
            raise self._damaged(f"with {store.path}/{pack.name}, which is gone") from error
        except DamagedIndex as error:
            raise self._damaged(f"with {error}") from error

    def __call__(self, name: str) -> np.ndarray:
        """See `Reading`."""
        return self.store.arrays[name].unpack(self.chunk(name))

    def slices(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """See `Reading`."""
        return self.store.arrays[name].unpack_slices(self.chunk(name))

    def chunk(self, name: str) -> bytes:
        """What an array holds of it, as it lies there.

        Raises:
            DamagedSample: it is not what was written.
        """
        if name not in self._chunks:
            with suppress(FileNotFoundError):
                self._chunks |= self._read([name])
        chunk = self._chunks.get(name, b"")
        if not (is_sealed(chunk) and is_sealed(self.found.record) and chunk[-4:] == self._checksum(name)):
            raise self._damaged(f"in array {name}, file {self.store.path}/{self.found.file(name)}")
        return chunk

    def _read(self, names: Collection[str]) -> dict[str, bytes]:
        """Chunks from the cache, and what it has not from the store; then it has them, too, if they are intact."""
        cache, chunks = self.store.cache, dict[str, bytes]()
        if cache is not None:
            found = {name: cache.read(self._address(name), self._checksum(name)) for name in names}
            chunks = {name: chunk for name, chunk in found.items() if chunk is not None}
        others = [name for name in names if name not in chunks]
        read = self.found.read(others) if others else {}
        for name, chunk in read.items():
            if cache is not None and is_sealed(chunk) and chunk[-4:] == self._checksum(name):
                cache.keep(self._address(name), chunk)
        return chunks | read

    def _checksum(self, name: str) -> bytes:
        """Of the chunk of an array, as it was committed."""
        return self.found.record[4 * self.store.column(name) :][:4]

    def _address(self, name: str) -> str:
        """Of a chunk, wherever it lies now."""
        return f"{self.store.path}/{self.store.arrays[name].chunk(self.store.row(self.token))}"

    def _damaged(self, where: str) -> DamagedSample:
        return DamagedSample(f"sample {self.token} is damaged {where}: {_AGAIN}")
