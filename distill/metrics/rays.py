"""RayIoU (Liu et al., "Fully Sparse 3D Occupancy Prediction", ECCV 2024), exactly as its authors compute it.

Virtual LiDAR rays are cast through labels and prediction. A ray is right when both end in the same class and less than
1, 2 or 4 m apart (docs/formulas.md 3.4). Numbers agree with the published ones to the last digit as the types agree:
ray directions are float32, origins float64; ends are added and scaled to voxels in float64, by the voxel size rounded
to float32, and handed to the traversal as float32; the traversal itself is float64 (`kernels.ray_cast`); its distances
are rounded to float32, scaled to metres and subtracted in float32.

Letters: K keyframes of a scene, T origins, R rays, X Y Z voxel axes, C classes, D distance thresholds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.metrics.base import KeyframeMetric
from distill.metrics.conventions import percent
from distill.metrics.counting import Array, count_confusion
from kernels.ray_cast import ray_cast

THRESHOLDS = (1, 2, 4)  # metres
_MOST_ORIGINS = 8
_BORDER = 1.0  # metres: an origin this near to the side of the grid is left out


def ray_directions() -> np.ndarray:
    """The official rays: 39 pitches from -45 to 12.5 degrees x 360 azimuths, unit vectors, float32 (14040, 3)."""
    pitches = [-(math.pi / 2 - math.atan(k + 1)) for k in range(10)]
    while pitches[-1] < 0.21:
        pitches.append(pitches[-1] + (pitches[-1] - pitches[-2]))
    pitch, azimuth = np.meshgrid(pitches, np.deg2rad(np.arange(360)), indexing="ij")
    rays = np.stack([np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)], axis=-1)
    return rays.reshape(-1, 3).astype(np.float32)


def ray_origins(lidar2ego_K44: np.ndarray, ego2global_K44: np.ndarray, keyframe: int, grid: VoxelGrid) -> np.ndarray:
    """Where the rays of a keyframe begin: where the LiDAR is in the keyframes of its scene.

    Positions at least 1 m inside the sides of the grid are kept (|x|, |y| < 39 m on Occ3D's), and of more than 8, 8
    that are evenly spread in time.

    Args:
        lidar2ego_K44, ego2global_K44: poses of all keyframes of the scene in the order of time, float64.
        keyframe: the position of the keyframe in them.
        grid: the grid of the labels.

    Returns:
        float64 (T, 3) in the grid's frame, metres, 1 <= T <= 8.
    """
    lidar2global_K44 = ego2global_K44 @ lidar2ego_K44
    positions_K44 = np.linalg.inv(lidar2global_K44[keyframe]) @ lidar2global_K44
    positions_K3 = positions_K44[:, :3, 3].astype(np.float32)  # upstream's type
    positions_K3[keyframe] = 0
    if grid.frame == "ego":
        # one product at a time, as upstream: one of all positions rounds differently
        positions_K3 = np.stack([lidar2ego_K44[keyframe, :3] @ [*position, 1.0] for position in positions_K3])
    lower_2, upper_2 = np.array(grid.lower[:2]) + _BORDER, np.array(grid.upper[:2]) - _BORDER
    origins_T3 = positions_K3[((positions_K3[:, :2] > lower_2) & (positions_K3[:, :2] < upper_2)).all(1)]
    if len(origins_T3) > _MOST_ORIGINS:
        origins_T3 = origins_T3[np.round(np.linspace(0, len(origins_T3) - 1, _MOST_ORIGINS)).astype(int)]
    return origins_T3.astype(np.float64)


class RayIoU(KeyframeMetric):
    """RayIoU at 1, 2 and 4 m, over all classes but free.

        metric = RayIoU(OCC3D, OCC3D_CLASSES)
        metric.update(prediction, semantics, ray_origins(lidar2ego, ego2global, 0, OCC3D))  # for each keyframe
        metric.compute()["RayIoU"]

    Every voxel counts: there is no visibility mask, and what the labels did not observe is free. Rays that hit nothing
    in the labels are not counted; nor are those that hit `classes.ignored` there, which Occ3D does not have. Defined
    on Occ3D; on another grid it is the same computation, but no number that anybody publishes.

    Args:
        grid, classes: of labels and predictions.
        options: of `torchmetrics.Metric`.

    Attributes:
        rays_CC: int64, counted rays, [class in the labels, class in the prediction].
        hits_DC: int64, rays right within each threshold.
    """

    higher_is_better = True
    rays_CC: Tensor
    hits_DC: Tensor
    directions_R3: Tensor

    def __init__(self, grid: VoxelGrid, classes: ClassSet, **options: Any) -> None:
        super().__init__(**options)
        self.grid, self.classes = grid, classes
        self._add_counts("rays_CC", len(classes), len(classes))
        self._add_counts("hits_DC", len(THRESHOLDS), len(classes))
        self.register_buffer("directions_R3", torch.from_numpy(ray_directions()), persistent=False)

    def update(self, prediction_XYZ: Array, semantics_XYZ: Array, origins_T3: Array) -> None:
        """Cast the rays of one keyframe.

        Args:
            prediction_XYZ, semantics_XYZ: class ids of all voxels, uint8.
            origins_T3: where the rays begin, float64, metres in the grid's frame; see `ray_origins`.

        Raises:
            InputError: volumes of the wrong shape or type, or a prediction beyond the class set.
        """
        volumes = self._volumes(semantics_XYZ=semantics_XYZ, prediction_XYZ=prediction_XYZ)
        if tuple(volumes[0].shape) != self.grid.shape:
            raise InputError(
                f"labels and prediction are {tuple(volumes[0].shape)}, the grid {self.grid.name} is {self.grid.shape}: "
                "give RayIoU the grid they are on"
            )
        volumes_2XYZ = torch.stack(volumes)
        voxel_2R, metres_2R = self._cast(volumes_2XYZ, torch.as_tensor(origins_T3, device=self.device).double())
        semantics_R, prediction_R = volumes_2XYZ.flatten(1).gather(1, voxel_2R.long())
        kept_R = semantics_R != self.classes.free
        self.rays_CC += count_confusion(prediction_R, semantics_R, kept_R, self.classes)[0]
        error_R = (metres_2R[1] - metres_2R[0]).abs()
        for row, threshold in enumerate(THRESHOLDS):
            near_R = kept_R & (error_R < threshold)
            self.hits_DC[row] += count_confusion(prediction_R, semantics_R, near_R, self.classes)[0].diagonal()
        self.keyframes += 1

    def _cast(self, volumes_2XYZ: Tensor, origins_T3: Tensor) -> tuple[Tensor, Tensor]:
        """Voxel, and distance in metres, where each ray ends in the labels and in the prediction."""
        ends_TR3 = self.directions_R3 + origins_T3.unsqueeze(1)
        lower_3 = torch.tensor(self.grid.lower, dtype=torch.float64, device=self.device)
        voxel_size = float(np.float32(self.grid.voxel_size))
        start_T13, end_TR3 = (((at - lower_3) / voxel_size).float() for at in (origins_T3.unsqueeze(1), ends_TR3))
        voxel_2R, distance_2R = ray_cast(
            volumes_2XYZ != self.classes.free, start_T13.expand_as(end_TR3).reshape(-1, 3), end_TR3.reshape(-1, 3)
        )
        return voxel_2R, distance_2R * self.grid.voxel_size

    def compute(self) -> dict[str, Tensor]:
        """In percent, float64.

        Returns:
            "RayIoU@1", "RayIoU@2" and "RayIoU@4": mean over the classes that occur; "RayIoU": mean over these classes
            and the thresholds; "RayIoU per class": (D, C), NaN for free and for a class in neither labels nor
            prediction.
        """
        return ray_iou(self.rays_CC, self.hits_DC, self.classes)


def ray_iou(rays_CC: Tensor, hits_DC: Tensor, classes: ClassSet) -> dict[str, Tensor]:
    """What `RayIoU.compute` returns, of counts as `RayIoU` keeps them, with any leading axes of theirs."""
    union_DC = (rays_CC.sum(-1) + rays_CC.sum(-2)).unsqueeze(-2) - hits_DC
    iou_DC = percent(hits_DC, union_DC)
    iou_DC[..., classes.free] = torch.nan
    if classes.ignored < len(classes):
        iou_DC[..., classes.ignored] = torch.nan
    means = {f"RayIoU@{threshold}": iou_DC[..., row, :].nanmean(-1) for row, threshold in enumerate(THRESHOLDS)}
    return {"RayIoU": iou_DC.nanmean((-2, -1)), **means, "RayIoU per class": iou_DC}
