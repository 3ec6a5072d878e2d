"""A signal of a user's own, and a teacher who knows it: how high the highest occupied voxel of each column reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gaussian_teacher import RoadTeacher

from distill.errors import InputError
from distill.frame import GRID, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.signals import Signal, TeacherPrediction
from distill.signals.arrays import StoredArray, bit_planes


@dataclass(frozen=True)
class HeightMap(Record):
    """Metres above the ground, float32 (X, Y); NaN: nothing is there."""

    heights: Array = declared(GRID)


@dataclass(frozen=True)
class Heights(Signal):
    """In steps of a unit, metres."""

    name: ClassVar[str] = "heights"
    answers: ClassVar[frozenset[str]] = frozenset({"heights"})

    unit: float

    @classmethod
    def of(cls, teacher: Any, grid: VoxelGrid, classes: tuple[str, ...]) -> Heights:
        if not hasattr(teacher, "height_unit"):
            raise InputError("knows no heights: leave heights out of dump.signals")
        return cls(grid, classes, teacher.height_unit)

    def arrays(self) -> Sequence[StoredArray]:
        return (StoredArray("heights", "int16", self.grid.shape[:2], (1, 0), bit_planes(2)),)

    def encode(self, said: np.ndarray) -> dict[str, np.ndarray]:
        if np.nanmax(np.abs(said), initial=0) > 300:
            raise ValueError("a height of more than 300 m")
        steps = np.round(said / self.unit)
        return {"heights": np.where(np.isnan(steps), -1, steps)}

    def decode(self, read: Callable[[str], np.ndarray]) -> HeightMap:
        steps = np.ascontiguousarray(read("heights"))
        return HeightMap(heights=np.where(steps < 0, np.nan, steps * self.unit).astype(np.float32))

    def absent(self) -> HeightMap:
        return HeightMap(heights=np.full(self.grid.shape[:2], np.nan, np.float32))

    def listen(self, record: HeightMap, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> HeardHeights:
        return HeardHeights(record)


class HeardHeights:
    def __init__(self, record: HeightMap) -> None:
        self.heights_BXY = record.heights

    def heights(self, index_K: torch.Tensor) -> torch.Tensor:
        """Metres, float32 (K,)."""
        return self.heights_BXY.flatten()[index_K]


class HillTeacher(RoadTeacher):
    """Who knows the heights of what it predicts."""

    height_unit = 0.01

    def predict(self, batch: Frame) -> TeacherPrediction:
        prediction = super().predict(batch)
        occupied_BXYZ = prediction.voxel_log_probs_BXYZC.argmax(-1) != 17
        top_Z = torch.arange(1, self.grid.shape[2] + 1) * self.grid.voxel_size
        heights_BXY = torch.where(occupied_BXYZ, top_Z, -1.0).amax(-1)
        return prediction._replace(more={"heights": heights_BXY.masked_fill(heights_BXY < 0, torch.nan)})
