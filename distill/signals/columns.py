"""Voxel log-probabilities as coefficients of columns on a basis of the store (docs/formulas.md 13.1, 13.2).

The logits of a column, K = Z C numbers, are projected on K orthonormal vectors that were fitted once, to the first
keyframe of the store, and rounded to steps. No vector is left out, so any later keyframe can be kept; what the teacher
does not need rounds to 0, and planes of zeros take no space. What comes out is compared with what the teacher said.

Letters: B batch, X Y Z voxel axes, C classes, K numbers of a column, k planes that are not all zeros, V voxels and N
columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from distill.bev import bev_log_probs
from distill.frame import FACT, FACTS, GRID, PLANES, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.signals.arrays import StoredArray, bit_planes, slice_by_slice
from distill.signals.divergence import TEMPERATURES, divergence, kl_array
from distill.signals.signal import CONSTANT, Reading, Signal, TeacherPrediction
from kernels.compiled import compiled

# nats, at every temperature of `divergence`: of a keyframe in the mean, and of any of its voxels
MAX_MEAN_KL, MAX_KL = 2e-4, 2e-2
FINEST_STEP = 1 / 16
_LEAST = np.float32(-64)  # log-probabilities below become this


class NotKept(ValueError):  # noqa: N818 - it names what happened
    """No step is fine enough for a keyframe."""


class CoveredVoxels(NamedTuple):
    """What a teacher says of the voxels of a keyframe.

    Attributes:
        log_probs_XYZC: natural log-probabilities, float32.
        covered_XYZ: bool, where it says anything that is kept.
    """

    log_probs_XYZC: np.ndarray
    covered_XYZ: np.ndarray

    @classmethod
    def of(cls, prediction: TeacherPrediction) -> list[CoveredVoxels]:
        """Of each keyframe of a batch, what a store keeps."""
        voxels_BXYZC, said_BXYZ = prediction.voxel_log_probs_BXYZC.cpu().numpy(), prediction.said()
        if said_BXYZ is None:
            return [cls(voxels_XYZC, np.ones(voxels_XYZC.shape[:3], bool)) for voxels_XYZC in voxels_BXYZC]
        return [cls(*of_one) for of_one in zip(voxels_BXYZC, said_BXYZ.cpu().numpy(), strict=True)]


@dataclass(frozen=True)
class ColumnCoefs(Record):
    """What travels of the voxels.

    Attributes:
        planes: int64 (k,), which of the basis vectors a plane is about.
        coefs: int16 (k, X, Y), in steps.
        step: float32, nats.
        basis: float32 (K, K), rows are basis vectors.
        mean: float32 (K,), of the columns of the teacher.
        covered: bool (X, Y, Z).
    """

    planes: Array = declared(FACTS)
    coefs: Array = declared(PLANES)
    step: Array = declared(FACT)
    basis: Array = declared(FACT)
    mean: Array = declared(FACT)
    covered: Array = declared(GRID)


@dataclass(frozen=True)
class ColumnVoxels(Signal):
    """Log-probabilities of all voxels.

    Attributes:
        step: nats, of coefficients; where that is too coarse for a keyframe it is halved.
        column_basis: float32 (K, Z, C), orthonormal.
        column_mean: float32 (Z, C).
    """

    name: ClassVar[str] = "voxels"
    answers: ClassVar[frozenset[str]] = frozenset({"voxels", "columns", "covered"})

    step: float
    column_basis: np.ndarray = field(metadata=CONSTANT, compare=False, repr=False)
    column_mean: np.ndarray = field(metadata=CONSTANT, compare=False, repr=False)

    def __post_init__(self) -> None:
        basis_KK = self.column_basis.reshape(len(self.column_basis), -1)
        size = self.grid.shape[2] * len(self.classes)
        if basis_KK.shape != (size, size) or not np.allclose(basis_KK @ basis_KK.T, np.eye(size), rtol=0, atol=1e-5):
            raise ValueError(f"column_basis is no orthonormal basis of columns of {size} numbers")

    @classmethod
    def fitted(cls, said: CoveredVoxels, step: float, grid: VoxelGrid, classes: tuple[str, ...]) -> Self:
        """The signal of a teacher who says such things: principal axes of its columns."""
        size = grid.shape[2] * len(classes)
        shape = grid.shape[2], len(classes)
        values_NZC, covered_NZ = said.log_probs_XYZC.reshape(-1, *shape), said.covered_XYZ.reshape(-1, shape[0])
        sum_ZC = _centred(values_NZC, covered_NZ, np.zeros(shape, np.float32)).sum(0, np.float64)
        mean_ZC = (sum_ZC / np.maximum(covered_NZ.sum(0), 1)[:, None]).astype(np.float32)
        half_NK = _centred(values_NZC[::2], covered_NZ[::2], mean_ZC).reshape(
            -1, size
        )  # of the columns: it says as much
        vectors_KK = np.linalg.eigh(half_NK.T.astype(np.float64) @ half_NK)[1]  # columns, by rising variance
        basis_KZC = np.ascontiguousarray(vectors_KK[:, ::-1].T, np.float32).reshape(size, *shape)
        return cls(grid, classes, step, basis_KZC, mean_ZC)

    @override
    def describe(self) -> dict[str, Any]:
        bounds = {"max_mean_kl_nats": MAX_MEAN_KL, "max_kl_nats": MAX_KL, "temperatures": list(TEMPERATURES)}
        return {**super().describe(), **bounds}

    @override
    def arrays(self) -> Sequence[StoredArray]:
        shape = (len(self.column_basis), *self.grid.shape[:2])
        return (
            StoredArray("column_coefs", "int16", shape, (0, 1, 2), slice_by_slice("int16", shape[1:])),
            StoredArray("column_step", "float32", (1,), (0,), bit_planes(4)),
            kl_array(),
        )

    @override
    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[CoveredVoxels]:
        return CoveredVoxels.of(prediction)

    @override
    def encode(self, said: CoveredVoxels) -> dict[str, np.ndarray]:
        """With the step, or the first half of it that keeps what is promised.

        Raises:
            NotKept: no step keeps it.
            ValueError: they are no distributions.
        """
        coefs_KN = self._projected(said)
        step, kl_23 = self.step, np.full((2, len(TEMPERATURES)), np.inf, np.float32)
        while step >= FINEST_STEP:
            rounded_KN = _rounded(coefs_KN, np.float32(step))
            kl_23 = self._divergence(said, rounded_KN, step)
            if (kl_23[0] <= MAX_MEAN_KL).all() and (kl_23[1] <= MAX_KL).all():
                coefs = rounded_KN.reshape(-1, *self.grid.shape[:2])
                return {"column_coefs": coefs, "column_step": np.full(1, step, np.float32), "voxel_kl": kl_23}
            step /= 2
        raise NotKept(
            f"its voxels on columns in steps of {2 * step} nats miss the teacher's by {kl_23[0].max():.1e} nats in the "
            f"mean and {kl_23[1].max():.1e} at most (store.encoding=levels keeps them)"
        )

    def _projected(self, said: CoveredVoxels) -> np.ndarray:
        """Coefficients, float32 (K, N)."""
        shape, size = self.column_mean.shape, self.column_mean.size
        values_NZC, covered_NZ = said.log_probs_XYZC.reshape(-1, *shape), said.covered_XYZ.reshape(-1, shape[0])
        columns_NK = _centred(values_NZC, covered_NZ, self.column_mean).reshape(-1, size)
        coefs_KN: np.ndarray = self.column_basis.reshape(size, size) @ columns_NK.T
        return coefs_KN

    def _divergence(self, said: CoveredVoxels, rounded_KN: np.ndarray, step: float) -> np.ndarray:
        """What `voxel_kl` holds of coefficients."""
        used = np.flatnonzero(rounded_KN.any(1))
        vectors_kK = self.column_basis.reshape(len(self.column_basis), -1)[used] * np.float32(step)
        decoded_NK = rounded_KN[used].T.astype(np.float32) @ vectors_kK + self.column_mean.reshape(-1)
        teacher_VC = np.ascontiguousarray(said.log_probs_XYZC, np.float32).reshape(-1, len(self.classes))
        return divergence(teacher_VC, decoded_NK.reshape(teacher_VC.shape), said.covered_XYZ.reshape(-1))

    @override
    def decode(self, read: Reading) -> ColumnCoefs:
        planes, coefs_kXY = read.slices("column_coefs")
        return self._record(planes, coefs_kXY, read("column_step")[0], read("voxel_coverage"))

    @override
    def absent(self) -> ColumnCoefs:
        nothing = np.empty((0, *self.grid.shape[:2]), np.int16)
        return self._record(np.empty(0, np.int64), nothing, np.float32(0), np.zeros(self.grid.shape, bool))

    def _record(self, planes: np.ndarray, coefs_kXY: np.ndarray, step: Any, covered_XYZ: np.ndarray) -> ColumnCoefs:
        size = len(self.column_basis)
        return ColumnCoefs(
            planes=planes.astype(np.int64),
            coefs=coefs_kXY,
            step=np.asarray(step, np.float32),
            basis=self.column_basis.reshape(size, size),
            mean=self.column_mean.reshape(size),
            covered=np.ascontiguousarray(covered_XYZ),
        )

    @override
    def listen(self, record: ColumnCoefs, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> StoredColumns:
        return StoredColumns(record, free)


class StoredColumns:
    """Makes log-probabilities of the columns that are asked for, of each once."""

    def __init__(self, record: ColumnCoefs, free: int) -> None:
        self.record, self.free = record, free
        batch, *_, self.height = record.covered.shape
        self.columns_of_frame = record.covered[0, ..., 0].numel()
        self._place_N = record.planes.new_full((batch * self.columns_of_frame,), -1)
        self._known_NZC = record.basis.new_empty((0, self.height, record.mean.shape[1] // self.height))

    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, float32 (V, C)."""
        place_V = self._places(index_V // self.height) * self.height + index_V % self.height
        return self._known_NZC.flatten(0, 1).index_select(0, place_V).log_softmax(-1)

    def columns(self, index_K: Tensor) -> Tensor:
        """Log-probabilities of columns by the BEV rule, float32 (K, C)."""
        place_K, covered_KZ = self._places(index_K), self.record.covered.flatten(0, 2)[index_K]
        known_KZC = self._known_NZC.index_select(0, place_K)
        return bev_log_probs(known_KZC.log_softmax(-1), self.free, covered_KZ)

    def covered(self, index: Tensor) -> Tensor:
        """Whether the teacher has modelled voxels, bool in the shape of `index`."""
        return self.record.covered.flatten()[index]

    def _places(self, index_N: Tensor) -> Tensor:
        """Where in `_known_NZC` columns stand; those that were never asked for are decoded."""
        wanted_N = torch.zeros_like(self._place_N, dtype=torch.bool).index_fill_(0, index_N, True)
        new_N = (wanted_N & (self._place_N < 0)).nonzero().squeeze(1)
        if len(new_N):
            self._place_N[new_N] = len(self._known_NZC) + torch.arange(len(new_N), device=new_N.device)
            self._known_NZC = torch.cat([self._known_NZC, self._decoded(new_N)])
        return self._place_N[index_N]

    def _decoded(self, index_N: Tensor) -> Tensor:
        """Logits of columns, whose positions rise, float32 (N, Z, C)."""
        edges = torch.arange(len(self.record.step) + 1, device=index_N.device) * self.columns_of_frame
        first, *later = torch.searchsorted(index_N, edges).tolist()
        decoded = []
        for frame, last in enumerate(later):
            inside_N = index_N[first:last] - frame * self.columns_of_frame
            decoded.append(decoded_columns(self.record, frame, inside_N))
            first = last
        return torch.cat(decoded).view(len(index_N), self.height, -1)


def decoded_columns(record: ColumnCoefs, frame: int, index_N: Tensor) -> Tensor:
    """Logits of columns of one frame of a batch, float32 (N, K) (docs/formulas.md 13.1).

    In float32 to the last digit, whatever precision the training has: coefficients have more digits than TF32.
    """
    coefs_kN = record.coefs[frame].flatten(1)[:, index_N].float()
    vectors_kK = record.basis[frame][record.planes[frame]] * record.step[frame]
    with torch.autocast(index_N.device.type, enabled=False), _all_digits():
        return torch.addmm(record.mean[frame], coefs_kN.T, vectors_kK)


@contextmanager
def _all_digits() -> Iterator[None]:
    """Matrix products of float32 without TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@compiled(nogil=True)
def _centred(log_probs_NZC, covered_NZ, mean_ZC):  # type: ignore[no-untyped-def]
    """Log-probabilities less their mean over the classes and the mean column; 0 where nothing is covered."""
    N, Z, C = log_probs_NZC.shape
    centred_NZC = np.zeros((N, Z, C), np.float32)
    for n in range(N):
        for z in range(Z):
            if covered_NZ[n, z]:
                total = np.float32(0)
                for c in range(C):
                    total += max(np.float32(log_probs_NZC[n, z, c]), _LEAST)
                middle = total / np.float32(C)
                for c in range(C):
                    value = max(np.float32(log_probs_NZC[n, z, c]), _LEAST)
                    centred_NZC[n, z, c] = value - middle - mean_ZC[z, c]
    return centred_NZC


@compiled(nogil=True)
def _rounded(coefs_KN, step):  # type: ignore[no-untyped-def]
    """Whole numbers of steps, int16; the finest step leaves them far from its ends (docs/formulas.md 13.2)."""
    K, N = coefs_KN.shape
    rounded_KN = np.empty((K, N), np.int16)
    for k in range(K):
        for n in range(N):
            rounded_KN[k, n] = np.int16(np.rint(coefs_KN[k, n] / step))
    return rounded_KN
