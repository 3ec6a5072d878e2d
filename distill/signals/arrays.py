"""How an array lies in a store: a chunk per keyframe, made smaller, and sealed against damage.

Chunks are what zarr's own codecs write and read; here without zarr's layers between, which take longer than the work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
from zarr.codecs import BloscCodec

_SHUFFLE = {"bitshuffle": numcodecs.blosc.BITSHUFFLE, "shuffle": numcodecs.blosc.SHUFFLE}
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

    def pack(self, values: np.ndarray) -> bytes:
        """The chunk of a keyframe: what zarr's codecs would write."""
        codec = self.compressor
        stored = np.ascontiguousarray(values.transpose(self.order), self.dtype)
        settings = codec.cname.value.encode(), codec.clevel, _SHUFFLE[codec.shuffle.value], codec.blocksize
        return seal(numcodecs.blosc.compress(stored, *settings, codec.typesize))

    def unpack(self, chunk: bytes) -> np.ndarray:
        """What is in an intact chunk, a view in the memory order of the chunk."""
        stored = np.empty([self.shape[axis] for axis in self.order], self.dtype)
        numcodecs.blosc.decompress(memoryview(chunk)[:-4], stored)
        return stored.transpose(np.argsort(self.order))


def seal(content: bytes) -> bytes:
    """Append the CRC-32C, as zarr's `crc32c` codec does."""
    return content + google_crc32c.value(content).to_bytes(4, "little")


def is_sealed(chunk: bytes) -> bool:
    """Whether a chunk still has the content it was sealed with."""
    return len(chunk) > 4 and google_crc32c.value(chunk) == _SEALED


def round_bits(values: np.ndarray, count: int) -> np.ndarray:
    """Round finite numbers to `count` < 24 significant bits, float32; the relative error is at most 2^-count."""
    bits, dropped = np.ascontiguousarray(values, np.float32).view(np.uint32), 24 - count
    return ((bits + (1 << (dropped - 1))) >> dropped << dropped).view(np.float32)
