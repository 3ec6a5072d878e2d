"""`StoreWriter`: filling a store, from any number of threads and processes, killed at any moment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distill.checkpoint import code_version
from distill.errors import InputError
from distill.files import leaves
from distill.signals import NOT_COVERED, Signal
from distill.signals.arrays import seal
from distill.store.address import place_of
from distill.store.packs import DESCRIPTION, DamagedIndex, Layout, withdrawn_name
from distill.store.place import Place
from distill.store.reader import TeacherStore
from distill.store.schema import CLAIMS, COMMITS, PACKS, SCHEMA, StoreIdentity, commit_name, new_store

_OF_ROW = re.compile(rf".*/c\.(\d+)(?:\.0)+|{PACKS}/(\d+)-\d+\.zip|{PACKS}/(\d+)\.withdrawn")


class StoreWriter:
    """Writes samples into the store at `store.path`; see `StoreWriter.open`.

    Several processes may write into one store: each sample is written by one at a time, which has claimed it. Within a
    process, threads may write different samples, and one `StoreWriter` of a store is enough.
    """

    def __init__(self, store: TeacherStore) -> None:
        self.store = store
        self.place = store.place
        self.signals = dict(store.signals)

    @classmethod
    def open(
        cls, place: Path | str | Place, identity: StoreIdentity, tokens: Sequence[str], scenes: Sequence[str]
    ) -> StoreWriter:
        """Open the store at `place`, creating it if there is none; several processes may do so at once.

        One whose signals keep something once is to be made by `create`.

        Args:
            place: the zarr group, or its address.
            identity: who is going to write.
            tokens: all keyframes of the dataset version, whether they will be dumped or not.
            scenes: the scene name of each.

        Raises:
            InputError: the store there has another identity or other tokens, or cannot be written.
        """
        place = place if isinstance(place, Place) else place_of(place)
        if place.empty():
            cls.create(place, identity, tokens, scenes, ())
        store = TeacherStore(place)
        _check_same(store, identity, tokens)
        writer = cls(store)
        with disk_errors(f"cannot tidy the store {place.address}"):
            writer.tidy()
        return writer

    @staticmethod
    def create(
        place: Path | str | Place,
        identity: StoreIdentity,
        tokens: Sequence[str],
        scenes: Sequence[str],
        signals: Iterable[Signal],
        made_of: Sequence[str] = (),
    ) -> None:
        """Make a store without samples, unless another process is first.

        Args:
            place, identity, tokens, scenes: see `open`.
            signals: those of them that keep something once.
            made_of: the stores that it is made of, in words.

        Raises:
            InputError: it cannot be written.
        """
        place = place if isinstance(place, Place) else place_of(place)
        constants = {name: values for signal in signals for name, values in signal.constants().items()}
        files = new_store(identity, tokens, scenes, code_version(), constants, made_of)
        told = f"cannot create the store {place.address}", "free some space, or give another store.path"
        with disk_errors(*told):
            place.create(files)

    def claim(self, token: str) -> bool:
        """Reserve a sample for this process until it is written or released, or the process ends, however it ends.

        Returns:
            False where another process has claimed it.

        Raises:
            InputError: the store cannot be written.
        """
        with disk_errors(f"cannot claim sample {token} of {self.store.path}"):
            return self.place.claim(CLAIMS, self.store.row(token))

    def release(self, token: str) -> None:
        """Give back a claim."""
        self.place.release(CLAIMS, self.store.row(token))

    def version(self, token: str) -> int | None:
        """Tells whether a sample was written since, be it packed or not; None if it is not present."""
        return self.versions([token])[token]

    def versions(self, tokens: Sequence[str]) -> dict[str, int | None]:
        """The same of several."""
        versions = {token: self.place.version(self._commit(token)) for token in tokens}
        others = [token for token, version in versions.items() if version is None]
        if others:
            layout = self.store.look(loose=[])
            try:
                versions |= {token: _packed_version(layout, self.store.row(token)) for token in others}
            except FileNotFoundError:  # a pack was replaced just now
                return self.versions(tokens)
        return versions

    def missing(self, tokens: list[str]) -> list[str]:
        """Those of `tokens` that are not present now."""
        self.store.refresh()
        present = self.store.layout.present
        return [token for token in tokens if not present[self.store.row(token)]]

    def discard_damaged(self, tokens: list[str]) -> int:
        """Un-commit those of `tokens` that are present but not intact; return how many."""
        absent, damaged = set(self.missing(tokens)), 0
        for token in tokens:
            if token in absent or self._is_intact(token) or not self.claim(token):
                continue
            # again, now that nobody is writing it
            if self.version(token) is not None and not self._is_intact(token):
                with disk_errors(f"cannot discard the damaged sample {token} of {self.store.path}"):
                    self.withdraw(token)
                damaged += 1
            self.release(token)
        return damaged

    def write(
        self,
        token: str,
        said: Mapping[str, Any],
        semantics_XYZ: np.ndarray,
        coverage_XYZ: np.ndarray,
        frame_digests: np.ndarray,
        kept_XYZ: np.ndarray | None = None,
    ) -> None:
        """Write one sample, replacing what the store says about it; when this returns, it is durable.

        Args:
            token: of the keyframe.
            said: what the teacher says, by the names of the store's signals (`Signal.say`).
            semantics_XYZ: its classes, uint8; not looked at where it covers nothing.
            coverage_XYZ: which voxels the teacher has modelled, bool.
            frame_digests: of what the teacher was given, uint32 (D,) in the order of the identity's `frame_digests`; 0
                for what was absent.
            kept_XYZ: of which voxels something is kept, bool; None: of all.

        Raises:
            InputError: a signal refuses what was said, it has another shape than the store's, another process has
                claimed the sample, or the disk refuses (full, read-only). The sample is as it was, or absent where the
                disk refuses; all others are untouched.
        """
        sample = {"voxel_coverage": coverage_XYZ, "frame_digests": frame_digests}
        if self.store.identity.keep != "all" and kept_XYZ is not None:
            sample |= {"voxel_coverage": coverage_XYZ & kept_XYZ, "column_coverage": coverage_XYZ}
        with teacher_errors(token):
            sample["voxel_semantics"] = np.where(coverage_XYZ, semantics_XYZ, np.uint8(NOT_COVERED))
            for name, signal in self.signals.items():
                sample |= signal.encode(said[name])
        self.put(token, self._packed(token, sample))

    def put(self, token: str, chunks: Mapping[str, bytes]) -> None:
        """Write one sample as `write` does, of which the chunks of all arrays are known, by the names of these.

        Raises:
            InputError: another process has claimed the sample, or the disk refuses.
        """
        row, arrays = self.store.row(token), self.store.arrays.values()
        with disk_errors(f"cannot write sample {token} to {self.store.path}"), self._claimed(token):
            if self.place.exists(self._commit(token)):
                self.withdraw(token)
            # what a pack holds of it stays until there is another commit
            for array in arrays:
                self.place.write(array.chunk(row), chunks[array.name])
            self.place.write(self._commit(token), seal(b"".join(chunks[array.name][-4:] for array in arrays)))

    def withdraw(self, token: str) -> None:
        """Make a sample absent, which this process has claimed; killed, it is as it was or absent."""
        row = self.store.row(token)
        # before its own commit goes, that what a pack holds does not come back
        if self.store.look(loose=[]).packed[row] >= 0:
            self.place.write(withdrawn_name(row), b"")
        self.place.delete(commit_name(row))

    def summary(self) -> str:
        """One line: samples present and their size."""
        return self.store.summary()

    def _packed(self, token: str, sample: Mapping[str, np.ndarray]) -> dict[str, bytes]:
        """The chunks of a sample by the names of their arrays."""
        expected = {name: array.shape for name, array in self.store.arrays.items()}
        found = {name: values.shape for name, values in sample.items()}
        wrong = [name for name in expected | found if expected.get(name) != found.get(name)]
        if wrong:
            told = "; ".join(f"{name} has the shape {found.get(name)}, not {expected.get(name)}" for name in wrong)
            raise InputError(f"sample {token} was not written: {told}")
        return {name: array.pack(sample[name]) for name, array in self.store.arrays.items()}

    def _commit(self, token: str) -> str:
        return commit_name(self.store.row(token))

    @contextmanager
    def _claimed(self, token: str) -> Iterator[None]:
        if not self.claim(token):
            raise InputError(f"another process is writing sample {token} of {self.store.path}: wait for it or stop it")
        try:
            yield
        finally:
            self.release(token)

    def _is_intact(self, token: str) -> bool:
        try:
            self.store.verify(token)
        except InputError:
            return False
        return True

    def tidy(self) -> None:
        """Remove what processes that were killed have left of rows that nobody is writing."""
        arrays, layout = self.store.arrays, self.store.layout
        for folder in (COMMITS, PACKS, *arrays):
            for name, leftover in self.place.leftovers(folder):
                with self._nobody_writing(name) as row:
                    if row is not None:
                        self.place.delete(leftover)
        for name in (f"{folder}/{file}" for folder in arrays if layout.packs for file in self.place.names(folder)):
            if layout.pack(_row_of(name) or 0) is None:
                continue
            with self._nobody_writing(name) as row:
                if row is not None and not self.place.exists(commit_name(row)):
                    self.place.delete(name)

    @contextmanager
    def _nobody_writing(self, name: str) -> Iterator[int | None]:
        """The row that a file is of, claimed; None if it is of none, or somebody is writing that."""
        row = _row_of(name)
        if row is None or not self.claim(token := self.store.tokens[row]):
            yield None
            return
        yield row
        self.release(token)


def _row_of(name: str) -> int | None:
    """The row that a file is of, or whose claim stands for it: the first one of a pack."""
    if name == DESCRIPTION:
        return 0
    found = _OF_ROW.fullmatch(name)
    return int(found[found.lastindex or 0]) if found else None


def _packed_version(layout: Layout, row: int) -> int | None:
    """Of a row without files of its own."""
    pack = layout.pack(row)
    if pack is None:
        return None
    try:
        return int(layout.index(pack)["version"][row - pack.first])
    except DamagedIndex:
        return 0  # it is present, whatever it says


def _check_same(store: TeacherStore, identity: StoreIdentity, tokens: Sequence[str]) -> None:
    """Refuse to continue a store that somebody else began."""
    theirs = _facts(store.identity, store.tokens, SCHEMA if store.continued else store.schema)
    ours = _facts(identity, tokens, SCHEMA)
    different = [key for key in theirs | ours if theirs.get(key, "nothing") != ours.get(key, "nothing")]
    if "dump.signals" in different:  # which says it all
        different = [key for key in different if not key.startswith("signals.")]
    if different:
        told = "; ".join(
            f"{key} is {theirs.get(key, 'nothing')!r} there, {ours.get(key, 'nothing')!r} here" for key in different[:3]
        )
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise InputError(f"{store.path} was dumped differently: {told}{more}; give another store.path")


def _facts(identity: StoreIdentity, tokens: Sequence[str], schema: int) -> dict[str, Any]:
    """What must agree, by key; the order in which signals were named does not matter."""
    named = {"dump.signals": ", ".join(sorted(identity.signals)), "keyframes": len(tokens), "tokens": list(tokens)}
    return leaves({**identity.to_dict(), "schema": schema, **named}, lists=True)


@contextmanager
def teacher_errors(token: str) -> Iterator[None]:
    """Say what is wrong with a teacher's output in one line."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"sample {token} was not written: {error}; check the teacher") from error


@contextmanager
def disk_errors(what: str, advice: str = "what was committed is intact, run again to go on") -> Iterator[None]:
    """Say what the file system refused in one line."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise InputError(f"{what}: {error.strerror}{where}; {advice}") from error
