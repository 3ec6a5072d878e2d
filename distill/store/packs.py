"""Packs: many keyframes of a store in one file, and which keyframes lie where.

A pack `packs/FIRST-LAST.zip` holds the rows FIRST to LAST, all of them: a zip file that compresses nothing and is a
zarr group by itself, with the arrays of the store and what signals keep once. `tokens` and `scenes`, which would be
most of a small pack, stay outside; its attributes have `rows` and their `tokens`. The chunks of a row follow each
other, in the order of the columns of `checksums`, so that they can be read at once. The first member,
`checksums/index`, says where each begins:

    "occ-pack", the seal of the store, FIRST, LAST, the number A of arrays    8 and 16 bytes, three of uint64
    of each row: its version, as uint64, and of each array where its chunk begins in the pack (uint64), how long
        it is, and its CRC-32C, which is what `checksums` holds (uint32)
    the CRC-32C of all that

All numbers are little-endian; the member begins at byte 45. The comment of the zip file is the CRC-32C of what comes
before, so that a pack is sealed as a chunk is.

Names alone tell what is present. A row with a commit of its own is read from files of its own, whatever packs hold of
it. Otherwise it is read from a pack, unless there is a file `packs/ROW.withdrawn`: then it is absent. Where several
packs hold a row without a commit of its own, they hold the same.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple
from zipfile import ZipFile, ZipInfo

import numpy as np

from distill.errors import InputError
from distill.signals.arrays import StoredArray, crc, is_sealed, seal
from distill.store.place import Place
from distill.store.schema import COMMITS, PACKS, commit_name, committed_rows

DESCRIPTION = f"{PACKS}/zarr.json"
INDEX = f"{COMMITS}/index"
_PACK = re.compile(r"(\d+)-(\d+)\.zip")
_WITHDRAWN = re.compile(r"(\d+)\.withdrawn")
_HEAD = struct.Struct("<8s16s3Q")
_MAGIC = b"occ-pack"


class DamagedIndex(ValueError):  # noqa: N818 - as DamagedSample
    """A pack that does not say what it holds, or is of another store."""


class Pack(NamedTuple):
    """The rows `first` to `last`, in a file."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{PACKS}/{self.first}-{self.last}.zip"

    @property
    def rows(self) -> range:
        """All of them."""
        return range(self.first, self.last + 1)


class PackedRow(NamedTuple):
    """What a pack holds of a row.

    Attributes:
        version: of its commit, when it was written (`Place.version`).
        record: its commit.
        chunks: of all arrays, in the order of the columns of `checksums`.
    """

    version: int
    record: bytes
    chunks: Sequence[bytes]


def withdrawn_name(row: int) -> str:
    """The file whose existence makes a row absent from all packs."""
    return f"{PACKS}/{row}.withdrawn"


class Layout:
    """Where the rows of a store lay when this was made; names of files tell it, and nothing else is read.

    Args:
        place: of the store.
        store_seal: of its attributes.
        rows: how many it has.
        arrays: how many data arrays it has.
        loose: the rows with a commit of their own; None: they are listed.

    Attributes:
        loose: of each row, whether it has a commit of its own; then that holds, whatever packs say.
        packs: all of them, wider before narrower.
        packed: of each row, the position of a pack that holds it; -1: none does, or it was withdrawn.
        copies: of each row, how many packs hold it.
        withdrawn: of each row, whether no pack holds it, whatever it says.

    Raises:
        InputError: a pack is of more rows than the store has.
    """

    def __init__(
        self, place: Place, store_seal: str, rows: int, arrays: int, loose: Iterable[int] | None = None
    ) -> None:
        self._place, self._seal, self._arrays = place, store_seal, arrays
        self._indexes: dict[Pack, np.ndarray] = {}
        # first these, then packs: a row that is packed in between is found twice, not missed
        self.loose = np.zeros(rows, bool)
        self.loose[[row for row in (committed_rows(place) if loose is None else loose) if row < rows]] = True
        names = place.names(PACKS)
        found = [Pack(*map(int, match.groups())) for match in map(_PACK.fullmatch, names) if match]
        self.packs = sorted(found, key=lambda pack: (-len(pack.rows), pack.first))
        self._position = {pack: position for position, pack in enumerate(self.packs)}
        self.packed, self.copies = np.full(rows, -1, np.int32), np.zeros(rows, np.int32)
        for pack, position in self._position.items():
            if not pack.first <= pack.last < rows:
                raise InputError(f"{place.address}/{pack.name} is not of this store, which has {rows} rows: remove it")
            self.packed[pack.first : pack.last + 1] = position
            self.copies[pack.first : pack.last + 1] += 1
        withdrawn = (int(match[1]) for match in map(_WITHDRAWN.fullmatch, names) if match)
        self.withdrawn = np.zeros(rows, bool)
        self.withdrawn[[row for row in withdrawn if row < rows]] = True
        self.packed[self.withdrawn] = -1

    @cached_property
    def present(self) -> np.ndarray:
        """Of each row, whether it is there."""
        return self.loose | (self.packed >= 0)

    def pack(self, row: int) -> Pack | None:
        """The pack that a row is to be read from; None: it has files of its own, or is absent."""
        return None if self.loose[row] or self.packed[row] < 0 else self.packs[self.packed[row]]

    def has(self, pack: Pack) -> bool:
        """Whether there is this very pack."""
        return pack in self._position

    def rows_of(self, pack: Pack) -> list[int]:
        """The rows that are to be read from a pack."""
        rows = slice(pack.first, pack.last + 1)
        here = (self.packed[rows] == self._position[pack]) & ~self.loose[rows]
        return (pack.first + np.flatnonzero(here)).tolist()

    def index(self, pack: Pack) -> np.ndarray:
        """What a pack says of its rows: (rows,) with `version`, and `start`, `size` and `checksum` (arrays,).

        It is read when it is asked for, and once.

        Raises:
            FileNotFoundError: there is no such pack any more.
            DamagedIndex: it does not say it, or is of another store.
        """
        if pack not in self._indexes:
            table, head = _table(len(pack.rows), self._arrays), _head(pack, self._seal, self._arrays)
            length = len(head) + table.nbytes + 4
            content = self._place.read_part(pack.name, 30 + len(INDEX), length)
            if len(content) != length or not is_sealed(content):
                raise DamagedIndex(f"{self._place.address}/{pack.name}, which is damaged in its index")
            if not content.startswith(head):
                raise DamagedIndex(f"{self._place.address}/{pack.name}, which is of another store")
            self._indexes[pack] = np.frombuffer(content, table.dtype, len(table), len(head))
        return self._indexes[pack]


def pack_content(
    pack: Pack,
    store_seal: str,
    arrays: Sequence[StoredArray],
    shared: Mapping[str, bytes],
    samples: Sequence[PackedRow],
) -> bytes:
    """A pack, byte for byte.

    Args:
        pack: which rows.
        store_seal: of the attributes of the store.
        arrays: its data arrays, in the order of the columns of `checksums`.
        shared: what is the same for all rows, by name.
        samples: of each row.
    """
    table = _table(len(samples), len(arrays))
    head = _head(pack, store_seal, len(arrays))
    members = [(INDEX, bytes(len(head) + table.nbytes + 4)), *shared.items()]
    end = sum(30 + len(name) + len(content) for name, content in members)
    for entry, row, sample in zip(table, pack.rows, samples, strict=True):
        entry["version"], entry["checksum"] = sample.version, np.frombuffer(sample.record, "<u4", len(arrays))
        of_row = [(array.chunk(row), chunk) for array, chunk in zip(arrays, sample.chunks, strict=True)]
        headers, sizes = [30 + len(name) for name, _ in of_row], [len(chunk) for _, chunk in of_row]
        entry["size"], entry["start"] = sizes, end + np.cumsum(headers) + np.cumsum([0, *sizes[:-1]])
        members += [*of_row, (commit_name(row), sample.record)]
        end += sum(headers) + sum(sizes) + 30 + len(commit_name(row)) + len(sample.record)
    members[0] = INDEX, seal(head + table.tobytes())
    return _sealed_zip(members)


def _sealed_zip(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A zip file of members as they are, whose comment is the CRC-32C of what comes before."""
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as file:
        file.comment = bytes(4)
        for name, content in members:
            file.writestr(ZipInfo(name), content)  # of 1980, whenever it is made
    content = buffer.getvalue()
    return content[:-4] + crc(content[:-4])


def _table(rows: int, arrays: int) -> np.ndarray:
    fields = [("version", "<u8"), ("start", "<u8", (arrays,)), ("size", "<u4", (arrays,))]
    return np.zeros(rows, [*fields, ("checksum", "<u4", (arrays,))])


def _head(pack: Pack, store_seal: str, arrays: int) -> bytes:
    return _HEAD.pack(_MAGIC, store_seal.encode(), *pack, arrays)
