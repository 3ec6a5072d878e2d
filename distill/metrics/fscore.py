"""F-score of the geometry: how many voxels lie near a voxel of the other side (FlashOcc's; docs/formulas.md 3.3).

FlashOcc searches the nearest of all occupied voxel centres with a k-d tree. Within a fixed distance on a grid there are
but a few neighbours (18, and the voxel itself, for 0.6 m and voxels of 0.4 m), so looking at those gives the same
numbers.

Letters: X Y Z voxel axes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.grids import VoxelGrid
from distill.metrics.base import KeyframeMetric
from distill.metrics.conventions import percent
from distill.metrics.counting import Array

FLASHOCC_DISTANCE = 0.6  # metres
_EPSILON = 1e-8  # upstream's, in the harmonic mean
_UNIT = 2**40  # shares are added up as integers of this unit: exact, whatever the order


class FScore(KeyframeMetric):
    """Mean over keyframes of the harmonic mean of accuracy and completeness.

    Accuracy is the share of predicted occupied voxels with an occupied voxel of the labels nearer than `distance`;
    completeness is the same the other way round. Voxels outside the mask and voxels labelled `classes.ignored` are on
    neither side. A keyframe in which labels or prediction are all free scores 0 (upstream fails if it is the labels).

    Args:
        grid, classes: of labels and predictions.
        distance: metres between voxel centres, exclusive: `FLASHOCC_DISTANCE`.
        options: of `torchmetrics.Metric`.
    """

    higher_is_better = True
    sums_3: Tensor

    def __init__(self, grid: VoxelGrid, classes: ClassSet, distance: float, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes
        self.neighbours = neighbours(grid.voxel_size, distance)
        self._add_counts("sums_3", 3)

    def update(self, prediction_XYZ: Array, semantics_XYZ: Array, mask_XYZ: Array) -> None:
        """Score one keyframe.

        Args:
            prediction_XYZ, semantics_XYZ: class ids, uint8.
            mask_XYZ: bool, the voxels to count: `mask_camera`.

        Raises:
            InputError: volumes of different shapes or of the wrong type.
        """
        prediction_XYZ, semantics_XYZ, mask_XYZ = self._volumes(
            prediction_XYZ=prediction_XYZ, semantics_XYZ=semantics_XYZ, mask_XYZ=mask_XYZ
        )
        known_XYZ = mask_XYZ & (semantics_XYZ < len(self.classes)) & (semantics_XYZ != self.classes.ignored)
        predicted_XYZ = known_XYZ & (prediction_XYZ != self.classes.free)
        true_XYZ = known_XYZ & (semantics_XYZ != self.classes.free)
        accuracy, completeness = self._near(predicted_XYZ, true_XYZ), self._near(true_XYZ, predicted_XYZ)
        f_score = 2.0 / (1.0 / (accuracy + _EPSILON) + 1.0 / (completeness + _EPSILON))
        empty = not (predicted_XYZ.any() and true_XYZ.any())
        shares = (0.0, 0.0, 0.0) if empty else (f_score, accuracy, completeness)
        self.sums_3 += torch.tensor([round(share * _UNIT) for share in shares], device=self.device)
        self.keyframes += 1

    def _near(self, of_XYZ: Tensor, to_XYZ: Tensor) -> float:
        """The share of the voxels `of_XYZ` that have one of `to_XYZ` among their neighbours, 0 without any."""
        return int((of_XYZ & dilate(to_XYZ, self.neighbours)).sum()) / max(int(of_XYZ.sum()), 1)

    def compute(self) -> dict[str, Tensor]:
        """ "F-score", "accuracy" and "completeness", means over keyframes in percent, float64."""
        f_score, accuracy, completeness = percent(self.sums_3, self.keyframes) / _UNIT
        return {"F-score": f_score, "accuracy": accuracy, "completeness": completeness}


def neighbours(voxel_size: float, distance: float) -> list[tuple[int, int, int]]:
    """Offsets between voxels whose centres are nearer than `distance`, itself included."""
    reach = range(-math.ceil(distance / voxel_size), math.ceil(distance / voxel_size) + 1)
    offsets = itertools.product(reach, repeat=3)
    return [(x, y, z) for x, y, z in offsets if voxel_size * math.sqrt(x * x + y * y + z * z) < distance]


def dilate(occupied_XYZ: Tensor, offsets: list[tuple[int, int, int]]) -> Tensor:
    """Which voxels have an occupied one at one of the offsets, bool (X, Y, Z)."""
    pad = max(abs(component) for offset in offsets for component in offset)
    padded = torch.nn.functional.pad(occupied_XYZ, [pad] * 6)
    x_count, y_count, z_count = occupied_XYZ.shape
    reached_XYZ = torch.zeros_like(occupied_XYZ)
    for x, y, z in offsets:
        reached_XYZ |= padded[pad + x :, pad + y :, pad + z :][:x_count, :y_count, :z_count]
    return reached_XYZ
