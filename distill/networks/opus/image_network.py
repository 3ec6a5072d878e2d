"""Images -> four levels of features: ResNet-50 and a feature pyramid (docs/formulas.md 10.1).

Letters: I images, H W rows and columns, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB images, 0..255
COARSEST_STRIDE = 32


class FPN(nn.Module):
    """Feature pyramid network (Lin et al. 2017) over all the levels that it is given.

    Args:
        in_channels: of the levels, the finest first.
        channels: of every output.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.fpn_convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        for convolution in [*self.lateral_convs, *self.fpn_convs]:
            nn.init.xavier_uniform_(convolution.weight)  # type: ignore[arg-type]
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(I, in_channels, H, W) of each level, the finest first -> (I, channels, H, W) of each."""
        laterals = [lateral(x_ICHW) for lateral, x_ICHW in zip(self.lateral_convs, levels, strict=True)]
        merged = [laterals[-1]]
        for lateral_ICHW in reversed(laterals[:-1]):
            merged.append(lateral_ICHW + F.interpolate(merged[-1], lateral_ICHW.shape[2:], mode="nearest"))
        return [conv(x_ICHW) for conv, x_ICHW in zip(self.fpn_convs, reversed(merged), strict=True)]


def normalised(images_I3HW: Tensor) -> Tensor:
    """uint8 RGB -> float32 as upstream normalises it, with zeros at the right and below up to multiples of 32."""
    mean_311, std_311 = (images_I3HW.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (_MEAN, _STD))
    height, width = images_I3HW.shape[2:]
    padding = (0, -width % COARSEST_STRIDE, 0, -height % COARSEST_STRIDE)
    return F.pad((images_I3HW - mean_311) / std_311, padding)
