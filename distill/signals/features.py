"""A teacher's map of BEV features, in 256 steps per channel (docs/formulas.md 4.22).

Letters: B batch, C channels, X Y cells of the map.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
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
        codes: uint8 (X, Y, C) or (X, Y, Z, C), how many steps a value is above the smallest of its channel.
        scales: float32 (C, 2), that smallest value, and the step.
    """

    codes: Array = declared(GRID)
    scales: Array = declared(FACT)


@dataclass(frozen=True)
class Features(Signal):
    """The map "bev" of the teacher's network, at its own stride.

    Attributes:
        channels: of a cell.
        stride: voxels along the edges of a cell.
    """

    name: ClassVar[str] = "features"
    answers: ClassVar[frozenset[str]] = frozenset({"features"})
    comparable: ClassVar[bool] = False
    kept_as: ClassVar[str] = "bev"
    called: ClassVar[str] = "BEV features"
    axes: ClassVar[int] = 2  # of the grid

    channels: int
    stride: int

    @override
    @classmethod
    def of(cls, teacher: Any, grid: VoxelGrid, classes: tuple[str, ...]) -> Self:
        kind: FeatureKind | None = getattr(teacher, cls.name, None)
        if kind is None:
            raise InputError(f"has no map of {cls.called}: leave {cls.name} out of dump.signals")
        if any(side % kind.stride for side in grid.shape[: cls.axes]):
            sides = " x ".join(map(str, grid.shape[: cls.axes]))
            raise InputError(
                f"has {cls.called} of stride {kind.stride}, which does not divide the grid of {sides}: leave "
                f"{cls.name} out of dump.signals"
            )
        return cls(grid, classes, *kind)

    @property
    def cells(self) -> tuple[int, ...]:
        """Sides of the map."""
        return tuple(side // self.stride for side in self.grid.shape[: self.axes])

    @override
    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "max_error_steps": MAX_ERROR_STEPS}

    @override
    def arrays(self) -> Sequence[StoredArray]:
        by_channel = (self.axes, *range(self.axes))  # as neighbours are alike
        return (
            StoredArray(f"{self.kept_as}_features", "uint8", (*self.cells, self.channels), by_channel, bit_planes(1)),
            StoredArray(f"{self.kept_as}_feature_scales", "float32", (self.channels, 2), (1, 0), bit_planes(4)),
        )

    @override
    def encode(self, said: np.ndarray) -> dict[str, np.ndarray]:
        if said.shape != (self.channels, *self.cells):
            raise ValueError(f"its {self.called} have the shape {said.shape}, not {(self.channels, *self.cells)}")
        codes, scales_C2 = encode_features(said)
        return {f"{self.kept_as}_features": codes, f"{self.kept_as}_feature_scales": scales_C2}

    @override
    def decode(self, read: Reading) -> FeatureCodes:
        return FeatureCodes(codes=read(f"{self.kept_as}_features"), scales=read(f"{self.kept_as}_feature_scales"))

    @override
    def listen(self, record: FeatureCodes, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> Any:
        return SimpleNamespace(**{self.name: StoredFeatures(record, self.stride)})


@dataclass(frozen=True)
class VoxelFeatures(Features):
    """The map "voxels" of the teacher's network, such as MonoOcc's, at its own stride."""

    name: ClassVar[str] = "voxel_features"
    answers: ClassVar[frozenset[str]] = frozenset({"voxel_features"})
    kept_as: ClassVar[str] = "voxel"
    called: ClassVar[str] = "voxel features"
    axes: ClassVar[int] = 3


class StoredFeatures:
    """Makes numbers of codes, once."""

    def __init__(self, record: FeatureCodes, stride: int) -> None:
        self.record, self.stride = record, stride

    def __call__(self) -> FeatureMap:
        """The map, float32 (B, C, X, Y) or (B, C, X, Y, Z); zeros of frames that nobody teaches."""
        return self._map

    @cached_property
    def _map(self) -> FeatureMap:
        codes, scales_BC2 = self.record.codes, self.record.scales
        over_cells = (slice(None), *[None] * (codes.ndim - 2))
        lowest, step = (part_BC[over_cells] for part_BC in scales_BC2.unbind(-1))
        return FeatureMap((lowest + step * codes).movedim(-1, 1), "grid", self.stride)


def encode_features(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round features to 256 steps between the smallest and the largest value of each channel.

    Args:
        features: finite, of any floating-point type, (C, X, Y) or (C, X, Y, Z).

    Returns:
        Codes, uint8 (X, Y, C) or (X, Y, Z, C), and the smallest value and the step of each channel, float32 (C, 2).

    Raises:
        ValueError: not all are numbers.
    """
    features_CK = features.astype(np.float32).reshape(len(features), -1)
    lowest_C, highest_C = features_CK.min(1), features_CK.max(1)
    with np.errstate(over="ignore", invalid="ignore"):
        step_C = (highest_C - lowest_C) / np.float32(255)
    if not np.isfinite(step_C).all():
        raise ValueError("its features are not all finite numbers")
    divisor_C = np.where(step_C > 0, step_C, 1)  # of a channel that is the same everywhere
    codes_CK = np.rint((features_CK - lowest_C[:, None]) / divisor_C[:, None]).astype(np.uint8)
    return np.moveaxis(codes_CK.reshape(features.shape), 0, -1), np.stack([lowest_C, step_C], 1)
