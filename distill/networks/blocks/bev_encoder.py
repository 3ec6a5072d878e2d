"""BEV encoder: a residual U-Net whose way back up only adds (FPN style), which keeps the full resolution cheap."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks.blocks.layers import ResidualBlock, conv_norm_act


class BEVEncoder(nn.Module):
    """BEV features -> BEV features of the same resolution that have seen their surroundings.

    Args:
        in_channels: channels of the input.
        widths: channels of each level; level i works at 1 / 2**i of the resolution.
        blocks: residual blocks of each level below the first.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, widths: list[int], blocks: list[int], out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stem = conv_norm_act(in_channels, widths[0], 3)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(above, width, stride=2),
                *(ResidualBlock(width, width, stride=1) for _ in range(count - 1)),
            )
            for above, width, count in zip(widths[:-1], widths[1:], blocks, strict=True)
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in widths)
        self.smooth = nn.ModuleList(conv_norm_act(out_channels, out_channels, 3) for _ in blocks)

    def forward(self, bev_BCXY: Tensor) -> Tensor:
        """(B, in, X, Y) -> (B, out, X, Y)."""
        levels = [self.stem(bev_BCXY)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        *laterals, top = self.laterals
        merged_BCXY = top(levels.pop())
        for smooth, lateral in zip(self.smooth, reversed(laterals), strict=True):
            level_BCXY = levels.pop()
            up_BCXY = F.interpolate(smooth(merged_BCXY), level_BCXY.shape[-2:], mode="bilinear")
            merged_BCXY = lateral(level_BCXY) + up_BCXY
        return merged_BCXY.relu()
