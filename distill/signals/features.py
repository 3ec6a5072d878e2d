"""A teacher's map of BEV features, in 256 steps per channel (docs/formulas.md 4.22).

Letters: B batch, C channels, X Y cells of the map.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from typing_extensions import override

from distill.errors import InputError
from distill.frame import FACT, GRID, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.networks.prediction import FeatureKind, FeatureMap
from distill.signals.arrays import StoredArray, bit_planes
from distill.signals.signal import Reading, Signal

MAX_ERROR_STEPS = 0.5  # of a stored value, beside the rounding of float32


@dataclass(frozen=True)
class FeatureCodes(Record):
    """What travels of the map.

    Attributes:
        codes: uint8 (X, Y, C), how many steps a value is above the smallest of its channel.
        scales: float32 (C, 2), that smallest value, and the step.
    """

    codes: Array = declared(GRID)
    scales: Array = declared(FACT)


@dataclass(frozen=True)
class Features(Signal):
    """The map "bev" of the teacher's network, at its own stride.

    Attributes:
        channels: of a cell.
        stride: voxel columns along the edge of a cell.
    """

    name: ClassVar[str] = "features"
    answers: ClassVar[frozenset[str]] = frozenset({"features"})
    comparable: ClassVar[bool] = False

    channels: int
    stride: int

    @override
    @classmethod
    def of(cls, teacher: Any, grid: VoxelGrid, classes: tuple[str, ...]) -> Self:
        kind: FeatureKind | None = getattr(teacher, "features", None)
        if kind is None:
            raise InputError("has no map of BEV features: leave features out of dump.signals")
        if any(side % kind.stride for side in grid.shape[:2]):
            raise InputError(
                f"has BEV features of stride {kind.stride}, which does not divide the grid of {grid.shape[0]} x "
                f"{grid.shape[1]} columns: leave features out of dump.signals"
            )
        return cls(grid, classes, *kind)

    @property
    def cells(self) -> tuple[int, int]:
        """X and Y of the map."""
        return self.grid.shape[0] // self.stride, self.grid.shape[1] // self.stride

    @override
    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "max_error_steps": MAX_ERROR_STEPS}

    @override
    def arrays(self) -> Sequence[StoredArray]:
        return (
            # channel by channel, as neighbours are alike
            StoredArray("bev_features", "uint8", (*self.cells, self.channels), (2, 0, 1), bit_planes(1)),
            StoredArray("bev_feature_scales", "float32", (self.channels, 2), (1, 0), bit_planes(4)),
        )

    @override
    def encode(self, said: np.ndarray) -> dict[str, np.ndarray]:
        if said.shape != (self.channels, *self.cells):
            raise ValueError(f"its BEV features have the shape {said.shape}, not {(self.channels, *self.cells)}")
        codes_XYC, scales_C2 = encode_features(said)
        return {"bev_features": codes_XYC, "bev_feature_scales": scales_C2}

    @override
    def decode(self, read: Reading) -> FeatureCodes:
        return FeatureCodes(codes=read("bev_features"), scales=read("bev_feature_scales"))

    @override
    def listen(self, record: FeatureCodes, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> StoredFeatures:
        return StoredFeatures(record, self.stride)


class StoredFeatures:
    """Makes numbers of codes, once."""

    def __init__(self, record: FeatureCodes, stride: int) -> None:
        self.record, self.stride = record, stride

    def features(self) -> FeatureMap:
        """The map, float32 (B, C, X, Y); zeros of frames that nobody teaches."""
        return self._map

    @cached_property
    def _map(self) -> FeatureMap:
        lowest_BC, step_BC = self.record.scales.unbind(-1)
        values_BXYC = lowest_BC[:, None, None] + step_BC[:, None, None] * self.record.codes
        return FeatureMap(values_BXYC.permute(0, 3, 1, 2), "grid", self.stride)


def encode_features(features_CXY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round features to 256 steps between the smallest and the largest value of each channel.

    Args:
        features_CXY: finite, of any floating-point type.

    Returns:
        Codes, uint8 (X, Y, C), and the smallest value and the step of each channel, float32 (C, 2).

    Raises:
        ValueError: not all are numbers.
    """
    features_CXY = features_CXY.astype(np.float32)
    lowest_C, highest_C = features_CXY.min((1, 2)), features_CXY.max((1, 2))
    with np.errstate(over="ignore", invalid="ignore"):
        step_C = (highest_C - lowest_C) / np.float32(255)
    if not np.isfinite(step_C).all():
        raise ValueError("its BEV features are not all finite numbers")
    divisor_C = np.where(step_C > 0, step_C, 1)  # of a channel that is the same everywhere
    codes_CXY = np.rint((features_CXY - lowest_C[:, None, None]) / divisor_C[:, None, None])
    return codes_CXY.astype(np.uint8).transpose(1, 2, 0), np.stack([lowest_C, step_C], 1)
