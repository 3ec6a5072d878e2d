"""Voxel log-probabilities on 256 levels.

A log-probability is rounded to the nearest of 256 levels, fine where a class is likely and coarse where it is not, like
the A-law of telephony (ITU-T G.711). The store holds the level itself, exact in float16, so that any zarr reader gets
log-probabilities; a loader carries its number, the uint8 *code*, and the device looks the level up.

Error bound. Let p be a distribution over C classes, T the temperature, s = p^(1/T), Z = sum_c s_c, and u_c = (error of
-ln p_c) / T. With phi(u) = exp u - 1 - u and ln y <= y - 1,

    KL_T(p || decoded) = ln sum_c (s_c / Z) exp u_c - sum_c (s_c / Z) u_c <= sum_c s_c phi(u_c) / Z.

If every class satisfies, for some mu,  s phi(u) <= b s - mu s^T + mu / C,  summing over classes (sum_c s_c^T = 1) gives
KL_T <= b: for every distribution and every combination of rounding errors. The levels below satisfy it with C = 18 and
the b of `MAX_KL`; tests/distill/signals/test_levels.py checks that. Probabilities under exp(-20), exact zeros too,
become exp(-20); the bound counts them.

Letters: B batch, X Y Z voxel axes, C classes, V voxels and K columns of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from distill.frame import FACT, GRID, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.signals.arrays import StoredArray, bit_planes
from distill.signals.levels import LevelTable
from distill.signals.signal import Reading, Signal, TeacherPrediction
from kernels.compiled import compiled
from kernels.stored_kl import Levels

# (step in nats, count): how the levels descend from 0; steps as wide as the bound permits, round where values abound.
_SEGMENTS = (
    (11 / 512, 12),
    (3 / 128, 135),
    (1 / 32, 42),
    (3 / 64, 15),
    (1 / 16, 15),
    (3 / 32, 8),
    (1 / 8, 11),
    (1 / 4, 6),
    (1 / 2, 6),
    (1, 3),
    (2, 2),
)
# T: the bound on KL_T(teacher || decoded) of a voxel, nats. Larger T would need levels below exp(-20).
MAX_KL = {1: 1e-4, 2: 1e-3}
# By how much the decoded probabilities of a voxel may miss 1: rounding explains less than half of it.
SUM_TOLERANCE = np.float32(0.05)


def _levels() -> np.ndarray:
    steps = np.concatenate([np.full(count, step) for step, count in _SEGMENTS])
    return (0.0 - np.concatenate([[0.0], np.cumsum(steps)])).astype(np.float32)


# The log-probability of each code, float32 (256,), falling; every one is a float16 number.
LOG_PROBS = _levels()
_FINE = LevelTable(LOG_PROBS)


@dataclass(frozen=True)
class VoxelCodes(Record):
    """What travels of the voxels.

    Attributes:
        codes: uint8 (X, Y, Z, C), positions in the table.
        table: float32 (256,), the log-probability of each code.
    """

    codes: Array = declared(GRID)
    table: Array = declared(FACT)


@dataclass(frozen=True)
class Voxels(Signal):
    """Log-probabilities of all voxels.

    Attributes:
        levels: the log-probability of each code, falling.
    """

    name: ClassVar[str] = "voxels"
    answers: ClassVar[frozenset[str]] = frozenset({"voxels"})

    levels: tuple[float, ...] = field(default=tuple(LOG_PROBS.tolist()), repr=False)

    @override
    def describe(self) -> dict[str, Any]:
        bounds = {f"T={temperature}": bound for temperature, bound in MAX_KL.items()}
        return {"max_kl_nats": bounds, **super().describe()}

    @override
    def arrays(self) -> Sequence[StoredArray]:
        shape = (*self.grid.shape, len(self.classes))
        # layer by layer, as neighbours along y and x are alike; the bit planes sort the classes, too
        return (StoredArray("voxel_logits", "float16", shape, (2, 0, 1, 3), bit_planes(2 * len(self.classes))),)

    @override
    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[np.ndarray]:
        """Log-probabilities, float32 (X, Y, Z, C)."""
        voxels_BXYZC, said_BXYZ = prediction.voxel_log_probs_BXYZC, prediction.said()
        if said_BXYZ is not None:
            voxels_BXYZC = voxels_BXYZC.masked_fill(~said_BXYZ.unsqueeze(-1), -math.log(len(self.classes)))
        return list(voxels_BXYZC.cpu().numpy())

    @override
    def encode(self, said: np.ndarray) -> dict[str, np.ndarray]:
        return {"voxel_logits": encode_voxels(said)}

    @override
    def decode(self, read: Reading) -> VoxelCodes:
        return VoxelCodes(codes=decode_codes(read("voxel_logits"), self._code_table), table=self._table)

    @override
    def absent(self) -> VoxelCodes:
        return VoxelCodes(codes=np.zeros((*self.grid.shape, len(self.classes)), np.uint8), table=self._table)

    @override
    def listen(self, record: VoxelCodes, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> StoredVoxels:
        return StoredVoxels(record)

    @cached_property
    def _table(self) -> np.ndarray:
        return np.array(self.levels, np.float32)

    @cached_property
    def _code_table(self) -> np.ndarray:
        return code_table(self._table)


class StoredVoxels:
    """Looks up the voxels that are asked for."""

    def __init__(self, record: VoxelCodes) -> None:
        self.codes_BXYZC: Tensor = record.codes
        self.table_B256: Tensor = record.table

    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, rounded one by one, float32 (V, C)."""
        return self.kept_voxels(index_V).logits

    def kept_voxels(self, index_V: Tensor) -> Levels:
        """The same as it is kept."""
        return Levels(self.codes_BXYZC.flatten(1, 2), self.table_B256, index_V)


def voxels_of(index_K: Tensor, height: int) -> Tensor:
    """The voxels (K, Z) of columns of a grid of this height."""
    return index_K.unsqueeze(1) * height + torch.arange(height, device=index_K.device)


def encode_voxels(log_probs_XYZC: np.ndarray) -> np.ndarray:
    """Round log-probabilities to the levels.

    Args:
        log_probs_XYZC: natural log-probabilities, float16 or float32; -inf is allowed.

    Returns:
        float16 (X, Y, Z, C); in memory layer by layer.

    Raises:
        ValueError: a value is NaN, or the classes of a voxel do not sum to one.
    """
    stored = LOG_PROBS.astype(np.float16).view(np.uint16)
    return _FINE.encode(log_probs_XYZC, stored, float(SUM_TOLERANCE)).view(np.float16)


def code_table(log_probs: np.ndarray) -> np.ndarray:
    """The code of each float16 bit pattern, uint8 (65536,), for the levels `log_probs` (256,)."""
    table = np.zeros(1 << 16, np.uint8)
    table[log_probs.astype(np.float16).view(np.uint16)] = np.arange(len(log_probs))
    return table


def decode_codes(levels_XYZC: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Turn levels (float16, best laid out as `encode_voxels` does) into uint8 codes with a `code_table`."""
    codes_XYZC = np.empty(levels_XYZC.shape, np.uint8)
    _decode(levels_XYZC.view(np.uint16).transpose(2, 0, 1, 3), table, codes_XYZC)
    return codes_XYZC


@compiled(nogil=True)
def _decode(bits_ZXYC, table, codes_XYZC):  # type: ignore[no-untyped-def]
    Z, X, Y, C = bits_ZXYC.shape
    for x in range(X):
        for z in range(Z):
            for y in range(Y):
                for c in range(C):
                    codes_XYZC[x, y, z, c] = table[bits_ZXYC[z, x, y, c]]
