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
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from distill.bev import bev_log_probs
from distill.frame import FACT, FACTS, PLANES, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.signals.arrays import StoredArray, bit_planes, slice_by_slice
from distill.signals.divergence import TEMPERATURES, divergence, kl_array
from distill.signals.signal import CONSTANT, Reading, Signal, TeacherPrediction
from kernels.compiled import compiled
from kernels.stored_kl import Coefficients

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
    """What travels of the voxels: of few planes are the coefficients larger than a byte.

    Attributes:
        planes: int8 (k, X, Y), the low bytes of the coefficients; a coefficient is low + 256 high.
        high: int8 (h, X, Y), the high bytes of the first h planes; those of the others are 0.
        basis: float32 (k, Z, C), the vectors of the planes, as long as a step.
        mean: float32 (Z, C), of the columns of the teacher.
        covered: uint8 (Z / 8 and up, X, Y), of which voxels it says anything, a bit each, the lowest first.
    """

    planes: Array = declared(PLANES)
    high: Array = declared(PLANES)
    basis: Array = declared(FACTS)
    mean: Array = declared(FACT)
    covered: Array = declared(PLANES)


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
        return self._record(np.empty(0, np.intp), nothing, np.float32(0), np.zeros(self.grid.shape, bool))

    def _record(self, used: np.ndarray, coefs_kXY: np.ndarray, step: Any, covered_XYZ: np.ndarray) -> ColumnCoefs:
        low_kXY, high_kXY = _bytes(coefs_kXY)
        return ColumnCoefs(
            planes=low_kXY,
            high=high_kXY,
            basis=self.column_basis[used] * step,
            mean=self.column_mean,
            covered=_bits(covered_XYZ.transpose(2, 0, 1)),
        )

    @override
    def listen(self, record: ColumnCoefs, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> StoredColumns:
        return StoredColumns(record, free)


class StoredColumns:
    """Makes log-probabilities of the columns that are asked for, of each once."""

    def __init__(self, record: ColumnCoefs, free: int) -> None:
        self.record, self.free = record, free
        batch, _, *shape = record.covered.shape
        self.height, self.columns_of_frame = record.mean.shape[1], shape[0] * shape[1]
        self._place_N = record.covered.new_full((batch * self.columns_of_frame,), -1, dtype=torch.int64)
        self._known_NZC = record.mean.new_empty((0, *record.mean.shape[1:]))

    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, float32 (V, C)."""
        return self._logits(index_V).log_softmax(-1)

    def kept_voxels(self, index_V: Tensor) -> Coefficients:
        """The same as it is kept."""
        of_column = self.record.planes.flatten(2), self.record.high.flatten(2), self.record.basis, self.record.mean
        return Coefficients(*of_column, index_V, lambda: self._logits(index_V))

    def columns(self, index_K: Tensor) -> Tensor:
        """Log-probabilities of columns by the BEV rule, float32 (K, C)."""
        place_K, covered_KZ = self._places(index_K), self._covered.view(-1, self.height)[index_K]
        known_KZC = self._known_NZC.index_select(0, place_K)
        return bev_log_probs(known_KZC.log_softmax(-1), self.free, covered_KZ)

    def covered(self, index: Tensor) -> Tensor:
        """Whether the teacher has modelled voxels, bool in the shape of `index`."""
        return self._covered[index]

    @cached_property
    def _covered(self) -> Tensor:
        """Of all voxels, bool (B * X * Y * Z,)."""
        layer_Z = torch.arange(self.height, device=self.record.covered.device)
        bits_BXYZ = self.record.covered.movedim(1, -1)[..., layer_Z // 8] >> layer_Z % 8
        return (bits_BXYZ & 1).bool().flatten()

    def _logits(self, index_V: Tensor) -> Tensor:
        """Of voxels, float32 (V, C)."""
        place_V = self._places(index_V // self.height) * self.height + index_V % self.height
        return self._known_NZC.flatten(0, 1).index_select(0, place_V)

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
        edges = torch.arange(len(self.record.mean) + 1, device=index_N.device) * self.columns_of_frame
        first, *later = torch.searchsorted(index_N, edges).tolist()
        decoded = []
        for frame, last in enumerate(later):
            inside_N = index_N[first:last] - frame * self.columns_of_frame
            decoded.append(decoded_columns(self.record, frame, inside_N))
            first = last
        return torch.cat(decoded)


def decoded_columns(record: ColumnCoefs, frame: int, index_N: Tensor) -> Tensor:
    """Logits of columns of one frame of a batch, float32 (N, Z, C) (docs/formulas.md 13.1).

    In float32 to the last digit, whatever precision the training has: coefficients have more digits than TF32.
    """
    coefs_kN = record.planes[frame].flatten(1)[:, index_N].float()
    coefs_kN[: record.high.shape[1]] += 256 * record.high[frame].flatten(1)[:, index_N].float()
    basis_kZC, mean_ZC = record.basis[frame], record.mean[frame]
    with torch.autocast(index_N.device.type, enabled=False), _all_digits():
        return torch.addmm(mean_ZC.flatten(), coefs_kN.T, basis_kZC.flatten(1)).view(-1, *mean_ZC.shape)


@contextmanager
def _all_digits() -> Iterator[None]:
    """Matrix products of float32 without TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _bits(covered_ZXY: np.ndarray) -> np.ndarray:
    """8 layers a byte, uint8 (Z / 8 and up, X, Y); np.packbits takes eight times as long."""
    height, *shape = covered_ZXY.shape
    bits = np.zeros((-(-height // 8), *shape), np.uint8)
    for layer, covered_XY in enumerate(covered_ZXY):
        bits[layer // 8] += covered_XY * np.uint8(1 << layer % 8)
    return bits


def _bytes(coefs_kXY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low bytes, int8 (k, X, Y), and high ones, int8 (h, X, Y), up to the last plane that has any."""
    low_kXY = coefs_kXY.astype(np.int8)
    wide = np.append(0, 1 + np.flatnonzero((low_kXY != coefs_kXY).any((1, 2))))[-1]
    return low_kXY, ((coefs_kXY[:wide] - low_kXY[:wide]) >> 8).astype(np.int8)


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
