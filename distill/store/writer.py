"""`StoreWriter`: filling a store, from any number of threads and processes, killed at any moment."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distill.checkpoint import code_version
from distill.errors import InputError
from distill.files import sync, write_durably
from distill.gaussians import Gaussians
from distill.store.codec import encode_voxels, round_probs
from distill.store.gaussians import decode_gaussians, encode_gaussians
from distill.store.reader import TeacherStore
from distill.store.schema import (
    COMMITS,
    DIGESTS,
    NOT_COVERED,
    StoreIdentity,
    claims_path,
    commit_path,
    committed_rows,
    create,
    seal,
)

# what `write_durably` leaves of a chunk when it is killed
_PARTIAL = re.compile(r"c\.(\d+)(\.0)+\.\d+\.partial")


class StoreWriter:
    """Writes samples into the store at `store.path`; see `StoreWriter.open`.

    Several processes may write into one store: each sample is written by one at a time, which has claimed it. Within a
    process, threads may write different samples, and one `StoreWriter` of a store is enough.
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
            with _disk_errors(f"cannot create the store {path}", "free some space, or give another store.path"):
                _create_whole(path.resolve(), identity, tokens, scenes)  # where a link points to, not in its place
        store = TeacherStore(path)
        _check_same(store, identity, tokens)
        writer = cls(store)
        with _disk_errors(f"cannot tidy the store {path}"):
            writer._remove_partial_files()
        return writer

    def claim(self, token: str) -> bool:
        """Reserve a sample for this process until it is written or released, or the process ends, however it ends.

        Returns:
            False where another process has claimed it.

        Raises:
            InputError: the store cannot be written.
        """
        with _disk_errors(f"cannot claim sample {token} of {self.store.path}"):
            try:
                # bytes past the end of a file can be locked, too; a forked loader worker does not inherit the lock
                fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.store.row(token))
            except BlockingIOError:
                return False
        return True

    def release(self, token: str) -> None:
        """Give back a claim."""
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, self.store.row(token))

    @cached_property
    def _claims(self) -> int:
        # never closed: closing any descriptor of this file would give back every claim of the process
        return os.open(claims_path(self.store.path), os.O_RDWR | os.O_CREAT)

    def version(self, token: str) -> int | None:
        """When a sample was committed, nanoseconds: tells whether it was written since; None if it is not present."""
        try:
            return commit_path(self.store.path, self.store.row(token)).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def missing(self, tokens: list[str]) -> list[str]:
        """Those of `tokens` that are not present now."""
        rows = set(committed_rows(self.store.path))
        return [token for token in tokens if self.store.row(token) not in rows]

    def discard_damaged(self, tokens: list[str]) -> int:
        """Un-commit those of `tokens` that are present but not intact; return how many."""
        absent, damaged = set(self.missing(tokens)), 0
        for token in tokens:
            if token in absent or self._is_intact(token) or not self.claim(token):
                continue
            # again, now that nobody is writing it
            if self.version(token) is not None and not self._is_intact(token):
                with _disk_errors(f"cannot discard the damaged sample {token} of {self.store.path}"):
                    self._discard(token)
                damaged += 1
            self.release(token)
        return damaged

    def write(
        self,
        token: str,
        voxel_log_probs: np.ndarray,
        bev_probs: np.ndarray,
        coverage: np.ndarray,
        gaussians: Gaussians | None,
        frame_digests: np.ndarray,
    ) -> None:
        """Store a sample; one that is present is replaced. When this returns, it is on disk and no longer claimed.

        Args:
            token: of the keyframe.
            voxel_log_probs: natural log-probabilities (X, Y, Z, C), float16 or float32; -inf is allowed.
            bev_probs: probabilities (X, Y, C), float32.
            coverage: which voxels the teacher has modelled, bool (X, Y, Z).
            gaussians: for a store that holds Gaussians.
            frame_digests: of what the teacher was given, uint32 (8,) in the order of `schema.DIGESTS`; 0 for what was
                absent.

        Raises:
            InputError: these are no distributions on the store's grid, or no Gaussians of its kind, another process has
                claimed the sample, or the disk refuses (full, read-only). The sample is as it was, or absent where the
                disk refuses; all others are untouched.
        """
        arrays, row, grid = self.store.arrays, self.store.row(token), self.store.grid.shape
        classes = len(self.store.identity.classes)
        found = voxel_log_probs.shape, bev_probs.shape, coverage.shape, frame_digests.shape
        expected = (*grid, classes), (*grid[:2], classes), grid, (len(DIGESTS),)
        if found != expected:
            raise InputError(f"sample {token}: shapes {found}, not {expected}")
        with _teacher_errors(token):
            sample = self._encode(voxel_log_probs, bev_probs, coverage, gaussians) | {"frame_digests": frame_digests}
        chunks = [array.pack(sample[name]) for name, array in arrays.items()]
        with _disk_errors(f"cannot write sample {token} to {self.store.path}"), self._claimed(token):
            self._discard(token)
            for array, chunk in zip(arrays.values(), chunks, strict=True):
                write_durably(array.path(self.store.path, row), chunk)
            write_durably(commit_path(self.store.path, row), seal(b"".join(chunk[-4:] for chunk in chunks)))

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
        bev_probs_XYC = round_probs(bev_probs)
        # of the rounded ones: rounding makes ties, and whoever reads both arrays must find the same class in them
        bev_semantics_XY = np.where(coverage.any(2), bev_probs_XYC.argmax(-1), NOT_COVERED)
        sample = {
            "voxel_logits": levels_XYZC,
            "voxel_semantics": semantics_XYZ,
            "voxel_coverage": coverage,
            "bev_probs": bev_probs_XYC,
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
            sync(commit.parent)

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

    def _remove_partial_files(self) -> None:
        """Remove what processes that were killed have left of rows that nobody is writing."""
        for array in (COMMITS, *self.store.arrays):
            for name in os.listdir(self.store.path / array):
                partial = _PARTIAL.fullmatch(name)
                if partial is not None:
                    token = self.store.tokens[int(partial[1])]
                    if self.claim(token):
                        (self.store.path / array / name).unlink(missing_ok=True)
                        self.release(token)


def _create_whole(path: Path, identity: StoreIdentity, tokens: list[str], scenes: list[str]) -> None:
    """Build the store beside its place and move it there whole, unless another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        create(draft, identity, tokens, scenes, code_version())
        for file in sorted(draft.rglob("*"), reverse=True):
            sync(file)
        try:
            draft.rename(path)
        except OSError:
            if not (path / "zarr.json").exists():
                raise
        sync(path.parent)
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


@contextmanager
def _teacher_errors(token: str) -> Iterator[None]:
    """Say what is wrong with a teacher's output in one line."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"sample {token} was not written: {error}; check the teacher") from error


@contextmanager
def _disk_errors(what: str, advice: str = "what was committed is intact, run again to go on") -> Iterator[None]:
    """Say what the file system refused in one line."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise InputError(f"{what}: {error.strerror}{where}; {advice}") from error
