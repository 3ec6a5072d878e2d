"""Lift: image features to BEV through a predicted depth distribution (Lift-Splat, Philion & Fidler 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.networks.blocks.layers import conv_norm_act
from distill.networks.prediction import depth_bin
from kernels.bev_pool import bev_pool


class LiftCells(NamedTuple):
    """Where every (depth bin, image cell) lies: all that the calibration decides.

    Attributes:
        cell_BNDHW: int64, the cell (slice * X + x) * Y + y that it falls into; -1 outside the grid.
        near_ground_BNDHW: float32, how near it is to the plane of the road, 1 on it and 0 a voxel or more away.
    """

    cell_BNDHW: Tensor
    near_ground_BNDHW: Tensor


class LiftSplat(nn.Module):
    """Lifts every image cell along its ray and sums what falls into a BEV cell.

    The sum is not normalised: a weak depth probability must leave a weak mark (docs/formulas.md 5.2).

    Args:
        in_channels: channels of the image features.
        channels: channels of the BEV features, all slices together.
        height_slices: slabs of equal height that are pooled apart; 1 is FlashOcc's one slab, more keep height apart.
        depth_range: (lower, upper) of the depth bins, metres along the optical axis.
        depth_bins: number of equal bins; nothing to do with the height of the grid.
        bev_stride: voxel columns along the edge of one BEV cell.
        grid: the voxels; points outside it, in z too, are dropped.

    Raises:
        InputError: the grid cannot be divided into such BEV cells.
    """

    depth_centres: Tensor
    area: Tensor
    lower_3: Tensor
    cell_3: Tensor

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth_range: tuple[float, float],
        depth_bins: int,
        bev_stride: int,
        height_slices: int,
        grid: VoxelGrid,
    ) -> None:
        super().__init__()
        if any(count % bev_stride for count in grid.shape[:2]):
            raise InputError(f"lift.bev_stride={bev_stride} does not divide {grid.shape[:2]} voxel columns: use 1 or 2")
        self.depth_range = (float(depth_range[0]), float(depth_range[1]))
        self.height_slices = height_slices
        self.split = (depth_bins, channels // height_slices)
        self.bev_shape = (grid.shape[0] // bev_stride, grid.shape[1] // bev_stride)
        self.voxel_size, self.ground = grid.voxel_size, grid.ground
        self.conv = conv_norm_act(in_channels, in_channels, 3)
        self.depth_and_context = nn.Conv2d(in_channels + depth_bins, sum(self.split), 1)
        lower, upper = self.depth_range
        centres_D = lower + (torch.arange(depth_bins) + 0.5) * (upper - lower) / depth_bins
        self.register_buffer("depth_centres", centres_D, persistent=False)
        # rays thin out with the square of the distance: without this, far cells drown in the norm of the near ones
        area_D = centres_D**2 / (centres_D**2).mean()
        self.register_buffer("area", area_D.view(-1, 1, 1), persistent=False)
        self.register_buffer("lower_3", torch.tensor(grid.lower, dtype=torch.float32), persistent=False)
        cell_3 = torch.tensor([bev_stride, bev_stride, grid.shape[2] / height_slices]) * grid.voxel_size
        self.register_buffer("cell_3", cell_3.float(), persistent=False)

    def forward(
        self, feat_BNCHW: Tensor, stride: int, intrinsics: Tensor, cam2ego: Tensor, measured_BNHW: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """BEV features and depth logits.

        Args:
            feat_BNCHW: image features.
            stride: image pixels per feature cell.
            intrinsics: (B, N, 3, 3) of the network's input images.
            cam2ego: (B, N, 4, 4).
            measured_BNHW: metres along the optical axis, 0 where nothing is known; see `substituted`.

        Returns:
            float32 (B, C, X / bev_stride, Y / bev_stride), and depth logits (B, N, D, H, W).
        """
        height, width = feat_BNCHW.shape[-2:]
        return self.pool(feat_BNCHW, self.cells(intrinsics, cam2ego, (height, width), stride), measured_BNHW)

    def cells(self, intrinsics: Tensor, cam2ego: Tensor, size: tuple[int, int], stride: int) -> LiftCells:
        """What the calibration alone decides; cameras that stay where they are need it once.

        Args:
            intrinsics: (B, N, 3, 3) of the network's input images.
            cam2ego: (B, N, 4, 4).
            size: H and W of the image features.
            stride: image pixels per feature cell.
        """
        with torch.autocast(intrinsics.device.type, enabled=False):
            points = frustum(*size, stride, self.depth_centres, intrinsics.float(), cam2ego.float())
            return LiftCells(self._cell_of(points), near_ground(points, self.ground, self.voxel_size))

    def pool(self, feat_BNCHW: Tensor, cells: LiftCells, measured_BNHW: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """BEV features and depth logits of image features that lie in these cells, as `forward` returns them."""
        conv_BCHW = self.conv(feat_BNCHW.flatten(0, 1))
        ground_BDHW = cells.near_ground_BNDHW.flatten(0, 1).to(conv_BCHW.dtype)
        raw_BCHW = self.depth_and_context(torch.cat([conv_BCHW, ground_BDHW], 1))
        depth_BNDHW, context_BNCHW = raw_BCHW.unflatten(0, feat_BNCHW.shape[:2]).split(self.split, dim=2)
        with torch.autocast(feat_BNCHW.device.type, enabled=False):
            x, y = self.bev_shape
            probs_BNDHW = depth_BNDHW.float().softmax(2)
            if measured_BNHW is not None:
                probs_BNDHW = substituted(probs_BNDHW, depth_bin(measured_BNHW, *self.depth_range, self.split[0]))
            count = self.height_slices * x * y
            bev_BCK = bev_pool(probs_BNDHW * self.area, context_BNCHW, cells.cell_BNDHW, count)
        return bev_BCK.unflatten(2, (self.height_slices, x, y)).flatten(1, 2), depth_BNDHW

    def _cell_of(self, points: Tensor) -> Tensor:
        """The cell (slice * X + x) * Y + y of ego points (..., 3), int64; -1 outside the grid."""
        x, y, z = ((points - self.lower_3) / self.cell_3).floor().unbind(-1)
        size_x, size_y = self.bev_shape
        inside = (x >= 0) & (x < size_x) & (y >= 0) & (y < size_y) & (z >= 0) & (z < self.height_slices)
        return torch.where(inside, (z * size_x + x) * size_y + y, -1).long()


def near_ground(points: Tensor, ground: float, voxel_size: float) -> Tensor:
    """How near frustum points (B, N, D, H, W, 3) are to the plane of the road, see `LiftCells`.

    Calibration tells where a ray would meet a flat road; the depth head starts from there, as BEVDepth's (Li et al.
    2023) does from its camera parameters. Points between two bins count by half.

    Args:
        points: in the frame of the grid, metres.
        ground: height of the road, metres.
        voxel_size: from so far off a point is not near, at least; metres.
    """
    z_BNDHW = points[..., 2]
    step_BNDHW = (z_BNDHW[:, :, 1:] - z_BNDHW[:, :, :-1]).abs().mean(2, keepdim=True)
    return (1 - (z_BNDHW - ground).abs() / step_BNDHW.clamp_min(voxel_size)).clamp_min(0)


def substituted(probs_BNDHW: Tensor, bin_BNHW: Tensor) -> Tensor:
    """Depth distributions with certainty where the depth is measured (docs/formulas.md 4.29).

    Args:
        probs_BNDHW: as predicted.
        bin_BNHW: int64, the bin of what is measured; -1: the prediction stays.
    """
    certain_BNDHW = F.one_hot(bin_BNHW.clamp_min(0), probs_BNDHW.shape[2]).movedim(-1, 2).to(probs_BNDHW.dtype)
    return torch.where(bin_BNHW.unsqueeze(2) >= 0, certain_BNDHW, probs_BNDHW)


def frustum(height: int, width: int, stride: int, centres_D: Tensor, intrinsics: Tensor, cam2ego: Tensor) -> Tensor:
    """Ego coordinates of every (depth bin, image cell): p = cam2ego . (K^-1 [u d, v d, d]), metres (B, N, D, H, W, 3).

    (u, v) is the centre of a cell, (index + 0.5) * stride.
    """
    rays_BNHW3, origin_BN3 = pixel_rays(height, width, stride, intrinsics, cam2ego)
    return origin_BN3[:, :, None, None, None] + rays_BNHW3.unsqueeze(2) * centres_D.view(-1, 1, 1, 1)


def pixel_rays(height: int, width: int, stride: float, intrinsics: Tensor, cam2ego: Tensor) -> tuple[Tensor, Tensor]:
    """Where the centres of image cells look in the ego frame, a metre along the optical axis (B, N, H, W, 3), and from
    where, metres (B, N, 3)."""
    u_W = (torch.arange(width, device=intrinsics.device) + 0.5) * stride
    v_H = (torch.arange(height, device=intrinsics.device) + 0.5) * stride
    return rays_through(u_W, v_H, intrinsics, cam2ego)


def rays_through(u_W: Tensor, v_H: Tensor, intrinsics: Tensor, cam2ego: Tensor) -> tuple[Tensor, Tensor]:
    """As `pixel_rays`, through pixels of these columns and rows.

    All sums are written out. Every library multiplies matrices with roundings of its own, and no point beside the
    border of two cells may change sides where the network was exported to (`student.export`).
    """
    a_BN3, b_BN3, c_BN3 = intrinsics.unbind(-1)
    rows = (_cross(b_BN3, c_BN3), _cross(c_BN3, a_BN3), _cross(a_BN3, b_BN3))
    x, y, z = (a_BN3 * rows[0]).unbind(-1)
    inverse_BN1133 = (torch.stack(rows, -2) / (x + y + z)[..., None, None])[:, :, None, None]
    u_W1, v_H11 = u_W.unsqueeze(-1), v_H[:, None, None]
    camera_BNHW3 = inverse_BN1133[..., 0] * u_W1 + inverse_BN1133[..., 1] * v_H11 + inverse_BN1133[..., 2]
    x_BNHW1, y_BNHW1, z_BNHW1 = camera_BNHW3.split(1, -1)
    turn_BN1133 = cam2ego[:, :, None, None, :3, :3]
    rays_BNHW3 = turn_BN1133[..., 0] * x_BNHW1 + turn_BN1133[..., 1] * y_BNHW1 + turn_BN1133[..., 2] * z_BNHW1
    return rays_BNHW3, cam2ego[..., :3, 3]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """The cross product of vectors (..., 3)."""
    return a.roll(-1, -1) * b.roll(-2, -1) - a.roll(-2, -1) * b.roll(-1, -1)
