"""Stage 1: depth becomes voxels, and these are completed to proposals (docs/formulas.md 11.1, 11.2).

Letters: B batch, N cameras, D depth bins, H W image cells, X Y Z voxel axes, K the two scores empty and occupied.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.networks.blocks.layers import conv_norm_act
from distill.networks.lift import frustum, near_ground
from distill.networks.monoocc.proposals import HEIGHT, QueryProposals
from distill.networks.monoocc.pseudo import depth_voxels, point_voxels
from distill.networks.prediction import DepthBins


class Stage1(NamedTuple):
    """What stage 1 finds.

    Attributes:
        scores: by scale s, logits (B, X / s, Y / s, Z / s, K).
        depth: as predicted; None: it was measured.
    """

    scores: dict[int, Tensor]
    depth: DepthBins | None


class ProposalStage(nn.Module):
    """Images -> which coarser voxels are worth a look. Nothing learns through the voxels of its depth.

    Args:
        depth: predicts it; None: it is that of the LiDAR's points, which the student is then given.
        network: completes the voxels.
        teacher: name of one of whom it takes proposals while it learns; None: its own.
        grid: the voxels.

    Raises:
        InputError: the grid is not one for the network.
    """

    def __init__(self, depth: DepthHead | None, network: QueryProposals, teacher: str | None, grid: VoxelGrid) -> None:
        super().__init__()
        x, y, z = grid.shape
        if z != HEIGHT or x % 8 or y % 8:
            raise InputError(
                f"the query proposal network wants {HEIGHT} layers of voxels in columns whose numbers are multiples of "
                f"8, the grid {grid.name} has {x} x {y} x {z}: set student.network.proposals=null"
            )
        self.depth, self.network, self.teacher, self.grid = depth, network, teacher, grid

    def forward(self, frame: Frame, image_BNCHW: Tensor, stride: int, measured_BNHW: Tensor | None) -> Stage1:
        """What it proposes by image features of a stride; cells with a measured depth (0: none) are put there."""
        if self.depth is None:
            if frame.points is None:
                raise InputError(
                    "student.network.proposals.depth=null takes depth from the LiDAR: set student.inputs.lidar=true"
                )
            return Stage1(self.network(point_voxels(frame.points, self.grid).float()), None)
        bins = self.depth(image_BNCHW, stride, frame.intrinsics, frame.cam2ego)
        depth_BNHW = likeliest_depth(bins)
        if measured_BNHW is not None:
            depth_BNHW = torch.where(measured_BNHW > 0, measured_BNHW, depth_BNHW)
        points = self.depth.points  # of a cell along each axis, lest voxels between its rays stay empty
        finer_BNHW = depth_BNHW.repeat_interleave(points, -1).repeat_interleave(points, -2)
        with torch.autocast(finer_BNHW.device.type, enabled=False):
            pose = frame.intrinsics.float(), frame.cam2ego.float()
            voxels_BXYZ = depth_voxels(finer_BNHW, stride / points, *pose, self.grid)
        return Stage1(self.network(voxels_BXYZ.float()), bins)


class DepthHead(nn.Module):
    """Image features -> a distribution over depth, from where the ray would meet a flat road; see `LiftSplat`.

    Args:
        in_channels: channels of the image features.
        depth_range: (lower, upper) of the depth bins, metres along the optical axis.
        depth_bins: number of equal bins.
        points: along each axis, of an image cell, that are put at its depth.
        grid: tells where the road is.
    """

    centres_D: Tensor

    def __init__(
        self, in_channels: int, depth_range: tuple[float, float], depth_bins: int, points: int, grid: VoxelGrid
    ) -> None:
        super().__init__()
        lower, upper = self.range = (float(depth_range[0]), float(depth_range[1]))
        self.points, self.ground, self.voxel_size = points, grid.ground, grid.voxel_size
        self.conv = conv_norm_act(in_channels, in_channels, 3)
        self.logits = nn.Conv2d(in_channels + depth_bins, depth_bins, 1)
        centres_D = lower + (torch.arange(depth_bins) + 0.5) * (upper - lower) / depth_bins
        self.register_buffer("centres_D", centres_D, persistent=False)

    def forward(self, image_BNCHW: Tensor, stride: int, intrinsics: Tensor, cam2ego: Tensor) -> DepthBins:
        """Of every image cell."""
        height, width = image_BNCHW.shape[-2:]
        with torch.autocast(image_BNCHW.device.type, enabled=False):
            points = frustum(height, width, stride, self.centres_D, intrinsics.float(), cam2ego.float())
            road_BDHW = near_ground(points, self.ground, self.voxel_size).flatten(0, 1)
        conv_BCHW = self.conv(image_BNCHW.flatten(0, 1))
        logits_BDHW = self.logits(torch.cat([conv_BCHW, road_BDHW.to(conv_BCHW.dtype)], 1))
        return DepthBins(logits_BDHW.unflatten(0, image_BNCHW.shape[:2]), *self.range, stride)


def likeliest_depth(bins: DepthBins) -> Tensor:
    """The expected depth within the likeliest bin and its two neighbours, metres (B, N, H, W), without gradient.

    Over all bins, a cell on the rim of a car would lie in the air behind it.
    """
    logits_BNDHW = bins.logits_BNDHW.detach().float()
    count = logits_BNDHW.shape[2]
    best_BN1HW = logits_BNDHW.argmax(2, keepdim=True)
    index_D111 = torch.arange(count, device=logits_BNDHW.device).view(-1, 1, 1)
    near_BNDHW = (index_D111 - best_BN1HW).abs() <= 1
    probs_BNDHW = logits_BNDHW.masked_fill(~near_BNDHW, -torch.inf).softmax(2)
    step = (bins.upper - bins.lower) / count
    return bins.lower + step * (0.5 + (probs_BNDHW * index_D111).sum(2))
