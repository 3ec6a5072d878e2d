"""How an array lies in a store: a chunk per keyframe, made smaller, and sealed against damage.

Chunks are what zarr's own codecs write and read; here without zarr's layers between, which take longer than the work.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
from zarr.codecs import BloscCodec

_SHUFFLE = {
    "bitshuffle": numcodecs.blosc.BITSHUFFLE,
    "shuffle": numcodecs.blosc.SHUFFLE,
    "noshuffle": numcodecs.blosc.NOSHUFFLE,
}
# The CRC-32C of anything followed by its own CRC-32C, and of nothing but the CRC-32C of nothing.
_SEALED = google_crc32c.value(bytes(4))
# Loader workers and writer threads are the parallelism: a pool of blosc threads in each would only get in their way.
numcodecs.blosc.use_threads = False


def bit_planes(itemsize: int) -> BloscCodec:
    """A compressor for items of `itemsize` bytes that are alike: lz4hc on their bit planes.

    It decodes twice as fast as zstd, for a fifth more bytes.
    """
    # blosc gathers bits of whole groups of 8 items, or none
    blocksize = (1 << 17) // (8 * itemsize) * (8 * itemsize)
    return BloscCodec(typesize=itemsize, cname="lz4hc", clevel=1, shuffle="bitshuffle", blocksize=blocksize)


def repeats(itemsize: int) -> BloscCodec:
    """A compressor for items of `itemsize` bytes of which the same follow again and again: zstd."""
    return BloscCodec(typesize=itemsize, cname="zstd", clevel=5, shuffle="noshuffle", blocksize=0)


def slice_by_slice(dtype: str, slice_shape: tuple[int, ...]) -> BloscCodec:
    """A compressor that makes a block of each slice of a chunk: zstd on bit planes, small and quick enough to read."""
    itemsize = np.dtype(dtype).itemsize
    blocksize = itemsize * math.prod(slice_shape)
    return BloscCodec(typesize=itemsize, cname="zstd", clevel=5, shuffle="bitshuffle", blocksize=blocksize)


@dataclass(frozen=True)
class StoredArray:
    """An array of a store, of which a chunk holds what belongs to one keyframe.

    Attributes:
        name: in the group.
        dtype: numpy name.
        shape: of one keyframe, as zarr shows it.
        order: the axes of `shape` in the order in which a chunk holds them.
        compressor: what makes a chunk small.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    compressor: BloscCodec

    @classmethod
    def from_zarr(cls, name: str, description: Mapping[str, Any]) -> StoredArray:
        """The array that a `zarr.json` describes.

        Raises:
            KeyError: it is none of ours.
        """
        codecs = {codec["name"]: codec.get("configuration", {}) for codec in description["codecs"]}
        return cls(
            name,
            description["data_type"],
            tuple(description["shape"][1:]),
            tuple(axis - 1 for axis in codecs["transpose"]["order"][1:]),
            BloscCodec(**codecs["blosc"]),
        )

    @property
    def fill(self) -> Any:
        """What rows that were never written read as: NaN, False, 0, and 255 for class ids."""
        if np.issubdtype(self.dtype, np.floating):
            return math.nan
        return 255 if self.dtype == "uint8" else np.dtype(self.dtype).type(0).item()

    def chunk(self, row: int) -> str:
        """The name of a row's chunk."""
        return f"{self.name}/{'.'.join(['c', str(row), *('0' for _ in self.shape)])}"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of a chunk, in its own order."""
        return tuple(self.shape[axis] for axis in self.order)

    def pack(self, values: np.ndarray) -> bytes:
        """The chunk of a keyframe: what zarr's codecs would write."""
        return seal(self._compressed(np.ascontiguousarray(values.transpose(self.order), self.dtype)))

    def unpack(self, chunk: bytes) -> np.ndarray:
        """What is in an intact chunk, a view in the memory order of the chunk."""
        stored = np.empty(self.stored_shape, self.dtype)
        numcodecs.blosc.decompress(memoryview(chunk)[:-4], stored)
        return stored.transpose(np.argsort(self.order))

    def unpack_slices(self, chunk: bytes) -> tuple[np.ndarray, np.ndarray]:
        """What is in an intact chunk, without slices of zeros along the first axis that it holds.

        Where such a slice is a block of the compressor, as `blocksize` may have it, those of zeros are known by their
        bytes and never decompressed.

        Returns:
            Positions of the others, intp (k,), rising, and their values, (k, ...) in the order of the chunk.
        """
        blocks = _Blocks.of(memoryview(chunk)[:-4])
        if blocks is None or blocks.size != math.prod(self.stored_shape[1:]) * np.dtype(self.dtype).itemsize:
            stored = self.unpack(chunk).transpose(self.order)
            used = np.flatnonzero(stored.any(tuple(range(1, stored.ndim))))
            return used, stored[used]
        used = np.flatnonzero([block != self._block_of_zeros for block in blocks])
        values = np.empty((len(used), *self.stored_shape[1:]), self.dtype)
        if len(used):
            numcodecs.blosc.decompress(blocks.only(used), values)
        return used, values

    @cached_property
    def _block_of_zeros(self) -> bytes:
        """How a slice of zeros is compressed."""
        zeros = np.zeros((2, *self.stored_shape[1:]), self.dtype)
        blocks = _Blocks.of(memoryview(self._compressed(zeros)))
        return bytes(next(iter(blocks))) if blocks is not None else b""

    def _compressed(self, stored: np.ndarray) -> bytes:
        codec = self.compressor
        settings = codec.cname.value.encode(), codec.clevel, _SHUFFLE[codec.shuffle.value], codec.blocksize
        content: bytes = numcodecs.blosc.compress(stored, *settings, codec.typesize)
        return content


class _Blocks:
    """The blocks of a compressed buffer in the format of blosc 1: a header, where each begins, and what each holds."""

    _HEADER = struct.Struct("<4B3I")  # two versions, flags, item size; bytes, of a block, compressed
    _MEMCPYED = 2  # a flag: nothing is compressed

    def __init__(self, content: memoryview) -> None:
        *self._facts, self._bytes, self.size, _ = self._HEADER.unpack_from(content)
        starts = np.frombuffer(content, "<i4", -(-self._bytes // self.size), self._HEADER.size)
        self._edges, self._content = [*starts.tolist(), len(content)], content

    @classmethod
    def of(cls, content: memoryview) -> _Blocks | None:
        """None where they are not compressed, or do not follow each other, or the last is shorter than the others."""
        if content[2] & cls._MEMCPYED:
            return None
        blocks = cls(content)
        in_order = all(first < second for first, second in itertools.pairwise(blocks._edges))
        return blocks if in_order and blocks._bytes % blocks.size == 0 else None

    def __iter__(self) -> Iterator[memoryview]:
        return (self._content[first:last] for first, last in itertools.pairwise(self._edges))

    def only(self, chosen: np.ndarray) -> bytes:
        """A compressed buffer of some of the blocks."""
        every = list(self)
        blocks = [every[index] for index in chosen]
        ends = self._HEADER.size + 4 * len(blocks) + np.cumsum([0, *map(len, blocks)])
        header = self._HEADER.pack(*self._facts, len(blocks) * self.size, self.size, int(ends[-1]))
        return b"".join([header, ends[:-1].astype("<i4").tobytes(), *blocks])


def seal(content: bytes) -> bytes:
    """Append the CRC-32C, as zarr's `crc32c` codec does."""
    return content + crc(content)


def crc(content: bytes) -> bytes:
    """The CRC-32C as it is appended."""
    return int(google_crc32c.value(content)).to_bytes(4, "little")


def is_sealed(chunk: bytes) -> bool:
    """Whether a chunk still has the content it was sealed with."""
    return len(chunk) > 4 and google_crc32c.value(chunk) == _SEALED


def round_bits(values: np.ndarray, count: int) -> np.ndarray:
    """Round finite numbers to `count` < 24 significant bits, float32; the relative error is at most 2^-count."""
    bits, dropped = np.ascontiguousarray(values, np.float32).view(np.uint32), 24 - count
    return ((bits + (1 << (dropped - 1))) >> dropped << dropped).view(np.float32)
