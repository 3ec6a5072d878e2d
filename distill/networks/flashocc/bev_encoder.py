"""FlashOcc's BEV encoder: three residual stages, the first and the last brought together (docs/formulas.md 9.1).

Inside the network BEV maps are (B, C, Y, X).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCKS = 2  # of a stage


class Block(nn.Module):
    """A basic block (He et al. 2016) whose shortcut, where there is one, is a bare convolution with bias.

    Args:
        in_channels, out_channels: of the maps.
        stride: of the first convolution and of the shortcut.
        shortcut: size of its kernel; None: the identity.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if shortcut is not None:
            self.downsample = nn.Conv2d(in_channels, out_channels, shortcut, stride, shortcut // 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""
        inner_BCHW = self.bn2(self.conv2(self.bn1(self.conv1(x_BCHW)).relu()))
        return (inner_BCHW + self.downsample(x_BCHW)).relu()


class BEVEncoder(nn.Module):
    """BEV features -> BEV features of the same resolution.

    Args:
        in_channels: of what is pooled.
        widths: channels of the three stages, at 1/2, 1/4 and 1/8 of the resolution.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, widths: list[int], out_channels: int) -> None:
        super().__init__()
        steps = zip([in_channels, *widths[:-1]], widths, strict=True)
        self.layers = nn.ModuleList(
            nn.Sequential(
                Block(before, width, 2, shortcut=3),
                *(Block(width, width, 1, shortcut=None) for _ in range(_BLOCKS - 1)),
            )
            for before, width in steps
        )
        self.out_channels, inner = out_channels, 2 * out_channels
        self.conv = nn.Sequential(
            *_conv_norm_act(widths[0] + widths[-1], inner),
            *_conv_norm_act(inner, inner),
        )
        self.up2 = nn.Sequential(*_conv_norm_act(inner, out_channels), nn.Conv2d(out_channels, out_channels, 1))

    def forward(self, bev_BCYX: Tensor) -> Tensor:
        """(B, in, Y, X) -> (B, out, Y, X)."""
        return self.merge(self.stages(bev_BCYX), bev_BCYX.shape[-2:])

    def stages(self, bev_BCYX: Tensor) -> list[Tensor]:
        """The maps at 1/2, 1/4 and 1/8 of the resolution."""
        found = []
        for layer in self.layers:
            bev_BCYX = layer(bev_BCYX)
            found.append(bev_BCYX)
        return found

    def merge(self, stages: list[Tensor], size: torch.Size) -> Tensor:
        """Of these maps the first and the last, at the resolution `size`; the middle one only leads to the last."""
        finest, *_, coarsest = stages
        joined_BCYX = self.conv(torch.cat([finest, _upsampled(coarsest, finest.shape[-2:])], 1))
        return self.up2(_upsampled(joined_BCYX, size))


def _conv_norm_act(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def _upsampled(map_BCYX: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(map_BCYX, size, mode="bilinear", align_corners=True)
