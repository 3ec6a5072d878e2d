"""Feature pyramids over the backbone's maps. Letters: N images, C channels, H W rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """Feature pyramid network (Lin et al. 2017) over strides 8, 16, 32 and one more level (docs/formulas.md 6.3).

    Args:
        in_channels: of all backbone maps; the first map is not used.
        out_channels: of every level.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_Conv(channels, out_channels, 1) for channels in in_channels[1:])
        self.fpn_convs = nn.ModuleList(_Conv(out_channels, out_channels, 3, padding=1) for _ in in_channels[1:])
        self.fpn_convs.append(_Conv(out_channels, out_channels, 3, stride=2, padding=1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps (N, C, H, W) at strides 4..32 -> four maps (N, out_channels, H, W) at strides 8..64."""
        levels = [lateral(x_NCHW) for lateral, x_NCHW in zip(self.lateral_convs, maps[1:], strict=True)]
        for fine, coarse in ((-2, -1), (-3, -2)):
            levels[fine] = levels[fine] + F.interpolate(levels[coarse], size=levels[fine].shape[2:], mode="nearest")
        outputs = [conv(x_NCHW) for conv, x_NCHW in zip(self.fpn_convs[:-1], levels, strict=True)]
        return [*outputs, self.fpn_convs[-1](outputs[-1])]


class _Conv(nn.Module):
    """A convolution with bias under upstream's name `conv`."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return self.conv(x_NCHW)


class SecondFPN(nn.Module):
    """The neck of SECOND (Yan et al. 2018): every map brought to stride 8, side by side (docs/formulas.md 6.3).

    Args:
        in_channels: of the maps at strides 4, 8, 16, 32.
        out_channels: of each map in the output.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        finest, *others = in_channels
        resamplers: list[nn.Module] = [nn.Conv2d(finest, out_channels, 2, stride=2, bias=False)]
        for level, channels in enumerate(others):
            factor = 2**level
            resamplers.append(nn.ConvTranspose2d(channels, out_channels, factor, stride=factor, bias=False))
        self.deblocks = nn.ModuleList(
            nn.Sequential(resampler, nn.BatchNorm2d(out_channels, eps=1e-3), nn.ReLU(inplace=True))
            for resampler in resamplers
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps (N, C, H, W) at strides 4..32 -> (N, 4 * out_channels, H, W) at stride 8."""
        return torch.cat([deblock(x_NCHW) for deblock, x_NCHW in zip(self.deblocks, maps, strict=True)], 1)
