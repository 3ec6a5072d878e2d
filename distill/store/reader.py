"""`TeacherStore`: reading a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from distill.classes import ClassSet
from distill.errors import InputError
from distill.frame import Told
from distill.grids import VoxelGrid
from distill.store.address import place_of
from distill.store.cache import Cache
from distill.store.packs import DamagedIndex, Layout, Pack
from distill.store.place import Place
from distill.store.sample import AbsentSample, DamagedSample, Sample
from distill.store.schema import (
    CONTINUED,
    StoreIdentity,
    check_files,
    read_arrays,
    read_attributes,
    read_whole,
    seal_of,
)

T = TypeVar("T")


class TeacherStore:
    """A teacher's output by sample token.

    Holds no open files: it may be pickled, and read in forked and spawned loader workers.

    Args:
        place: the zarr group, or its address.
        cache: of what is read of it, if it is in an object store; None: none.

    Attributes:
        place: where it lies.
        schema: what it is on disk.
        identity: who made the store, and how.
        made_of: in words, the stores that occ-store has made it of; of a dump none.
        signals: what it holds, by name; each is built when it is asked for.
        tokens: the sample tokens of all rows, dumped or not.
        present: the tokens that were dumped when the store was opened.
        arrays: the data arrays by name, in the order of the columns of the commit record.
        layout: where they lie, as it was when the store was opened, or had to look again.
        seal: of its attributes.

    Raises:
        InputError: there is no store, or it has another schema.
    """

    def __init__(self, place: Path | str | Place, cache: Cache | None = None) -> None:
        self.place = place if isinstance(place, Place) else place_of(place)
        self.cache = cache if self.place.remote else None
        attributes = read_attributes(self.place)
        check_files(self.place, attributes)
        self.schema: int = attributes["schema"]
        self.seal = seal_of(attributes)
        self.identity = StoreIdentity.from_dict(attributes)
        self.made_of: list[str] = attributes.get("made_of", [])
        self.signals = self.identity.build_signals(partial(read_whole, self.place))
        self.tokens: list[str] = read_whole(self.place, "tokens").tolist()
        self.arrays = read_arrays(self.place, attributes)
        self._columns = {name: column for column, name in enumerate(self.arrays)}
        self._rows = {token: row for row, token in enumerate(self.tokens)}
        self.refresh()
        self.present = frozenset(compress(self.tokens, self.layout.present))

    def refresh(self) -> None:
        """Look again where keyframes lie; `present` stays."""
        self.layout = self.look()

    def look(self, loose: Iterable[int] | None = None) -> Layout:
        """Where keyframes lie now; see `Layout`."""
        return Layout(self.place, self.seal, len(self.tokens), len(self.arrays), loose)

    @property
    def path(self) -> str:
        """Where it lies, for messages: a path or a URL."""
        return self.place.address

    @property
    def name(self) -> str:
        """The last part of it."""
        return PurePosixPath(self.path).name

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
        wanted = [array.name for name in names for array in self.signals[name].arrays()]
        wanted += [
            name for name in ("voxel_coverage", "column_coverage")[: coverage + in_columns] if name in self.arrays
        ]

        def told(read: Sample) -> Told:
            return Told(
                taught=True,
                covered=np.ascontiguousarray(read("voxel_coverage")) if coverage else None,
                in_columns=self._in_columns(read) if in_columns else None,
                signals={name: self.signals[name].decode(read) for name in names},
            )

        return self._reading(token, told, wanted)

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
        return self._reading(token, lambda read: np.ascontiguousarray(read("voxel_semantics")))

    def file(self, token: str) -> Path:
        """The file of a local store in which the teacher's voxel classes lie, its own or that of a pack."""
        return Path(self.path) / self._reading(token, lambda read: read.found.file("voxel_semantics"))

    def coverage(self, token: str) -> np.ndarray:
        """Of which voxels the teacher says anything, bool (X, Y, Z)."""
        return self._reading(token, lambda read: np.ascontiguousarray(read("voxel_coverage")))

    def in_columns(self, token: str) -> np.ndarray:
        """Which voxels have a part in what is said of their columns, bool (X, Y, Z)."""
        return self._reading(token, self._in_columns)

    def _in_columns(self, read: Sample) -> np.ndarray:
        return np.ascontiguousarray(read("column_coverage" if "column_coverage" in self.arrays else "voxel_coverage"))

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
        return self._reading(token, lambda read: read("frame_digests"))

    def other_frames(self, digests: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        """Which keyframes were dumped from other files than those at hand, and which of their files these are.

        Args:
            digests: token -> uint32 (D+,), see `distill.nuscenes.inventory`; what either side lacks is not compared.

        Returns:
            Token -> names of sources; absent and damaged keyframes, and stores of schema 2, say nothing.
        """
        different: dict[str, list[str]] = {}
        tokens = sorted(self.present & digests.keys())
        with ThreadPoolExecutor(16 if self.place.remote else 1) as pool:  # most of it is waiting for an object store
            found = list(pool.map(self._intact_frame_digests, tokens))
        for token, theirs in zip(tokens, found, strict=True):
            if theirs is not None:
                named = self.identity.frame_digests
                if len(digests[token]) - len(named) not in (0, 1):  # with and without that of the labels
                    different[token] = ["another number of cameras"]
                    continue
                pairs = zip(named, digests[token].tolist(), theirs.tolist(), strict=False)
                sources = [name for name, one, other in pairs if one and other and one != other]
                different |= {token: sources} if sources else {}
        return different

    def _intact_frame_digests(self, token: str) -> np.ndarray | None:
        try:
            return self.frame_digests(token)
        except DamagedSample:
            return None  # whoever asks for what the sample says is told

    def verify(self, token: str) -> None:
        """Check every byte of a sample against its checksums.

        Raises:
            DamagedSample: one differs.
        """
        self.chunks(token, list(self.arrays))

    def summary(self) -> str:
        """One line: samples present and their size."""
        self.refresh()
        count, size = int(self.layout.present.sum()), sum(self.sizes().values())
        told = f"{self.path}: {count} of {len(self.tokens)} keyframes, {size / max(count, 1) / 1e6:.2f} MB per keyframe"
        packed = count - int(self.layout.loose.sum())
        return told + (f", {packed} of them in {len(self.layout.packs)} packs" if packed else "")

    def sizes(self, apply: Callable[..., Iterable[Counter[str]]] = map) -> Counter[str]:
        """Bytes of the chunks of all present keyframes, by array; none of what is lost.

        Args:
            apply: `map`, or that of a pool.
        """
        in_files = apply(self._sizes_of, self.arrays)
        in_packs = apply(self._sizes_in, self.layout.packs)
        return sum((*in_files, *in_packs), Counter(dict.fromkeys(self.arrays, 0)))

    def _sizes_of(self, name: str) -> Counter[str]:
        """Of the keyframes of an array that have files of their own."""
        sizes, array = self.place.sizes(name), self.arrays[name]
        files = (array.chunk(row).removeprefix(f"{name}/") for row in np.flatnonzero(self.layout.loose))
        return Counter({name: sum(sizes.get(file, 0) for file in files)})

    def _sizes_in(self, pack: Pack) -> Counter[str]:
        """Of the keyframes that are read from a pack."""
        try:
            sizes = self.layout.index(pack)["size"]
        except (DamagedIndex, FileNotFoundError):
            return Counter()
        read_here = [row - pack.first for row in self.layout.rows_of(pack)]
        return Counter(dict(zip(self.arrays, sizes[read_here].sum(0, np.int64).tolist(), strict=True)))

    def size(self, token: str, block: int = 1) -> int:
        """Bytes of a keyframe that is present, each of its arrays in whole blocks of so many."""
        return sum(-(-len(chunk) // block) * block for chunk in self.chunks(token, self.arrays).values())

    def row(self, token: str) -> int:
        """The row of a keyframe.

        Raises:
            InputError: the store's dataset version does not have it.
        """
        if token not in self._rows:
            raise InputError(f"{self.path} is about another dataset version: it has no keyframe {token}")
        return self._rows[token]

    def column(self, name: str) -> int:
        """Of an array in the commit record."""
        return self._columns[name]

    def commit_record(self, token: str) -> bytes:
        """The CRC-32C of each array's chunk of a keyframe, sealed.

        Raises:
            InputError: the keyframe is not in the store.
        """
        return self._reading(token, lambda read: read.found.record)

    def chunk(self, token: str, name: str) -> bytes:
        """What an array holds of a keyframe, as it lies there.

        Raises:
            DamagedSample: it is not what was written.
        """
        return self.chunks(token, [name])[name]

    def chunks(self, token: str, names: Collection[str]) -> dict[str, bytes]:
        """The same of several arrays, by name."""
        return self._reading(token, lambda read: {name: read.chunk(name) for name in names}, names)

    def _reading(self, token: str, work: Callable[[Sample], T], wanted: Collection[str] = ()) -> T:
        """Do something with a sample; once more where it is no longer what it was, as it may be packed since."""
        try:
            return work(Sample(self, token, wanted))
        except (AbsentSample, DamagedSample):
            self.refresh()
            return work(Sample(self, token, wanted))
