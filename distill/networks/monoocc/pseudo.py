"""Pseudo-voxels: where depth says that something is (docs/formulas.md 11.1).

Letters: B batch, N cameras, H W image cells, P points, X Y Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.grids import VoxelGrid
from distill.networks.lift import pixel_rays


def depth_voxels(depth_BNHW: Tensor, stride: float, intrinsics: Tensor, cam2ego: Tensor, grid: VoxelGrid) -> Tensor:
    """The voxels that hold the point of an image cell of any camera, bool (B, X, Y, Z).

    Args:
        depth_BNHW: metres along the optical axis; 0: nothing is known.
        stride: image pixels along the edge of a cell, whose centre is looked along.
        intrinsics: (B, N, 3, 3) of the images.
        cam2ego: (B, N, 4, 4), camera to the frame of the grid.
        grid: the voxels; points outside are dropped.
    """
    height, width = depth_BNHW.shape[-2:]
    rays_BNHW3, origin_BN3 = pixel_rays(height, width, stride, intrinsics, cam2ego)
    points_BNHW3 = origin_BN3[:, :, None, None] + rays_BNHW3 * depth_BNHW.unsqueeze(-1)
    return _marked([points[depth > 0] for points, depth in zip(points_BNHW3, depth_BNHW, strict=True)], grid)


def point_voxels(points: Sequence[Tensor], grid: VoxelGrid) -> Tensor:
    """The voxels that hold a LiDAR point, bool (B, X, Y, Z): what depth without error says.

    Args:
        points: (P, 3 or more) of each frame, in the frame of the grid.
        grid: the voxels; points outside are dropped.
    """
    return _marked([xyzi[:, :3] for xyzi in points], grid)


def _marked(points: Sequence[Tensor], grid: VoxelGrid) -> Tensor:
    marked_BXYZ = torch.zeros(len(points), *grid.shape, dtype=torch.bool, device=points[0].device)
    shape_3 = torch.tensor(grid.shape, device=points[0].device)
    for marked_XYZ, xyz_P3 in zip(marked_BXYZ, points, strict=True):
        index_P3 = ((xyz_P3 - xyz_P3.new_tensor(grid.lower)) / grid.voxel_size).floor().long()
        index_P3 = index_P3[((index_P3 >= 0) & (index_P3 < shape_3)).all(1)]
        marked_XYZ[index_P3.unbind(1)] = True
    return marked_BXYZ


def from_lidar_axes(volume_BXYZ: Tensor) -> Tensor:
    """A volume of upstream's nuScenes files, whose axes are the LiDAR's, turned to the ego frame's.

    A quarter turn alone, as upstream reads them: the LiDAR stays at the origin of the ego frame.

    Args:
        volume_BXYZ: of as many voxels along x as along y, with any leading axes.
    """
    return volume_BXYZ.flip(-3).transpose(-3, -2)
