"""Schema 3: what a teacher store is on disk.

A zarr v3 group over the N keyframes of a dataset version, row i belonging to `tokens[i]`:

    voxel_logits     float16 (N, X, Y, Z, C)  log-probabilities on the levels of `codec`; normalise with a softmax
    voxel_semantics  uint8   (N, X, Y, Z)     argmax of the teacher's own log-probabilities; 255 where not covered
    voxel_coverage   bool    (N, X, Y, Z)     whether the teacher has modelled the voxel; if not, it knows nothing there
    bev_probs        float32 (N, X, Y, C)     probabilities by the store's BEV rule
    bev_semantics    uint8   (N, X, Y)        argmax of bev_probs (the first of equals); 255 for a column not covered
    gaussians        float32 (N, G, 29)       Gaussians, rounded (`distill.store.gaussians`); rows of NaN fill them up
    frame_digests    uint32  (N, 8)           what the teacher was given: a digest of each of `DIGESTS`; 0: was absent
    checksums        uint32  (N, A)           CRC-32C of the row's chunk of each of these A arrays: the commit record
    tokens, scenes   string  (N,)

The attribute `content` says which of these there are: for "log_probabilities" all but gaussians, for
"log_probabilities+gaussians" all, for "gaussians" all but voxel_logits, bev_probs and bev_semantics.

One chunk per row and array, written whole, so that writers of different rows share nothing. A row is *present* when its
chunk of `checksums` exists; that chunk is written last, when the others are durable, and removed first when the row is
redone. Rows that were never written read as NaN, 255, False and, in frame_digests, 0. The empty file `claims` beside
the chunks of `checksums` is no chunk: who writes row i holds a lock on its byte i (`StoreWriter.claim`).
All codecs are of the zarr v3 core specification; group attributes carry the `StoreIdentity`.

Schema 2, which is read but not continued, has neither frame_digests nor `claims`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
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
from distill.nuscenes.layout import CAMERAS, LIDAR
from distill.store.codec import LOG_PROBS, MAX_KL, PROBABILITY_BITS
from distill.store.gaussians import COLUMNS, MAX_ERRORS, MAX_MEAN_KL, GaussianKind

SCHEMA = 3
READABLE = (2, SCHEMA)
DIGESTS = (*CAMERAS, LIDAR, "calibration")  # the columns of frame_digests
COMMITS = "checksums"
NOT_COVERED = 255  # the class of a voxel that the teacher has not modelled
_SHUFFLE = {"bitshuffle": numcodecs.blosc.BITSHUFFLE, "shuffle": numcodecs.blosc.SHUFFLE}
# The CRC-32C of anything followed by its own CRC-32C, and of nothing but the CRC-32C of nothing.
_SEALED = google_crc32c.value(bytes(4))
# what rows that were never written read as, by type of number
_FILL = {"float16": math.nan, "float32": math.nan, "uint8": 255, "bool": False, "uint32": 0}
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
        voxels: whether there are log-probabilities.
        gaussians: what Gaussians there are, if any.
        bev_rule: how BEV probabilities were derived from voxels (`distill.bev`).
        levels: the log-probability of each code, falling (`codec`).
        schema: what the store is on disk; no part of who speaks.
    """

    teacher: str
    checkpoint_sha256: str
    config: dict[str, Any]
    grid: VoxelGrid
    classes: tuple[str, ...]
    voxels: bool = True
    gaussians: GaussianKind | None = None
    bev_rule: str = BEV_RULE
    levels: tuple[float, ...] = field(default=tuple(LOG_PROBS.tolist()), repr=False)
    schema: int = field(default=SCHEMA, compare=False)  # the same words in another form

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, the inverse of `from_dict`."""
        return {
            "schema": self.schema,
            "teacher": self.teacher,
            "checkpoint_sha256": self.checkpoint_sha256,
            "config": self.config,
            "grid": self.grid.to_dict(),
            "classes": list(self.classes),
            "content": "+".join(["log_probabilities"] * self.voxels + ["gaussians"] * (self.gaussians is not None)),
            "bev_rule": self.bev_rule,
            "quantisation": {
                "max_kl_nats": {f"T={temperature}": bound for temperature, bound in MAX_KL.items()},
                "bev_probs_significant_bits": PROBABILITY_BITS,
                "levels": list(self.levels),
            },
            "gaussians": None if self.gaussians is None else _describe(self.gaussians),
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> StoreIdentity:
        """Rebuild an identity from `to_dict`; up to schema 2 the description did not name it."""
        kind = description["gaussians"]
        return cls(
            **{key: description[key] for key in ("teacher", "checkpoint_sha256", "config", "bev_rule")},
            grid=VoxelGrid.from_dict(description["grid"]),
            classes=tuple(description["classes"]),
            voxels="log_probabilities" in description["content"],
            gaussians=kind and GaussianKind(**{key.name: kind[key.name] for key in fields(GaussianKind)}),
            levels=tuple(description["quantisation"]["levels"]),
            schema=description.get("schema", 2),
        )


def _describe(kind: GaussianKind) -> dict[str, Any]:
    precision = {"max_errors": MAX_ERRORS, "max_mean_kl_nats": MAX_MEAN_KL}
    return {**asdict(kind), "columns": list(COLUMNS), "quantisation": precision}


@dataclass(frozen=True)
class ChunkedArray:
    """One of the data arrays: a chunk per sample.

    Attributes:
        name: in the group.
        dtype: numpy name.
        shape: of one sample, as zarr shows it.
        order: the axes of `shape` in the order in which a chunk holds them.
        compressor: what makes a chunk small.
        column: where `checksums` has its checksum.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    compressor: BloscCodec
    column: int

    def create(self, group: zarr.Group, samples: int) -> None:
        """Add the array, without chunks, to a group."""
        group.create_array(
            self.name,
            shape=(samples, *self.shape),
            chunks=(1, *self.shape),
            dtype=self.dtype,
            filters=TransposeCodec(order=(0, *(axis + 1 for axis in self.order))),
            compressors=(self.compressor, Crc32cCodec()),
            chunk_key_encoding={"name": "default", "separator": "."},
            fill_value=_FILL[self.dtype],
        )

    def path(self, root: Path, row: int) -> Path:
        """The file of a row's chunk."""
        return root / self.name / ".".join(["c", str(row), *("0" for _ in self.shape)])

    def pack(self, values: np.ndarray) -> bytes:
        """The chunk of a sample: what zarr's codecs would write."""
        codec = self.compressor
        stored = np.ascontiguousarray(values.transpose(self.order), self.dtype)
        settings = codec.cname.value.encode(), codec.clevel, _SHUFFLE[codec.shuffle.value], codec.blocksize
        return seal(numcodecs.blosc.compress(stored, *settings, codec.typesize))

    def unpack(self, chunk: bytes) -> np.ndarray:
        """The sample in an intact chunk, a view in the memory order of the chunk."""
        stored = np.empty([self.shape[axis] for axis in self.order], self.dtype)
        numcodecs.blosc.decompress(memoryview(chunk)[:-4], stored)
        return stored.transpose(np.argsort(self.order))


def _bit_planes(typesize: int) -> BloscCodec:
    """lz4hc on bit planes of items of `typesize` bytes: decodes twice as fast as zstd, for a fifth more bytes."""
    # blosc gathers bits of whole groups of 8 items, or none
    blocksize = (1 << 17) // (8 * typesize) * (8 * typesize)
    return BloscCodec(typesize=typesize, cname="lz4hc", clevel=1, shuffle="bitshuffle", blocksize=blocksize)


def data_arrays(identity: StoreIdentity) -> dict[str, ChunkedArray]:
    """The data arrays of a store, by name, in the order of the columns of `checksums`."""
    (x, y, z), classes = identity.grid.shape, len(identity.classes)
    # layer by layer, as neighbours along y and x are alike; in voxel_logits the bit planes sort the classes, too
    rows: list[tuple[str, str, tuple[int, ...], tuple[int, ...], BloscCodec]] = [
        ("voxel_semantics", "uint8", (x, y, z), (2, 0, 1), _bit_planes(1)),
        ("voxel_coverage", "bool", (x, y, z), (0, 1, 2), _bit_planes(1)),
    ]
    if identity.voxels:
        rows.insert(0, ("voxel_logits", "float16", (x, y, z, classes), (2, 0, 1, 3), _bit_planes(2 * classes)))
        rows.append(("bev_probs", "float32", (x, y, classes), (2, 0, 1), _bit_planes(4)))
        rows.append(("bev_semantics", "uint8", (x, y), (0, 1), _bit_planes(1)))
    if identity.gaussians is not None:
        count = identity.gaussians.count
        column_by_column = BloscCodec(typesize=4, cname="zstd", clevel=9, shuffle="shuffle", blocksize=4 * count)
        rows.append(("gaussians", "float32", (count, len(COLUMNS)), (1, 0), column_by_column))
    if identity.schema > 2:
        rows.append(("frame_digests", "uint32", (len(DIGESTS),), (0,), _bit_planes(4)))
    return {row[0]: ChunkedArray(*row, column) for column, row in enumerate(rows)}


def seal(content: bytes) -> bytes:
    """Append the CRC-32C, as zarr's `crc32c` codec does."""
    return content + google_crc32c.value(content).to_bytes(4, "little")


def is_sealed(chunk: bytes) -> bool:
    """Whether a chunk still has the content it was sealed with."""
    return len(chunk) > 4 and google_crc32c.value(chunk) == _SEALED


def commit_path(root: Path, row: int) -> Path:
    """The file whose existence makes a row present."""
    return root / COMMITS / f"c.{row}.0"


def claims_path(root: Path) -> Path:
    """The file whose byte i is locked by who writes row i."""
    return root / COMMITS / "claims"


def committed_rows(root: Path) -> list[int]:
    """The rows that are present now."""
    names = [name.split(".") for name in os.listdir(root / COMMITS)]
    return [int(name[1]) for name in names if name[0] == "c" and name[-1] == "0"]


def create(path: Path, identity: StoreIdentity, tokens: list[str], scenes: list[str], code_version: str) -> None:
    """Write a store without samples at `path`, which must not exist."""
    attributes = {**identity.to_dict(), "frame_digests": list(DIGESTS), "code_version": code_version}
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    arrays = data_arrays(identity)
    for array in arrays.values():
        array.create(group, len(tokens))
    group.create_array(
        COMMITS,
        shape=(len(tokens), len(arrays)),
        chunks=(1, len(arrays)),
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
    claims_path(path).touch()


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
    if schema not in READABLE:
        found = "is a zarr group but no teacher store" if schema is None else f"has store schema {schema}"
        readable = " and ".join(map(str, READABLE))
        raise InputError(f"{path} {found}, this version reads schemas {readable}: dump it again to another store.path")
    return attributes
