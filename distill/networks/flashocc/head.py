"""FlashOcc's channel-to-height head (docs/formulas.md 9.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.classes import ClassSet
from distill.grids import VoxelGrid


class ChannelToHeight(nn.Module):
    """BEV features -> voxel logits; the channels of a cell become the classes of its column.

    Args:
        in_channels: of the BEV features.
        hidden_channels: of each column before the last layer.
        grid: the voxels.
        classes: the classes.
    """

    def __init__(self, in_channels: int, hidden_channels: int, grid: VoxelGrid, classes: ClassSet) -> None:
        super().__init__()
        self.column_shape = (grid.shape[2], len(classes))
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        logits = nn.Linear(hidden_channels, grid.shape[2] * len(classes))
        # start from the class frequencies, or free space drowns everything else at first (RetinaNet, Lin et al. 2017)
        prior_C = torch.tensor(classes.frequencies, dtype=torch.float32)
        logits.bias.data = (prior_C / prior_C.sum()).log().repeat(grid.shape[2])
        self.predictor = nn.Sequential(nn.Linear(in_channels, hidden_channels), nn.Softplus(), logits)

    def forward(self, bev_BCYX: Tensor) -> Tensor:
        """(B, in, Y, X) -> logits (B, X, Y, Z, C); the class is the fastest index."""
        columns_BXYC = self.conv(bev_BCYX).relu().permute(0, 3, 2, 1)
        return self.predictor(columns_BXYC).unflatten(-1, self.column_shape)
