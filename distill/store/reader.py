"""`TeacherStore`: reading a store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from distill.classes import ClassSet
from distill.errors import InputError
from distill.frame import Told
from distill.grids import VoxelGrid
from distill.signals.arrays import is_sealed
from distill.store.place import Local, Place
from distill.store.schema import (
    CONTINUED,
    StoreIdentity,
    check_files,
    commit_name,
    committed_rows,
    read_arrays,
    read_attributes,
    read_whole,
)


class DamagedSample(InputError):  # noqa: N818 - it names what was met, as InputError's one line does
    """A committed sample whose chunks are not what was written."""


class _Sample:
    """The arrays of a store as they stand for one keyframe."""

    def __init__(self, store: TeacherStore, token: str) -> None:
        self.store, self.token, self.record = store, token, store.commit_record(token)

    def __call__(self, name: str) -> np.ndarray:
        return self.store.arrays[name].unpack(self.store.chunk(self.token, name, self.record))

    def slices(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.store.arrays[name].unpack_slices(self.store.chunk(self.token, name, self.record))


class TeacherStore:
    """A teacher's output by sample token.

    Holds no open files: it may be pickled, and read in forked and spawned loader workers.

    Args:
        place: the zarr group.

    Attributes:
        place: where it lies.
        schema: what it is on disk.
        identity: who made the store, and how.
        made_of: in words, the stores that occ-store has made it of; of a dump none.
        signals: what it holds, by name; each is built when it is asked for.
        tokens: the sample tokens of all rows, dumped or not.
        present: the tokens that were dumped when the store was opened.
        arrays: the data arrays by name, in the order of the columns of the commit record.

    Raises:
        InputError: there is no store, or it has another schema.
    """

    def __init__(self, place: Path | Place) -> None:
        self.place = place if isinstance(place, Place) else Local(place)
        attributes = read_attributes(self.place)
        check_files(self.place, attributes)
        self.schema: int = attributes["schema"]
        self.identity = StoreIdentity.from_dict(attributes)
        self.made_of: list[str] = attributes.get("made_of", [])
        self.signals = self.identity.build_signals(partial(read_whole, self.place))
        self.tokens = [str(token) for token in read_whole(self.place, "tokens")]
        self.present = frozenset(self.tokens[row] for row in committed_rows(self.place))
        self.arrays = read_arrays(self.place, attributes)
        self._columns = {name: column for column, name in enumerate(self.arrays)}
        self._rows = {token: row for row, token in enumerate(self.tokens)}

    @property
    def path(self) -> Path:
        """Where it lies, for messages and for what lies beside it."""
        return Path(self.place.address)

    @property
    def grid(self) -> VoxelGrid:
        """Where the voxels lie."""
        return self.identity.grid

    @property
    def continued(self) -> bool:
        """Whether samples may be added: the schema is one that this version writes."""
        return self.schema in CONTINUED

    def check(self, grid: VoxelGrid, classes: ClassSet, names: Collection[str]) -> None:
        """Raise InputError unless the store holds these signals of `classes`, and they can be used on `grid`."""
        for name in names:
            if name not in self.signals:
                raise InputError(
                    f"{self.path} holds {', '.join(self.signals)} and no {name}: give a store that does, or dump one "
                    f"with dump.signals=[{', '.join([*self.signals, name])}]"
                )
            signal = self.signals[name]
            if not signal.fits(grid):
                raise InputError(f"{self.path} is on grid {self.grid}, this run on {grid}: give a store of that grid")
            theirs, ours = self.identity.classes[signal.class_ids], classes.names[signal.class_ids]
            if theirs != ours:
                raise InputError(
                    f"{self.path} has classes {', '.join(theirs)}, this run {', '.join(ours)}: "
                    "give a store of these classes"
                )

    def told(self, token: str, names: Collection[str], coverage: bool, in_columns: bool = False) -> Told:
        """What the teacher says of a keyframe.

        Args:
            token: of the keyframe.
            names: of the signals that are wanted; nothing else is read.
            coverage: whether it is wanted of which voxels the teacher says anything.
            in_columns: whether it is wanted what columns are made of.

        Raises:
            InputError: the sample is not in the store (`DamagedSample`: it is, but not intact). So do all readers.
        """
        read = _Sample(self, token)
        return Told(
            taught=True,
            covered=self.coverage(token) if coverage else None,
            in_columns=self.in_columns(token) if in_columns else None,
            signals={name: self.signals[name].decode(read) for name in names},
        )

    def silence(self, names: Collection[str], coverage: bool, in_columns: bool = False) -> Told:
        """The same of a keyframe that the store does not teach."""
        return Told(
            taught=False,
            covered=np.zeros(self.grid.shape, bool) if coverage else None,
            in_columns=np.zeros(self.grid.shape, bool) if in_columns else None,
            signals={name: self.signals[name].absent() for name in names},
        )

    def semantics(self, token: str) -> np.ndarray:
        """The teacher's voxel classes, uint8 (X, Y, Z); 255 where it has not modelled the voxel."""
        return np.ascontiguousarray(_Sample(self, token)("voxel_semantics"))

    def coverage(self, token: str) -> np.ndarray:
        """Of which voxels the teacher says anything, bool (X, Y, Z)."""
        return np.ascontiguousarray(_Sample(self, token)("voxel_coverage"))

    def in_columns(self, token: str) -> np.ndarray:
        """Which voxels have a part in what is said of their columns, bool (X, Y, Z)."""
        kept_all = "column_coverage" not in self.arrays
        return self.coverage(token) if kept_all else np.ascontiguousarray(_Sample(self, token)("column_coverage"))

    @property
    def knows_frames(self) -> bool:
        """Whether the store says what it was dumped from; schema 2 does not."""
        return "frame_digests" in self.arrays

    def frame_digests(self, token: str) -> np.ndarray | None:
        """Digests of what the teacher was given, uint32 (D,) in the order of `identity.frame_digests`; 0: was absent.

        None for a store of schema 2, which does not know what it was made from.
        """
        if not self.knows_frames:
            return None
        return _Sample(self, token)("frame_digests")

    def other_frames(self, digests: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        """Which keyframes were dumped from other files than those at hand, and which of their files these are.

        Args:
            digests: token -> uint32 (D+,), see `distill.nuscenes.inventory`; what either side lacks is not compared.

        Returns:
            Token -> names of sources; absent and damaged keyframes, and stores of schema 2, say nothing.
        """
        different: dict[str, list[str]] = {}
        for token in self.present & digests.keys():
            try:
                theirs = self.frame_digests(token)
            except DamagedSample:
                continue  # whoever asks for what the sample says is told
            if theirs is not None:
                named = self.identity.frame_digests
                pairs = zip(named, digests[token].tolist(), theirs.tolist(), strict=False)
                sources = [name for name, one, other in pairs if one and other and one != other]
                different |= {token: sources} if sources else {}
        return different

    def verify(self, token: str) -> None:
        """Check every byte of a sample against its checksums.

        Raises:
            DamagedSample: one differs.
        """
        for name in self.arrays:
            self.chunk(token, name)

    def summary(self) -> str:
        """One line: samples present and their size."""
        rows = committed_rows(self.place)
        sizes = [self.place.size(array.chunk(row)) for array in self.arrays.values() for row in rows]
        size = sum(sizes) / max(len(rows), 1)
        return f"{self.path}: {len(rows)} of {len(self.tokens)} keyframes, {size / 1e6:.2f} MB per keyframe"

    def row(self, token: str) -> int:
        """The row of a keyframe.

        Raises:
            InputError: the store's dataset version does not have it.
        """
        if token not in self._rows:
            raise InputError(f"{self.path} is about another dataset version: it has no keyframe {token}")
        return self._rows[token]

    def commit_record(self, token: str) -> bytes:
        """The CRC-32C of each array's chunk of a keyframe, sealed.

        Raises:
            InputError: the keyframe is not in the store.
        """
        try:
            return self.place.read(commit_name(self.row(token)))
        except FileNotFoundError as error:
            raise InputError(f"sample {token} is not in {self.path}: dump it with occ-dump") from error

    def chunk(self, token: str, name: str, record: bytes | None = None) -> bytes:
        """What an array holds of a keyframe, as it lies there.

        Args:
            token: of the keyframe.
            name: of the array.
            record: its `commit_record`; None: it is read.

        Raises:
            DamagedSample: it is not what was written.
        """
        row, array, commit = self.row(token), self.arrays[name], record or self.commit_record(token)
        try:
            chunk = self.place.read(array.chunk(row))
        except FileNotFoundError:
            chunk = b""
        if not (is_sealed(chunk) and is_sealed(commit) and chunk[-4:] == commit[4 * self._columns[name] :][:4]):
            raise DamagedSample(
                f"sample {token} is damaged in array {name}, file {self.path / array.chunk(row)}: "
                "re-dump it with dump.verify=true, or with dump.overwrite=true"
            )
        return chunk
