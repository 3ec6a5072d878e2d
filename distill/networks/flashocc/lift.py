"""FlashOcc's lift: image features to BEV through a depth distribution (docs/formulas.md 9.3).

Letters: B batch, N cameras, D depth bins, H W image cells, Y X BEV cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.grids import VoxelGrid
from distill.networks.flashocc.depth_net import CameraAwareDepthNet
from distill.networks.flashocc.rig import Rig
from distill.networks.prediction import DepthBins, Spacing
from kernels.bev_pool import bev_pool


class Lift(nn.Module):
    """Depth and context by one 1x1 convolution; what falls into a BEV cell is summed, in one slab in z.

    Args:
        in_channels: of the image features.
        channels: of the context, and of the BEV features.
        depth_range: (lower, upper) of the depth bins, metres along the optical axis.
        depth_bins: their number.
        grid: the voxels, whose columns are the BEV cells.
    """

    spacing: Spacing = "linear"
    depth_D: Tensor
    lower_3: Tensor
    cell_3: Tensor

    def __init__(
        self, in_channels: int, channels: int, depth_range: tuple[float, float], depth_bins: int, grid: VoxelGrid
    ) -> None:
        super().__init__()
        self.depth_range = (float(depth_range[0]), float(depth_range[1]))
        self.grid = grid
        self.split, self.bev_shape = (depth_bins, channels), (grid.shape[1], grid.shape[0])
        self.depth_net = self._depth_net(in_channels)
        self.register_buffer("depth_D", self._depths(), persistent=False)
        self.register_buffer("lower_3", torch.tensor(grid.lower, dtype=torch.float32), persistent=False)
        cell_3 = torch.tensor([1, 1, grid.shape[2]]) * grid.voxel_size
        self.register_buffer("cell_3", cell_3.float(), persistent=False)

    def _depth_net(self, in_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, sum(self.split), 1)

    def _depths(self) -> Tensor:
        """Where the points of the bins lie: at their lower ends, metres float32 (D,)."""
        (lower, upper), (bins, _) = self.depth_range, self.split
        return (lower + torch.arange(bins, dtype=torch.float64) * (upper - lower) / bins).float()

    def predict(self, feat_BNCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Depth logits (B, N, D, H, W), and the context (B, N, C, H, W)."""
        found_MCHW = self.depth_net(feat_BNCHW.flatten(0, 1))
        depth_BNDHW, context_BNCHW = found_MCHW.unflatten(0, feat_BNCHW.shape[:2]).split(self.split, 2)
        return depth_BNDHW, context_BNCHW

    def bins(self, depth_BNDHW: Tensor, stride: int) -> DepthBins:
        """The depth logits with what they mean; `stride` as in `DepthBins`."""
        return DepthBins(depth_BNDHW, *self.depth_range, stride, self.spacing)

    def splat(self, depth_BNDHW: Tensor, context_BNCHW: Tensor, cell_BNDHW: Tensor) -> Tensor:
        """BEV features, float32 (B, C, Y, X).

        Args:
            depth_BNDHW: logits.
            context_BNCHW: features.
            cell_BNDHW: see `cells`.
        """
        with torch.autocast(depth_BNDHW.device.type, enabled=False):
            probs_BNDHW = depth_BNDHW.float().softmax(2)
            rows, columns = self.bev_shape
            return bev_pool(probs_BNDHW, context_BNCHW, cell_BNDHW, rows * columns).unflatten(2, self.bev_shape)

    def points(self, rig: Rig, image_size: tuple[int, int], stride: int, corners: bool) -> Tensor:
        """Where every (bin, image cell) lies in the frame of the voxels, metres (B, N, D, H, W, 3).

        Args:
            rig: the cameras.
            image_size: (H, W) of the images, pixels.
            stride: pixels per image cell.
            corners: see `Convention`.
        """
        with torch.autocast(self.depth_D.device.type, enabled=False):
            pixels_DHW3 = frustum(self.depth_D, image_size, stride, corners)
            points = unprojected(pixels_DHW3, rig, rig.cam2key_BN44)
            return turned(rig.world_B33[:, None], points)

    def cells(self, points: Tensor, truncates: bool) -> Tensor:
        """The BEV cell y * X + x of points (..., 3), int64; -1 outside.

        Args:
            points: metres.
            truncates: see `Convention`.
        """
        place = (points - self.lower_3) / self.cell_3
        # to int64 is towards zero
        x, y, z = (place if truncates else place.floor()).long().unbind(-1)
        rows, columns = self.bev_shape
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & (z == 0)
        return torch.where(inside, y * columns + x, -1)


class StereoLift(Lift):
    """Depth by a net that knows the cameras and compares images in time; bins in equal steps of the logarithm."""

    spacing: Spacing = "log"

    def _depth_net(self, in_channels: int) -> nn.Module:
        return CameraAwareDepthNet(in_channels, in_channels, *self.split)

    def _depths(self) -> Tensor:
        (lower, upper), (bins, _) = (torch.tensor(self.depth_range), self.split)
        return (lower.log() + torch.arange(bins) / (bins - 1) * ((upper - 1) / lower).log()).exp()

    def predict_with(self, feat_BNCHW: Tensor, numbers_BN27: Tensor, cost_BNDHW: Tensor) -> tuple[Tensor, Tensor]:
        """Depth logits (B, N, D, H, W), and the context (B, N, C, H, W); arguments as of `CameraAwareDepthNet`."""
        told = (each.flatten(0, 1) for each in (feat_BNCHW, numbers_BN27, cost_BNDHW))
        depth_MDHW, context_MCHW = self.depth_net(*told)
        cameras = feat_BNCHW.shape[:2]
        return depth_MDHW.unflatten(0, cameras), context_MCHW.unflatten(0, cameras)


def frustum(depth_D: Tensor, image_size: tuple[int, int], stride: int, corners: bool) -> Tensor:
    """(u, v, depth) of every bin of every image cell, pixels and metres, float32 (D, H, W, 3)."""
    v_H, u_W = (places(size, stride, corners).to(depth_D.device) for size in image_size)
    depth_DHW, v_DHW, u_DHW = torch.meshgrid(depth_D, v_H, u_W, indexing="ij")
    return torch.stack([u_DHW, v_DHW, depth_DHW], -1)


def places(size: int, stride: int, corners: bool) -> Tensor:
    """Where the columns or rows of image cells lie, pixels (count,); arguments as of `Lift.points`."""
    count = size // stride
    return torch.linspace(0, size - 1, count) if corners else (torch.arange(count) + 0.5) * stride


def unprojected(pixels_DHW3: Tensor, rig: Rig, cam2target_BN44: Tensor) -> Tensor:
    """Pixels with depths as points of a target frame (B, N, D, H, W, 3); in upstream's order of float32 operations."""
    points = pixels_DHW3 - rig.image_shift_BN3[:, :, None, None, None]
    points = turned(torch.linalg.inv(rig.image_rotation_BN33), points)
    points = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], -1)
    points = turned(cam2target_BN44[..., :3, :3] @ torch.linalg.inv(rig.intrinsics_BN33), points)
    return points + cam2target_BN44[:, :, None, None, None, :3, 3]


def turned(matrix_BN33: Tensor, points: Tensor) -> Tensor:
    """Points (B, N, D, H, W, 3), each times the matrix of its camera."""
    return (matrix_BN33[:, :, None, None, None] @ points.unsqueeze(-1)).squeeze(-1)
