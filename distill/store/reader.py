"""`TeacherStore`: reading a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zarr

from distill.classes import ClassSet
from distill.errors import InputError
from distill.gaussians import EMPTY, Gaussians
from distill.grids import VoxelGrid
from distill.store.codec import code_table, decode_codes
from distill.store.gaussians import decode_gaussians
from distill.store.schema import (
    DIGESTS,
    StoreIdentity,
    commit_path,
    committed_rows,
    data_arrays,
    is_sealed,
    read_attributes,
)


class DamagedSample(InputError):  # noqa: N818 - it names what was met, as InputError's one line does
    """A committed sample whose chunks are not what was written."""


class TeacherStore:
    """A teacher's output by sample token.

    Holds no open files: it may be pickled, and read in forked and spawned loader workers.

    Args:
        path: the zarr group.

    Attributes:
        path: the same.
        identity: who made the store, and how.
        tokens: the sample tokens of all rows, dumped or not.
        present: the tokens that were dumped when the store was opened.
        log_prob_table: the log-probability of each code, float32 (256,).
        arrays: the data arrays by name.

    Raises:
        InputError: there is no store at `path`, or it has another schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = StoreIdentity.from_dict(read_attributes(path))
        self.tokens = _read_tokens(path)
        self.present = frozenset(self.tokens[row] for row in committed_rows(path))
        self.log_prob_table = np.array(self.identity.levels, np.float32)
        self.arrays = data_arrays(self.identity)
        self._rows = {token: row for row, token in enumerate(self.tokens)}
        self._codes = code_table(self.log_prob_table)

    @property
    def grid(self) -> VoxelGrid:
        """Where the voxels lie."""
        return self.identity.grid

    def check(self, grid: VoxelGrid, classes: ClassSet) -> None:
        """Raise InputError unless the store holds log-probabilities of `classes` on `grid`."""
        if not self.identity.voxels:
            raise InputError(f"{self.path} holds Gaussians alone: set store.render=true")
        if self.grid != grid:
            raise InputError(f"{self.path} is on grid {self.grid}, this run on {grid}: give a store of that grid")
        self._check_classes(classes, range(len(classes)))

    def check_gaussians(self, classes: ClassSet) -> None:
        """Raise InputError unless the store holds Gaussians of `classes`; those can be rendered on any grid."""
        if self.identity.gaussians is None:
            raise InputError(
                f"{self.path} holds no Gaussians: set store.render=false, or dump with dump.gaussians=true (or only)"
            )
        # what is neither noise nor empty: these two have other names on other grids
        self._check_classes(classes, range(1, EMPTY))

    def _check_classes(self, classes: ClassSet, ids: range) -> None:
        theirs, ours = (names[ids.start : ids.stop] for names in (self.identity.classes, classes.names))
        if theirs != ours:
            raise InputError(
                f"{self.path} has classes {', '.join(theirs)}, this run {', '.join(ours)}: "
                "give a store of these classes"
            )

    def codes(self, token: str) -> np.ndarray:
        """Voxel log-probabilities as positions in `log_prob_table`, uint8 (X, Y, Z, C).

        Raises:
            InputError: the sample is not in the store (`DamagedSample`: it is, but not intact). So do all readers.
        """
        return decode_codes(self._read(token, "voxel_logits"), self._codes)

    def semantics(self, token: str) -> np.ndarray:
        """The teacher's voxel classes, uint8 (X, Y, Z); 255 where it has not modelled the voxel."""
        return np.ascontiguousarray(self._read(token, "voxel_semantics"))

    def coverage(self, token: str) -> np.ndarray:
        """Which voxels the teacher has modelled, bool (X, Y, Z)."""
        return np.ascontiguousarray(self._read(token, "voxel_coverage"))

    def bev_probs(self, token: str) -> np.ndarray:
        """BEV probabilities, float32 (X, Y, C)."""
        return np.ascontiguousarray(self._read(token, "bev_probs"))

    def gaussians(self, token: str) -> Gaussians:
        """The teacher's Gaussians, on the CPU, in the LIDAR_TOP frame."""
        assert self.identity.gaussians is not None
        return decode_gaussians(self._read(token, "gaussians"), self.identity.gaussians)

    @property
    def knows_frames(self) -> bool:
        """Whether the store says what it was dumped from; schema 2 does not."""
        return "frame_digests" in self.arrays

    def frame_digests(self, token: str) -> np.ndarray | None:
        """Digests of what the teacher was given, uint32 (8,) in the order of `schema.DIGESTS`; 0: it was absent.

        None for a store of schema 2, which does not know what it was made from.
        """
        if not self.knows_frames:
            return None
        return self._read(token, "frame_digests")

    def other_frames(self, digests: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        """Which keyframes were dumped from other files than those at hand, and which of their files these are.

        Args:
            digests: token -> uint32 (8+,), see `distill.nuscenes.inventory`; what either side lacks is not compared.

        Returns:
            Token -> names of `schema.DIGESTS`; absent and damaged keyframes, and stores of schema 2, say nothing.
        """
        different: dict[str, list[str]] = {}
        for token in self.present & digests.keys():
            try:
                theirs = self.frame_digests(token)
            except DamagedSample:
                continue  # whoever asks for what the sample says is told
            if theirs is not None:
                pairs = zip(DIGESTS, digests[token].tolist(), theirs.tolist(), strict=False)
                sources = [name for name, one, other in pairs if one and other and one != other]
                different |= {token: sources} if sources else {}
        return different

    def verify(self, token: str) -> None:
        """Check every byte of a sample against its checksums.

        Raises:
            DamagedSample: one differs.
        """
        for name in self.arrays:
            self._chunk(token, name)

    def summary(self) -> str:
        """One line: samples present and their size."""
        rows = committed_rows(self.path)
        files = [array.path(self.path, row) for array in self.arrays.values() for row in rows]
        size = sum(file.stat().st_size for file in files if file.exists()) / max(len(rows), 1)
        return f"{self.path}: {len(rows)} of {len(self.tokens)} keyframes, {size / 1e6:.2f} MB per keyframe"

    def row(self, token: str) -> int:
        """The row of a keyframe.

        Raises:
            InputError: the store's dataset version does not have it.
        """
        if token not in self._rows:
            raise InputError(f"{self.path} is about another dataset version: it has no keyframe {token}")
        return self._rows[token]

    def _read(self, token: str, name: str) -> np.ndarray:
        return self.arrays[name].unpack(self._chunk(token, name))

    def _chunk(self, token: str, name: str) -> bytes:
        row, array = self.row(token), self.arrays[name]
        try:
            commit = commit_path(self.path, row).read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"sample {token} is not in {self.path}: dump it with occ-dump") from error
        path = array.path(self.path, row)
        chunk = path.read_bytes() if path.exists() else b""
        if not (is_sealed(chunk) and is_sealed(commit) and chunk[-4:] == commit[4 * array.column :][:4]):
            raise DamagedSample(
                f"sample {token} is damaged in array {name}, file {path}: "
                "re-dump it with dump.verify=true, or with dump.overwrite=true"
            )
        return chunk


def _read_tokens(path: Path) -> list[str]:
    try:
        return [str(token) for token in np.asarray(zarr.open_array(path / "tokens", mode="r")[:])]
    except (ValueError, FileNotFoundError) as error:
        raise InputError(f"the tokens of {path} are damaged ({path / 'tokens'}): dump to another store.path") from error
