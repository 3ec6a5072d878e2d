"""What a teacher says of BEV columns: probabilities by the rule of `distill.bev`.

Letters: B batch, X Y Z voxel axes, C classes, K columns of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor
from typing_extensions import override

from distill.bev import BEV_RULE, bev_log_probs
from distill.frame import GRID, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.signals.arrays import StoredArray, bit_planes, round_bits
from distill.signals.signal import Reading, Signal, TeacherPrediction
from distill.signals.voxels import LOG_PROBS, MAX_KL, SUM_TOLERANCE

# Significant bits of a stored probability.
PROBABILITY_BITS = 7
# The smallest stored probability: exp(-20), rounded.
LEAST_PROB = float(round_bits(np.exp(LOG_PROBS[-1:]), PROBABILITY_BITS)[0])
NOT_COVERED = 255  # the class of what the teacher has not modelled


class Columns(NamedTuple):
    """What a teacher says of the columns of a keyframe.

    Attributes:
        probs_XYC: float32.
        covered_XY: bool, where it has modelled any voxel.
    """

    probs_XYC: np.ndarray
    covered_XY: np.ndarray


@dataclass(frozen=True)
class BevProbs(Record):
    """What travels of the columns.

    Attributes:
        probs: float32 (X, Y, C).
    """

    probs: Array = declared(GRID)


@dataclass(frozen=True)
class Bev(Signal):
    """Probabilities of all columns.

    Attributes:
        rule: how they were derived from voxels.
    """

    name: ClassVar[str] = "bev"
    answers: ClassVar[frozenset[str]] = frozenset({"columns"})

    rule: str = BEV_RULE

    @override
    def describe(self) -> dict[str, Any]:
        bounds = {f"T={temperature}": bound for temperature, bound in MAX_KL.items()}
        return {**super().describe(), "significant_bits": PROBABILITY_BITS, "max_kl_nats": bounds}

    @override
    def arrays(self) -> Sequence[StoredArray]:
        x, y, _ = self.grid.shape
        return (
            StoredArray("bev_probs", "float32", (x, y, len(self.classes)), (2, 0, 1), bit_planes(4)),
            StoredArray("bev_semantics", "uint8", (x, y), (0, 1), bit_planes(1)),
        )

    @override
    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[Columns]:
        probs_BXYC, covered_BXYZ = column_log_probs(prediction, free).exp().cpu().numpy(), prediction.covered_BXYZ
        if covered_BXYZ is None:
            covered_BXY = np.ones(probs_BXYC.shape[:3], bool)
        else:
            covered_BXY = covered_BXYZ.any(-1).cpu().numpy()
        return [Columns(*of_one) for of_one in zip(probs_BXYC, covered_BXY, strict=True)]

    @override
    def encode(self, said: Columns) -> dict[str, np.ndarray]:
        probs_XYC = round_probs(said.probs_XYC)
        # of the rounded ones: rounding makes ties, and whoever reads both arrays must find the same class in them
        semantics_XY = np.where(said.covered_XY, probs_XYC.argmax(-1), NOT_COVERED)
        return {"bev_probs": probs_XYC, "bev_semantics": semantics_XY}

    @override
    def decode(self, read: Reading) -> BevProbs:
        return BevProbs(probs=np.ascontiguousarray(read("bev_probs")))

    @override
    def absent(self) -> BevProbs:
        return BevProbs(probs=np.zeros((*self.grid.shape[:2], len(self.classes)), np.float32))

    @override
    def listen(self, record: BevProbs, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> StoredColumns:
        return StoredColumns(record)


def column_log_probs(prediction: TeacherPrediction, free: int) -> Tensor:
    """Of whole columns, float32 (B, X, Y, C); uniform where the store keeps nothing of a column."""
    voxel_BXYZC, covered_BXYZ, *_ = prediction
    columns_BXYC = bev_log_probs(voxel_BXYZC, free, covered_BXYZ)
    if prediction.kept_BXYZ is None:
        return columns_BXYC
    return columns_BXYC.masked_fill(~prediction.kept_BXYZ.any(-1, keepdim=True), -math.log(voxel_BXYZC.shape[-1]))


class StoredColumns:
    """Looks up the columns that are asked for."""

    def __init__(self, record: BevProbs) -> None:
        self.probs_BXYC: Tensor = record.probs

    def columns(self, index_K: Tensor) -> Tensor:
        """Log-probabilities of columns, float32 (K, C)."""
        probs_KC = self.probs_BXYC.flatten(0, -2).index_select(0, index_K).float()
        return probs_KC.clamp_min(LEAST_PROB).log()  # frames that nobody teaches hold zeros


def round_probs(probs: np.ndarray) -> np.ndarray:
    """Round probabilities to `PROBABILITY_BITS`: float32 that compresses well, within `MAX_KL` of the teacher.

    The relative error is at most 1/128, so phi(u) < 4e-5 for every class (see `voxels`); smaller ones than `LEAST_PROB`
    become it.

    Raises:
        ValueError: a value is NaN or negative, or the classes (last axis) do not sum to one.
    """
    if not (np.all(probs >= 0) and np.allclose(probs.sum(-1), 1, rtol=0, atol=float(SUM_TOLERANCE))):
        raise ValueError("the BEV probabilities are no distributions over the classes")
    return round_bits(np.maximum(probs, LEAST_PROB, dtype=np.float32), PROBABILITY_BITS)
