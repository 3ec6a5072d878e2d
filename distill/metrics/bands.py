"""mIoU and geometric IoU by distance from the vehicle and by height.

Letters: X Y Z voxel axes, G bands, C classes (label, then prediction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.metrics.base import KeyframeMetric
from distill.metrics.conventions import Convention
from distill.metrics.counting import Array, count_confusion

_NONE = 255  # the band of a voxel that is in none


@dataclass(frozen=True)
class Bands:
    """Groups of voxels of one grid that do not overlap.

    Attributes:
        name: what they divide by, "distance" or "height".
        labels: the name of each band, for example "10 to 20 m".
        band_XYZ: uint8, the band of each voxel; 255 = none.
    """

    name: str
    labels: tuple[str, ...]
    band_XYZ: np.ndarray


def distance_bands(grid: VoxelGrid, edges: Sequence[float]) -> Bands:
    """Bands by the horizontal distance of a voxel's centre from the origin of the grid's frame.

    The origin is the vehicle on an ego grid and the LiDAR, about a metre away, on a LiDAR grid.

    Args:
        grid: the grid.
        edges: metres, growing; a band reaches from one edge to just below the next.
    """
    centres_XYZ3 = grid.centres()
    return _bands("distance", np.hypot(centres_XYZ3[..., 0], centres_XYZ3[..., 1]), edges)


def height_bands(grid: VoxelGrid, edges: Sequence[float]) -> Bands:
    """Bands by the height of a voxel's centre above the flat road (`grid.ground`), the same on every grid.

    Args:
        grid: the grid.
        edges: metres above the road, growing; a band reaches from one edge to just below the next.
    """
    return _bands("height", grid.centres()[..., 2] - grid.ground, edges)


def _bands(name: str, value_XYZ: np.ndarray, edges: Sequence[float]) -> Bands:
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise InputError(f"{name} bands {list(edges)}: give at least two edges, in growing order")
    band_XYZ = np.searchsorted(np.asarray(edges, dtype=np.float64), value_XYZ, side="right") - 1
    count = len(edges) - 1
    labels = tuple(_label(low, high) for low, high in pairwise(edges))
    return Bands(name, labels, np.where((band_XYZ >= 0) & (band_XYZ < count), band_XYZ, _NONE).astype(np.uint8))


def _label(low: float, high: float) -> str:
    if np.isinf(low) or np.isinf(high):
        return f"below {high:g} m" if np.isinf(low) else f"{low:g} m and more"
    return f"{low:g} to {high:g} m"


class BandScore(KeyframeMetric):
    """One confusion matrix for each band, scored by one convention.

    Args:
        convention: gives classes and averages.
        bands: of the grid of labels and predictions.
        options: of `torchmetrics.Metric`.

    Attributes:
        confusion_GCC: int64 voxel counts, [band, label, prediction].
    """

    higher_is_better = True
    confusion_GCC: Tensor
    band_XYZ: Tensor

    def __init__(self, convention: Convention, bands: Bands, **options: Any) -> None:
        super().__init__(**options)
        self.convention, self.bands = convention, bands
        classes = len(convention.classes)
        self._add_counts("confusion_GCC", len(bands.labels), classes, classes)
        self.register_buffer("band_XYZ", torch.from_numpy(bands.band_XYZ), persistent=False)

    def update(self, prediction_XYZ: Array, semantics_XYZ: Array, mask_XYZ: Array) -> None:
        """Count the voxels of one keyframe.

        Args:
            prediction_XYZ, semantics_XYZ: class ids, uint8.
            mask_XYZ: bool, the voxels to count.

        Raises:
            InputError: volumes of the wrong shape or type, or a prediction beyond the class set.
        """
        prediction_XYZ, semantics_XYZ, mask_XYZ, band_XYZ = self._volumes(
            prediction_XYZ=prediction_XYZ, semantics_XYZ=semantics_XYZ, mask_XYZ=mask_XYZ, band_XYZ=self.band_XYZ
        )
        self.confusion_GCC += count_confusion(
            prediction_XYZ, semantics_XYZ, mask_XYZ, self.convention.classes, band_XYZ, len(self.bands.labels)
        )
        self.keyframes += 1

    def compute(self) -> dict[str, Tensor]:
        """By band, in the order of its labels.

        Returns:
            "<name> mIoU" and "<name> geometric IoU", float64 (G,), and "<name> IoU per class", float64 (G, C), in
            percent; "<name> voxels", int64 (G,), how many were counted.
        """
        score, name = self.convention.score(self.confusion_GCC), self.bands.name
        return {
            f"{name} mIoU": score.miou,
            f"{name} geometric IoU": score.geometric_iou,
            f"{name} IoU per class": score.per_class_iou,
            f"{name} voxels": self.confusion_GCC.sum((1, 2)),
        }
