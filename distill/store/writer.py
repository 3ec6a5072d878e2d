"""`StoreWriter`: filling a store, from any number of threads and processes, killed at any moment."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distill.checkpoint import code_version
from distill.errors import InputError
from distill.gaussians import Gaussians
from distill.store.codec import encode_voxels, round_probs
from distill.store.gaussians import decode_gaussians, encode_gaussians
from distill.store.reader import DamagedSample, TeacherStore
from distill.store.schema import NOT_COVERED, StoreIdentity, commit_path, committed_rows, create, seal


class StoreWriter:
    """Writes samples into the store at `store.path`; see `StoreWriter.open`.

    Writers of different samples need no lock. Two writers of one sample at once are not supported.
    """

    def __init__(self, store: TeacherStore) -> None:
        self.store = store

    @classmethod
    def open(cls, path: Path | str, identity: StoreIdentity, tokens: list[str], scenes: list[str]) -> StoreWriter:
        """Open the store at `path`, creating it if there is none; several processes may do so at once.

        Args:
            path: the zarr group.
            identity: who is going to write.
            tokens: all keyframes of the dataset version, whether they will be dumped or not.
            scenes: the scene name of each.

        Raises:
            InputError: the store there has another identity or other tokens, or the folder cannot be written.
        """
        path = Path(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            with _disk_errors(f"cannot create the store {path}"):
                _create_whole(path, identity, tokens, scenes)
        store = TeacherStore(path)
        _check_same(store, identity, tokens)
        return cls(store)

    def missing(self, tokens: list[str]) -> list[str]:
        """Those of `tokens` that are not present now."""
        rows = set(committed_rows(self.store.path))
        return [token for token in tokens if self.store.row(token) not in rows]

    def discard_damaged(self, tokens: list[str]) -> int:
        """Un-commit those of `tokens` that are present but not intact; return how many."""
        absent, damaged = set(self.missing(tokens)), 0
        for token in tokens:
            try:
                if token not in absent:
                    self.store.verify(token)
            except DamagedSample:
                with _disk_errors(f"cannot discard the damaged sample {token} of {self.store.path}"):
                    self._discard(token)
                damaged += 1
        return damaged

    def write(
        self,
        token: str,
        voxel_log_probs: np.ndarray,
        bev_probs: np.ndarray,
        coverage: np.ndarray,
        gaussians: Gaussians | None,
    ) -> None:
        """Store a sample; one that is present is replaced. When this returns, the sample is on disk.

        Args:
            token: of the keyframe.
            voxel_log_probs: natural log-probabilities (X, Y, Z, C), float16 or float32; -inf is allowed.
            bev_probs: probabilities (X, Y, C), float32.
            coverage: which voxels the teacher has modelled, bool (X, Y, Z).
            gaussians: for a store that holds Gaussians.

        Raises:
            InputError: these are no distributions on the store's grid, or no Gaussians of its kind, or the disk refuses
                (full, read-only). The sample is absent then, all others are untouched.
        """
        arrays, row, grid = self.store.arrays, self.store.row(token), self.store.grid.shape
        classes = len(self.store.identity.classes)
        found = voxel_log_probs.shape, bev_probs.shape, coverage.shape
        expected = (*grid, classes), (*grid[:2], classes), grid
        if found != expected:
            raise InputError(f"sample {token}: shapes {found}, not {expected}")
        with _teacher_errors(token):
            sample = self._encode(voxel_log_probs, bev_probs, coverage, gaussians)
        chunks = [array.pack(sample[name]) for name, array in arrays.items()]
        with _disk_errors(f"cannot write sample {token} to {self.store.path}"):
            self._discard(token)
            for array, chunk in zip(arrays.values(), chunks, strict=True):
                _write_durably(array.path(self.store.path, row), chunk)
            _write_durably(commit_path(self.store.path, row), seal(b"".join(chunk[-4:] for chunk in chunks)))

    def as_stored(self, token: str, gaussians: Gaussians) -> Gaussians:
        """The Gaussians as a reader of the store gets them, on the CPU.

        Raises:
            InputError: they are not of the kind that the store holds.
        """
        kind = self.store.identity.gaussians
        assert kind is not None
        with _teacher_errors(token):
            return decode_gaussians(encode_gaussians(gaussians, kind), kind)

    def _encode(
        self, voxel_log_probs: np.ndarray, bev_probs: np.ndarray, coverage: np.ndarray, gaussians: Gaussians | None
    ) -> dict[str, np.ndarray]:
        """What goes into the arrays, by name; ValueError if it cannot."""
        levels_XYZC, semantics_XYZ = encode_voxels(voxel_log_probs)
        semantics_XYZ[~coverage] = NOT_COVERED
        bev_semantics_XY = np.where(coverage.any(2), bev_probs.argmax(-1), NOT_COVERED)
        sample = {
            "voxel_logits": levels_XYZC,
            "voxel_semantics": semantics_XYZ,
            "voxel_coverage": coverage,
            "bev_probs": round_probs(bev_probs),
            "bev_semantics": bev_semantics_XY,
        }
        kind = self.store.identity.gaussians
        if kind is not None:
            if gaussians is None:
                raise ValueError("it has no Gaussians, which this store holds")
            sample["gaussians"] = encode_gaussians(gaussians, kind)
        return sample

    def summary(self) -> str:
        """One line: samples present and their size."""
        return self.store.summary()

    def _discard(self, token: str) -> None:
        commit = commit_path(self.store.path, self.store.row(token))
        if commit.exists():
            commit.unlink()
            _sync(commit.parent)


def _create_whole(path: Path, identity: StoreIdentity, tokens: list[str], scenes: list[str]) -> None:
    """Build the store beside its place and move it there whole, unless another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        create(draft, identity, tokens, scenes, code_version())
        for file in sorted(draft.rglob("*"), reverse=True):
            _sync(file)
        try:
            draft.rename(path)
        except OSError:
            if not (path / "zarr.json").exists():
                raise
        _sync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_same(store: TeacherStore, identity: StoreIdentity, tokens: list[str]) -> None:
    """Refuse to continue a store that somebody else began."""
    theirs = dict(_leaves({**store.identity.to_dict(), "keyframes": len(store.tokens), "tokens": store.tokens}))
    ours = dict(_leaves({**identity.to_dict(), "keyframes": len(tokens), "tokens": tokens}))
    different = [key for key in theirs | ours if theirs.get(key, "nothing") != ours.get(key, "nothing")]
    if different:
        told = "; ".join(
            f"{key} is {theirs.get(key, 'nothing')!r} there, {ours.get(key, 'nothing')!r} here" for key in different[:3]
        )
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise InputError(f"{store.path} was dumped differently: {told}{more}; give another store.path")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested dicts and lists."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is there whole or not at all, and there once this returned."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _teacher_errors(token: str) -> Iterator[None]:
    """Say what is wrong with a teacher's output in one line."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"sample {token} was not written: {error}; check the teacher") from error


@contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    """Say what the file system refused in one line."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise InputError(
            f"{what}: {error.strerror}{where}; what was committed is intact, run again to go on"
        ) from error
