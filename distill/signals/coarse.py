"""Log-probabilities of voxels and columns on coarse levels: of any teacher, and small where few voxels are kept.

Letters: B batch, X Y Z voxel axes, C classes, V voxels and K columns of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from typing_extensions import override

from distill.bev import BEV_RULE
from distill.frame import FACT, PLANES, Array, Frame, Record, declared
from distill.signals.arrays import StoredArray, repeats
from distill.signals.bev import column_log_probs
from distill.signals.columns import CoveredVoxels
from distill.signals.divergence import divergence, kl_array
from distill.signals.levels import BEV_STEP, MAX_BEV_KL, MAX_VOXEL_KL, VOXEL_STEP, LevelTable, coarse_levels
from distill.signals.signal import Reading, Signal, TeacherPrediction
from kernels.stored_kl import Levels

_VOXELS, _BEV = LevelTable(coarse_levels(VOXEL_STEP)), LevelTable(coarse_levels(BEV_STEP))


@dataclass(frozen=True)
class LayerCodes(Record):
    """What travels of the voxels, or of the columns as one layer.

    Attributes:
        codes: uint8 (Z, X, Y, C), positions in the table.
        table: float32 (L,), the log-probability of each code.
    """

    codes: Array = declared(PLANES)
    table: Array = declared(FACT)


@dataclass(frozen=True)
class LevelVoxels(Signal):
    """Log-probabilities of all voxels.

    Attributes:
        levels: the log-probability of each code, falling.
    """

    name: ClassVar[str] = "voxels"
    answers: ClassVar[frozenset[str]] = frozenset({"voxels"})

    levels: tuple[float, ...] = field(default=tuple(_VOXELS.log_probs.tolist()), repr=False)

    @override
    def describe(self) -> dict[str, Any]:
        return {"max_kl_nats": _bounds(MAX_VOXEL_KL), **super().describe()}

    @override
    def arrays(self) -> Sequence[StoredArray]:
        shape = (*self.grid.shape, len(self.classes))
        return (
            # layer by layer, as neighbours along y and x are alike
            StoredArray("voxel_codes", "uint8", shape, (2, 0, 1, 3), repeats(1)),
            kl_array(),
        )

    @override
    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[CoveredVoxels]:
        return CoveredVoxels.of(prediction)

    @override
    def encode(self, said: CoveredVoxels) -> dict[str, np.ndarray]:
        codes_XYZC = _encoded(_VOXELS, said.log_probs_XYZC)
        teacher_VC = np.ascontiguousarray(said.log_probs_XYZC, np.float32).reshape(-1, len(self.classes))
        decoded_VC = self._table[codes_XYZC].reshape(teacher_VC.shape)
        kl_23 = divergence(teacher_VC, decoded_VC, said.covered_XYZ.reshape(-1))
        return {"voxel_codes": codes_XYZC * said.covered_XYZ[..., None], "voxel_kl": kl_23}

    @override
    def decode(self, read: Reading) -> LayerCodes:
        return LayerCodes(codes=read("voxel_codes").transpose(2, 0, 1, 3), table=self._table)

    @override
    def absent(self) -> LayerCodes:
        x, y, z = self.grid.shape
        return LayerCodes(codes=np.zeros((z, x, y, len(self.classes)), np.uint8), table=self._table)

    @override
    def listen(self, record: LayerCodes, frame: Frame, grid: Any, free: int, asked: Set[str]) -> StoredLayers:
        return StoredLayers(record)

    @cached_property
    def _table(self) -> np.ndarray:
        return np.array(self.levels, np.float32)


class StoredLayers:
    """Looks up the voxels or columns that are asked for."""

    def __init__(self, record: LayerCodes) -> None:
        self.codes_BZXYC: Tensor = record.codes
        self.table_BL: Tensor = record.table

    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, rounded one by one, float32 (V, C)."""
        return self.kept_voxels(index_V).logits

    def kept_voxels(self, index_V: Tensor) -> Levels:
        """The same as it is kept."""
        return Levels(self.codes_BZXYC.flatten(2, 3).transpose(1, 2), self.table_BL, index_V)

    columns, kept_columns = voxels, kept_voxels  # of one layer


@dataclass(frozen=True)
class LevelBev(Signal):
    """Log-probabilities of all columns.

    Attributes:
        rule: how they were derived from voxels.
        levels: the log-probability of each code, falling.
    """

    name: ClassVar[str] = "bev"
    answers: ClassVar[frozenset[str]] = frozenset({"columns"})

    rule: str = BEV_RULE
    levels: tuple[float, ...] = field(default=tuple(_BEV.log_probs.tolist()), repr=False)

    @override
    def describe(self) -> dict[str, Any]:
        return {"max_kl_nats": _bounds(MAX_BEV_KL), **super().describe()}

    @override
    def arrays(self) -> Sequence[StoredArray]:
        shape = (*self.grid.shape[:2], len(self.classes))
        return (StoredArray("bev_codes", "uint8", shape, (2, 0, 1), repeats(1)),)

    @override
    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[np.ndarray]:
        """Log-probabilities, float32 (X, Y, C); uniform where nothing is covered."""
        return list(column_log_probs(prediction, free).cpu().numpy())

    @override
    def encode(self, said: np.ndarray) -> dict[str, np.ndarray]:
        return {"bev_codes": _encoded(_BEV, said[:, :, None])[:, :, 0]}

    @override
    def decode(self, read: Reading) -> LayerCodes:
        return LayerCodes(codes=np.ascontiguousarray(read("bev_codes"))[None], table=np.array(self.levels, np.float32))

    @override
    def listen(self, record: LayerCodes, frame: Frame, grid: Any, free: int, asked: Set[str]) -> StoredLayers:
        return StoredLayers(record)


def _encoded(table: LevelTable, log_probs_XYZC: np.ndarray) -> np.ndarray:
    """Codes; the teacher's rounding explains less than half of what decoded probabilities may miss 1 by."""
    codes = np.arange(len(table.log_probs), dtype=np.uint8)
    return table.encode(log_probs_XYZC, codes, 2 * float(np.expm1(-table.log_probs[1] / 2)))


def _bounds(bounds: Mapping[int, float]) -> dict[str, float]:
    return {f"T={temperature}": bound for temperature, bound in bounds.items()}
