"""Schema 1: what a teacher store is on disk.

A zarr v3 group over the N keyframes of a dataset version, row i belonging to `tokens[i]`:

    voxel_logits     float16 (N, X, Y, Z, C)  log-probabilities on the levels of `codec`; normalise with a softmax
    voxel_semantics  uint8   (N, X, Y, Z)     argmax of the teacher's own log-probabilities
    bev_probs        float32 (N, X, Y, C)     probabilities by the store's BEV rule
    bev_semantics    uint8   (N, X, Y)        argmax of the BEV probabilities
    checksums        uint32  (N, 4)           CRC-32C of the row's chunk of each array above: the commit record
    tokens, scenes   string  (N,)

One chunk per row and array, written whole, so that writers of different rows share nothing. A row is *present* when its
chunk of `checksums` exists; that chunk is written last, when the others are durable, and removed first when the row is
redone. Rows that were never written read as NaN and 255.
All codecs are of the zarr v3 core specification; group attributes carry the `StoreIdentity`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec

from distill.bev import BEV_RULE
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.store.codec import LOG_PROBS, MAX_KL, PROBABILITY_BITS

SCHEMA = 1
COMMITS = "checksums"
# Measured by benchmarks/store.py: lz4hc decodes twice as fast as zstd for a fifth more bytes.
_COMPRESSOR = BloscCodec(cname="lz4hc", clevel=1, shuffle="bitshuffle", blocksize=1 << 17)
# Loader workers and writer threads are the parallelism: a pool of blosc threads in each would only get in their way.
numcodecs.blosc.use_threads = False


@dataclass(frozen=True)
class StoreIdentity:
    """Who speaks in a store, about which world and how exactly: what must agree for a dump to be continued.

    Attributes:
        teacher: its name.
        checkpoint_sha256: of its weights, hex; "" for a teacher without a checkpoint.
        config: its resolved configuration, JSON-ready.
        grid: where the voxels lie.
        classes: class names, id order.
        bev_rule: how BEV probabilities were derived from voxels (`distill.bev`).
        levels: the log-probability of each code, falling (`codec`).
    """

    teacher: str
    checkpoint_sha256: str
    config: dict[str, Any]
    grid: VoxelGrid
    classes: tuple[str, ...]
    bev_rule: str = BEV_RULE
    levels: tuple[float, ...] = field(default=tuple(LOG_PROBS.tolist()), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, the inverse of `from_dict`."""
        return {
            "teacher": self.teacher,
            "checkpoint_sha256": self.checkpoint_sha256,
            "config": self.config,
            "grid": self.grid.to_dict(),
            "classes": list(self.classes),
            "content": "log_probabilities",
            "bev_rule": self.bev_rule,
            "quantisation": {
                "max_kl_nats": {f"T={temperature}": bound for temperature, bound in MAX_KL.items()},
                "bev_probs_significant_bits": PROBABILITY_BITS,
                "levels": list(self.levels),
            },
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> StoreIdentity:
        """Rebuild an identity from `to_dict`."""
        return cls(
            **{key: description[key] for key in ("teacher", "checkpoint_sha256", "config", "bev_rule")},
            grid=VoxelGrid.from_dict(description["grid"]),
            classes=tuple(description["classes"]),
            levels=tuple(description["quantisation"]["levels"]),
        )


@dataclass(frozen=True)
class ChunkedArray:
    """One of the four data arrays: a chunk per sample.

    Attributes:
        name: in the group.
        dtype: numpy name.
        shape: of one sample, as zarr shows it.
        order: the axes of `shape` in the order in which a chunk holds them.
        column: where `checksums` has its checksum.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    column: int

    def create(self, group: zarr.Group, samples: int) -> None:
        """Add the array, without chunks, to a group."""
        group.create_array(
            self.name,
            shape=(samples, *self.shape),
            chunks=(1, *self.shape),
            dtype=self.dtype,
            filters=TransposeCodec(order=(0, *(axis + 1 for axis in self.order))),
            compressors=(_COMPRESSOR, Crc32cCodec()),
            chunk_key_encoding={"name": "default", "separator": "."},
            fill_value=math.nan if self.dtype.startswith("float") else 255,
        )

    def path(self, root: Path, row: int) -> Path:
        """The file of a row's chunk."""
        return root / self.name / ".".join(["c", str(row), *("0" for _ in self.shape)])

    def pack(self, values: np.ndarray) -> bytes:
        """The chunk of a sample: what zarr's codecs would write."""
        name, level, block = _COMPRESSOR.cname.value, _COMPRESSOR.clevel, _COMPRESSOR.blocksize
        blosc = numcodecs.Blosc(name, level, numcodecs.blosc.BITSHUFFLE, block)
        return seal(blosc.encode(np.ascontiguousarray(values.transpose(self.order), self.dtype)))

    def unpack(self, chunk: bytes) -> np.ndarray:
        """The sample in an intact chunk, a view in the memory order of the chunk."""
        stored = np.empty([self.shape[axis] for axis in self.order], self.dtype)
        numcodecs.blosc.decompress(chunk[:-4], stored)
        return stored.transpose(np.argsort(self.order))


def data_arrays(grid: VoxelGrid, classes: int) -> dict[str, ChunkedArray]:
    """The four data arrays of a store, by name."""
    x, y, z = grid.shape
    # class by class and layer by layer: neighbours along y and x are alike, which makes chunks smaller
    arrays = (
        ChunkedArray("voxel_logits", "float16", (x, y, z, classes), (3, 2, 0, 1), 0),
        ChunkedArray("voxel_semantics", "uint8", (x, y, z), (2, 0, 1), 1),
        ChunkedArray("bev_probs", "float32", (x, y, classes), (2, 0, 1), 2),
        ChunkedArray("bev_semantics", "uint8", (x, y), (0, 1), 3),
    )
    return {array.name: array for array in arrays}


def seal(content: bytes) -> bytes:
    """Append the CRC-32C, as zarr's `crc32c` codec does."""
    return content + google_crc32c.value(content).to_bytes(4, "little")


def is_sealed(chunk: bytes) -> bool:
    """Whether a chunk still has the content it was sealed with."""
    return len(chunk) > 4 and google_crc32c.value(chunk[:-4]).to_bytes(4, "little") == chunk[-4:]


def commit_path(root: Path, row: int) -> Path:
    """The file whose existence makes a row present."""
    return root / COMMITS / f"c.{row}.0"


def committed_rows(root: Path) -> list[int]:
    """The rows that are present now."""
    names = [name.split(".") for name in os.listdir(root / COMMITS)]
    return [int(name[1]) for name in names if name[0] == "c" and name[-1] == "0"]


def create(path: Path, identity: StoreIdentity, tokens: list[str], scenes: list[str], code_version: str) -> None:
    """Write a store without samples at `path`, which must not exist."""
    attributes = {"schema": SCHEMA, **identity.to_dict(), "code_version": code_version}
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    for array in data_arrays(identity.grid, len(identity.classes)).values():
        array.create(group, len(tokens))
    group.create_array(
        COMMITS,
        shape=(len(tokens), 4),
        chunks=(1, 4),
        dtype="uint32",
        compressors=Crc32cCodec(),
        chunk_key_encoding={"name": "default", "separator": "."},
        fill_value=0,
    )
    for name, values in (("tokens", tokens), ("scenes", scenes)):
        strings = group.create_array(
            name, shape=(len(values),), chunks="auto", dtype="string", compressors=Crc32cCodec()
        )
        strings[:] = np.array(values, object)


def read_attributes(path: Path) -> dict[str, Any]:
    """The group attributes of a store.

    Raises:
        InputError: there is nothing at `path`, no store, or a store of another schema.
    """
    try:
        attributes = json.loads((path / "zarr.json").read_text()).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        found = "is not a teacher store" if path.exists() else "does not exist"
        raise InputError(f"{path} {found}: give a store that occ-dump has made (store.path, store.paths)") from error
    schema = attributes.get("schema")
    if schema != SCHEMA:
        found = "is a zarr group but no teacher store" if schema is None else f"has store schema {schema}"
        raise InputError(f"{path} {found}, this version reads schema {SCHEMA}: dump it again to another store.path")
    return attributes
