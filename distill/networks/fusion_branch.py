"""A branch that exists in training alone: LiDAR fused with a student's BEV features at several scales, a head for each.

2DPASS (Yan et al. 2022; docs/formulas.md 4.30) read for occupancy: there images help a LiDAR network, here LiDAR helps
a camera network.

Letters: B batch, C channels, P points of the whole batch, X Y Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.classes import ClassSet
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.networks.blocks.head import ChannelToHeight
from distill.networks.blocks.layers import ResidualBlock, conv_norm_act
from distill.networks.fusion import PointEncoder
from distill.networks.prediction import FeatureMap


class FusionBranch(nn.Module):
    """LiDAR points and BEV features of a student -> voxel logits of every scale.

    At scale l both lie in BEV cells 2^l times as large as the student's, and a head of its own makes voxels of them.

    Args:
        student_channels: channels of the student's BEV features.
        bev_stride: voxel columns along the edge of one of its BEV cells.
        point_channels: features per flat voxel of points, see `PointEncoder`.
        slices: flat voxels per column.
        channels: of LiDAR and fused features in BEV.
        head_channels: of each voxel column before the last layer.
        scales: how many.
        grid: the voxels.
        classes: the classes.

    Raises:
        InputError: the grid cannot be divided into BEV cells of the coarsest scale.
    """

    def __init__(
        self,
        student_channels: int,
        bev_stride: int,
        point_channels: int,
        slices: int,
        channels: int,
        head_channels: int,
        scales: int,
        grid: VoxelGrid,
        classes: ClassSet,
    ) -> None:
        super().__init__()
        strides = [bev_stride * 2**level for level in range(scales)]
        if any(count % strides[-1] for count in grid.shape[:2]):
            raise InputError(
                f"a fusion branch of scales={scales} on BEV cells of {bev_stride} voxel columns ends with cells of "
                f"{strides[-1]}, which do not divide {grid.shape[0]} x {grid.shape[1]} columns: use fewer scales"
            )
        self.shape = (student_channels, grid.shape[0] // bev_stride, grid.shape[1] // bev_stride)
        self.points = PointEncoder(None, 4 * point_channels, point_channels, slices, grid)
        self.stem = conv_norm_act(self.points.out_channels, channels, 3, bev_stride)
        self.stages = nn.ModuleList(ResidualBlock(channels, channels, stride=2) for _ in strides[1:])
        self.fusions = nn.ModuleList(GatedFusion(student_channels, channels, channels) for _ in strides)
        self.heads = nn.ModuleList(ChannelToHeight(channels, head_channels, s, grid, classes) for s in strides)

    def forward(self, points: Sequence[Tensor], bev: FeatureMap) -> list[Tensor]:
        """Logits (B, X, Y, Z, C) of each scale, the finest first.

        Args:
            points: (P_b, 4) of each frame, see `Frame.points`; there may be none.
            bev: the student's.

        Raises:
            InputError: its features are not as large as was said.
        """
        if bev.values.shape[1:] != self.shape:
            raise InputError(
                f"the fusion branch is made for BEV features (C, X, Y) of {self.shape}, the student has "
                f"{tuple(bev.values.shape[1:])}: set student_channels and bev_stride of the teacher to the student's"
            )
        sample_P = torch.cat([torch.full_like(xyzi[:, 0], b, dtype=torch.int64) for b, xyzi in enumerate(points)])
        lidar_BCXY = self.stem(self.points(torch.cat([*points]), None, sample_P, len(points)))
        student_BCXY, logits = bev.values, []
        for level, (fuse, head) in enumerate(zip(self.fusions, self.heads, strict=True)):
            if level:
                lidar_BCXY, student_BCXY = self.stages[level - 1](lidar_BCXY), F.avg_pool2d(student_BCXY, 2)
            fused_BXYC = fuse(student_BCXY.permute(0, 2, 3, 1), lidar_BCXY.permute(0, 2, 3, 1))
            logits.append(head(fused_BXYC.permute(0, 3, 1, 2)))
        return logits


class GatedFusion(nn.Module):
    """Features of a student and of another sensor as one: f = ReLU(W1 [o; ReLU(W s)]), gated by itself.

    The learner W lies between them, lest what the other sensor asks for overwrite the student's features.

    Args:
        student_channels: of the student's features s.
        other_channels: of the other sensor's features o.
        channels: of the result.
    """

    def __init__(self, student_channels: int, other_channels: int, channels: int) -> None:
        super().__init__()
        self.learner = nn.Linear(student_channels, student_channels)
        self.mix = nn.Linear(other_channels + student_channels, channels)
        self.gate = nn.Linear(channels, channels)

    def forward(self, student: Tensor, other: Tensor) -> Tensor:
        """(..., student_channels) and (..., other_channels) -> (..., channels), not negative."""
        mixed = self.mix(torch.cat([other, self.learner(student).relu()], -1))
        return (mixed * self.gate(mixed).sigmoid()).relu()
