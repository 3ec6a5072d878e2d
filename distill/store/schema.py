"""Schema 5: what a teacher store is.

A zarr v3 group over the N keyframes of a dataset version, row i belonging to `tokens[i]`. Every store has

    voxel_semantics  uint8   (N, X, Y, Z)     argmax of the teacher's own log-probabilities; 255 where not covered
    voxel_coverage   bool    (N, X, Y, Z)     whether the teacher has modelled the voxel; if not, it knows nothing there
    frame_digests    uint32  (N, D)           what the teacher was given: a digest of each source; 0: was absent
    checksums        uint32  (N, A)           CRC-32C of the row's chunk of each of the A arrays: the commit record
    tokens, scenes   string  (N,)

and the arrays of its signals (`distill.signals`), which the attribute `signals` describes; those of the project have

    voxels     column_coefs   int16   (N, K, X, Y)     coefficients of columns, K = Z C, in steps of
               column_step    float32 (N, 1)           nats; logits = column_mean + step * sum_k coefs_k column_basis_k
     or        voxel_codes    uint8   (N, X, Y, Z, C)  codes of log-probabilities on its levels; 0 where not covered
     both      voxel_kl       float32 (N, 2, 3)        KL_T(teacher || stored), mean and maximum, T = 1, 2, 4
     or        voxel_logits   float16 (N, X, Y, Z, C)  log-probabilities on its levels; normalise with a softmax
    bev        bev_codes      uint8   (N, X, Y, C)     codes of log-probabilities by its BEV rule, on its levels
     or        bev_probs      float32 (N, X, Y, C)     probabilities by its BEV rule
               bev_semantics  uint8   (N, X, Y)        argmax of bev_probs (the first of equals); 255: not covered
    gaussians  gaussians      float32 (N, G, 29)       Gaussians, rounded; rows of NaN fill them up
    seen       seen           bool    (N, X, Y, Z)     whether the images that the teacher was given show the voxel
    features   bev_features   uint8   (N, X/s, Y/s, F) codes of F features on cells of s x s columns
               bev_feature_scales  float32  (N, F, 2)  smallest value and step of each: value = smallest + step * code
    voxel_features, alike: voxel_features uint8 (N, X/s, Y/s, Z/s, F) and voxel_feature_scales

What a signal keeps once stands in arrays without rows: column_basis float32 (K, Z, C) and column_mean float32 (Z, C).
The attribute `keep` says of which voxels anything is kept: "all", or what the cameras of labelled keyframes show,
"visible". Then voxel_coverage is false elsewhere, and column_coverage bool (N, X, Y, Z) says what columns are made of.

One chunk per row and array, written whole, so that writers of different rows share nothing. A row is *present* when its
chunk of `checksums` exists; that chunk is written last, when the others are durable, and removed first when the row is
redone. Or it is in a pack (`distill.store.packs`), a file into which `occ-store do=pack` moves all chunks of rows that
follow each other. Rows that were never written, or are packed, read as NaN, 255, False and, in frame_digests, 0. The
empty file `claims` beside the chunks of `checksums` is no chunk: who writes row i holds a claim of it
(`StoreWriter.claim`).
All codecs are of the zarr v3 core specification. Group attributes carry the `StoreIdentity`, whose `frame_digests`
names the columns of that array, `columns`, the names of the arrays in the order of the columns of `checksums`, `files`,
a digest of each file that all rows share, and `seal`, a digest of the attributes. `made_of` says in words of which
stores `occ-store` has made it: what was encoded anew misses what they said by `voxel_kl`, not what the teacher said.

Schema 4 had no `keep`, `files` and `seal`, and nothing that is kept once. Schema 3 held the same chunks as 4, but for
the order of the columns of `checksums`; it described its signals otherwise and did not name their arrays. Both are read
and continued. Schema 2, which is read but not continued, has neither frame_digests nor `claims`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer
from zarr.codecs import Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

from distill.errors import InputError
from distill.grids import SURROUNDOCC, VoxelGrid
from distill.nuscenes.layout import CAMERAS, LIDAR
from distill.signals import GaussianKind, Signal, SignalsOf, described
from distill.signals.arrays import StoredArray, bit_planes, repeats
from distill.signals.bev import Bev
from distill.signals.gaussians import GaussianSet
from distill.signals.voxels import Voxels
from distill.store.place import Place

SCHEMA = 5
READABLE = (2, 3, 4, SCHEMA)
CONTINUED = (3, 4, SCHEMA)
DIGESTS = (*CAMERAS, LIDAR, "calibration")  # the columns of frame_digests for the rig of nuScenes
COMMITS = "checksums"
CLAIMS = f"{COMMITS}/claims"
PACKS = "packs"
# up to schema 3, the arrays in the order of the columns of `checksums`, as far as a store has them
_EARLIER_COLUMNS = (
    "voxel_logits", "voxel_semantics", "voxel_coverage", "bev_probs", "bev_semantics", "gaussians", "frame_digests",
)  # fmt: skip


@dataclass(frozen=True)
class StoreIdentity:
    """Who speaks in a store, about which world and how exactly: what must agree for a dump to be continued.

    Attributes:
        teacher: its name.
        checkpoint_sha256: of its weights, hex; "" for a teacher without a checkpoint.
        config: its resolved configuration, JSON-ready.
        grid: where the voxels lie.
        classes: class names, id order.
        signals: name -> description (`distill.signals.described`) of what it says.
        frame_digests: of what it was given, the sources that have a digest.
        keep: "all" voxels, or those "visible" in the cameras of labelled keyframes.
    """

    teacher: str
    checkpoint_sha256: str
    config: dict[str, Any]
    grid: VoxelGrid
    classes: tuple[str, ...]
    signals: dict[str, dict[str, Any]]
    frame_digests: tuple[str, ...] = DIGESTS
    keep: Literal["all", "visible"] = "all"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, the inverse of `from_dict`."""
        return {
            "schema": SCHEMA,
            "teacher": self.teacher,
            "checkpoint_sha256": self.checkpoint_sha256,
            "config": self.config,
            "grid": self.grid.to_dict(),
            "classes": list(self.classes),
            "signals": self.signals,
            "frame_digests": list(self.frame_digests),
            "keep": self.keep,
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> StoreIdentity:
        """Rebuild an identity from `to_dict`, of whatever schema."""
        earlier = "signals" not in description
        return cls(
            **{key: description[key] for key in ("teacher", "checkpoint_sha256", "config")},
            grid=VoxelGrid.from_dict(description["grid"]),
            classes=tuple(description["classes"]),
            signals=_earlier_signals(description) if earlier else description["signals"],
            frame_digests=DIGESTS if earlier else tuple(description["frame_digests"]),
            keep=description.get("keep", "all"),
        )

    def build_signals(self, read_constant: Callable[[str], np.ndarray]) -> Mapping[str, Signal]:
        """The signals by name, each built when it is asked for.

        Args:
            read_constant: name of an array -> what the store keeps once.
        """
        return SignalsOf(self.signals, self.grid, self.classes, read_constant)


def _earlier_signals(description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What stores up to schema 3 hold: log-probabilities of voxels and columns, or Gaussians, or all of these."""
    grid, classes = VoxelGrid.from_dict(description["grid"]), tuple(description["classes"])
    signals: list[Signal] = []
    if "log_probabilities" in description["content"]:
        signals.append(Voxels(grid, classes, tuple(description["quantisation"]["levels"])))
        signals.append(Bev(grid, classes, description["bev_rule"]))
    kind = description["gaussians"]
    if kind is not None:
        # what GaussianFormer, the only teacher of Gaussians then, models
        known = {each.name: kind[each.name] for each in fields(GaussianKind) if each.name != "space"}
        signals.append(GaussianSet(grid, classes, GaussianKind(**known, space=SURROUNDOCC)))
    return described(signals)


def new_arrays(identity: StoreIdentity, signals: Mapping[str, Signal]) -> list[StoredArray]:
    """The data arrays of a new store.

    Raises:
        InputError: two signals have arrays of the same name.
    """
    shape = identity.grid.shape
    arrays = [
        # layer by layer, as neighbours along y and x are alike
        StoredArray("voxel_semantics", "uint8", shape, (2, 0, 1), repeats(1)),
        StoredArray("voxel_coverage", "bool", shape, (0, 1, 2), repeats(1)),
        StoredArray("frame_digests", "uint32", (len(identity.frame_digests),), (0,), bit_planes(4)),
    ]
    if identity.keep != "all":
        arrays.append(StoredArray("column_coverage", "bool", shape, (0, 1, 2), repeats(1)))
    taken = {COMMITS, PACKS, "tokens", "scenes", *(array.name for array in arrays)}
    for name, signal in signals.items():
        for array in (*(each.name for each in signal.arrays()), *signal.constants()):
            if array in taken:
                raise InputError(f"signal {name}: a store has an array {array} already, give it another name")
            taken.add(array)
        arrays += signal.arrays()
    return arrays


def new_store(
    identity: StoreIdentity,
    tokens: Sequence[str],
    scenes: Sequence[str],
    code_version: str,
    constants: Mapping[str, np.ndarray],
    made_of: Sequence[str],
) -> dict[str, bytes]:
    """The files of a store without samples, by name.

    Args:
        identity, tokens, scenes: see `StoreWriter.open`.
        code_version: what makes it.
        constants: what its signals keep once.
        made_of: the stores that it is made of, in words; none for a dump.
    """
    arrays = new_arrays(identity, identity.build_signals(constants.__getitem__))
    columns = [array.name for array in arrays]
    attributes = {**identity.to_dict(), "columns": columns, "code_version": code_version, "made_of": list(made_of)}
    files: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=3, attributes=attributes)
    for array in arrays:
        group.create_array(
            array.name,
            shape=(len(tokens), *array.shape),
            chunks=(1, *array.shape),
            dtype=array.dtype,
            filters=TransposeCodec(order=(0, *(axis + 1 for axis in array.order))),
            compressors=(array.compressor, Crc32cCodec()),
            chunk_key_encoding={"name": "default", "separator": "."},
            fill_value=array.fill,
        )
    group.create_array(
        COMMITS,
        shape=(len(tokens), len(arrays)),
        chunks=(1, len(arrays)),
        dtype="uint32",
        compressors=Crc32cCodec(),
        chunk_key_encoding={"name": "default", "separator": "."},
        fill_value=0,
    )
    for name, texts in (("tokens", tokens), ("scenes", scenes)):
        strings = group.create_array(
            name, shape=(len(texts),), chunks="auto", dtype="string", compressors=Crc32cCodec()
        )
        strings[:] = np.array(texts, object)
    for name, values in constants.items():
        group.create_array(name, data=values, chunks=values.shape, compressors=(ZstdCodec(level=9), Crc32cCodec()))
    contents = {name: content.to_bytes() for name, content in files.items() if name != "zarr.json"}
    attributes["files"] = {name: digest(content) for name, content in contents.items()}
    group.update_attributes({"files": attributes["files"], "seal": seal_of(attributes)})
    return contents | {"zarr.json": files["zarr.json"].to_bytes(), CLAIMS: b""}


def digest(content: bytes) -> str:
    """Of a file, hex."""
    return hashlib.sha256(content).hexdigest()[:16]


def seal_of(attributes: Mapping[str, Any]) -> str:
    """Of the attributes of a store, whatever the order and spelling of their JSON; their own "seal" is left out."""
    others = {name: value for name, value in attributes.items() if name != "seal"}
    return digest(json.dumps(others, sort_keys=True).encode())


def check_files(place: Place, attributes: Mapping[str, Any]) -> None:
    """Raise InputError where anything that all rows share is not what was written; before schema 5 nobody can tell."""
    if attributes["schema"] < 5:
        return
    damaged = [name for name, expected in attributes.get("files", {}).items() if _digest_at(place, name) != expected]
    if attributes.get("seal") != seal_of(attributes):
        damaged = ["zarr.json"]
    if damaged:
        raise InputError(f"{place.address} is damaged in {', '.join(damaged)}: dump to another store.path")


def _digest_at(place: Place, name: str) -> str | None:
    try:
        return digest(place.read(name))
    except FileNotFoundError:
        return None


def read_whole(place: Place, name: str) -> np.ndarray:
    """An array without rows.

    Raises:
        InputError: it is damaged.
    """
    try:
        files: dict[str, Any] = {each: Buffer.from_bytes(place.read(f"{name}/{each}")) for each in place.names(name)}
        return np.asarray(zarr.open_array(MemoryStore(files), mode="r")[:])
    except (ValueError, FileNotFoundError) as error:
        raise InputError(
            f"the {name} of {place.address} are damaged ({place.address}/{name}): dump to another store.path"
        ) from error


def commit_name(row: int) -> str:
    """The file whose existence makes a row present, whether or not a pack holds it."""
    return f"{COMMITS}/c.{row}.0"


def committed_rows(place: Place) -> list[int]:
    """The rows that have a commit of their own."""
    names = [name.split(".") for name in place.names(COMMITS)]
    return [int(name[1]) for name in names if name[0] == "c" and name[-1] == "0"]


def read_attributes(place: Place) -> dict[str, Any]:
    """The group attributes of a store.

    Raises:
        InputError: there is nothing at the place, no store, or a store of another schema.
    """
    path = place.address
    try:
        attributes: dict[str, Any] = json.loads(place.read("zarr.json")).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        found = "is empty or does not exist" if place.empty() else "is not a teacher store"
        raise InputError(
            f"{path} {found}: give a store that occ-dump has made (store.path, teachers.stored.paths)"
        ) from error
    schema = attributes.get("schema")
    if schema not in READABLE:
        found = "is a zarr group but no teacher store" if schema is None else f"has store schema {schema}"
        readable = f"{', '.join(map(str, READABLE[:-1]))} and {READABLE[-1]}"
        newer = isinstance(schema, int) and schema > SCHEMA
        advice = "read it with the version that made it" if newer else "dump it again to another store.path"
        raise InputError(f"{path} {found}, this version reads schemas {readable}: {advice}")
    return attributes


def read_arrays(place: Place, attributes: Mapping[str, Any]) -> dict[str, StoredArray]:
    """The data arrays of a store, by name, in the order of the columns of `checksums`.

    Raises:
        InputError: the description of one is damaged.
    """
    earlier = [name for name in _EARLIER_COLUMNS if place.exists(f"{name}/zarr.json")]
    arrays = {}
    for name in attributes.get("columns", earlier):
        try:
            arrays[name] = StoredArray.from_zarr(name, json.loads(place.read(f"{name}/zarr.json")))
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"array {name} of {place.address} is damaged ({name}/zarr.json): dump to another store.path"
            ) from error
    return arrays
