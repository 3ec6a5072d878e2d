"""Channel-to-height head: the channels of a BEV cell become the classes of its voxel column."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.classes import ClassSet
from distill.grids import VoxelGrid
from distill.networks.blocks.layers import conv_norm_act


class ChannelToHeight(nn.Module):
    """BEV features -> voxel logits (FlashOcc, Yu et al. 2023; docs/formulas.md 5.3).

    A BEV cell may cover bev_stride x bev_stride voxel columns; each gets its own share of the hidden channels
    (sub-pixel convolution, Shi et al. 2016).

    Args:
        in_channels: channels of the BEV features.
        hidden_channels: channels of each voxel column before the last layer.
        bev_stride: voxel columns along the edge of one BEV cell.
        grid: the voxels.
        classes: the classes.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, bev_stride: int, grid: VoxelGrid, classes: ClassSet
    ) -> None:
        super().__init__()
        self.bev_stride = bev_stride
        self.column_shape = (grid.shape[2], len(classes))
        self.conv = conv_norm_act(in_channels, in_channels, 3)
        self.column = nn.Linear(in_channels, bev_stride**2 * hidden_channels)
        self.logits = nn.Linear(hidden_channels, grid.shape[2] * len(classes))
        # start from the class frequencies, or free space drowns everything else at first (RetinaNet, Lin et al. 2017)
        prior = torch.tensor(classes.frequencies, dtype=torch.float32)
        self.logits.bias.data = (prior / prior.sum()).log().repeat(grid.shape[2])

    def forward(self, bev_BCXY: Tensor) -> Tensor:
        """(B, in, X / bev_stride, Y / bev_stride) -> logits (B, X, Y, Z, C); the class is the fastest index."""
        hidden_BXYC = self.column(self.conv(bev_BCXY).permute(0, 2, 3, 1))
        batch, x, y, _ = hidden_BXYC.shape
        s = self.bev_stride
        hidden_BXYC = hidden_BXYC.view(batch, x, y, s, s, -1).transpose(2, 3).reshape(batch, x * s, y * s, -1)
        return self.logits(F.softplus(hidden_BXYC)).unflatten(-1, self.column_shape)
