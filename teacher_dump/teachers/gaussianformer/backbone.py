"""ResNet-101 with deformable convolutions, in the layout of the Caffe models (docs/formulas.md 6.2).

Letters: N images, C channels, H W rows and columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher_dump.teachers.gaussianformer.deform_conv import DeformConv2d

# (blocks, channels inside a block, deformable) of layer1..4
_LAYERS = ((3, 64, False), (4, 128, False), (23, 256, True), (3, 512, True))
_EXPANSION = 4


class ResNetDCN(nn.Module):
    """ResNet-101, "caffe" style, DCNv2 in layer3 and layer4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for number, (blocks, inner, deformable) in enumerate(_LAYERS, start=1):
            stride = 1 if number == 1 else 2
            layer = [Bottleneck(channels, inner, stride, deformable)]
            channels = inner * _EXPANSION
            layer += [Bottleneck(channels, inner, 1, deformable) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*layer))

    def forward(self, images_N3HW: Tensor) -> list[Tensor]:
        """Normalised images, float32 -> four maps (N, C, H, W), stored channels last.

        They have 256, 512, 1024, 2048 channels at strides 4, 8, 16, 32.
        """
        # pixel by pixel in memory, as the deformable convolutions read it; all layers keep that
        x_NCHW = images_N3HW.contiguous(memory_format=torch.channels_last)
        x_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)), inplace=True)
        x_NCHW = F.max_pool2d(x_NCHW, 3, stride=2, padding=1)
        maps = []
        for number in range(1, len(_LAYERS) + 1):
            x_NCHW = self.get_submodule(f"layer{number}")(x_NCHW)
            maps.append(x_NCHW)
        return maps


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 with a shortcut; "caffe" style: the stride sits in the first convolution."""

    def __init__(self, channels: int, inner: int, stride: int, deformable: bool) -> None:
        super().__init__()
        outer = inner * _EXPANSION
        self.conv1 = nn.Conv2d(channels, inner, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = DeformConv2d(inner) if deformable else nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.downsample: nn.Module | None = None
        if channels != outer or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, outer, 1, stride=stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4 * inner, H / stride, W / stride)."""
        shortcut = x_NCHW if self.downsample is None else self.downsample(x_NCHW)
        x_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)), inplace=True)
        x_NCHW = F.relu(self.bn2(self.conv2(x_NCHW)), inplace=True)
        x_NCHW = self.bn3(self.conv3(x_NCHW))
        return F.relu(x_NCHW.add_(shortcut), inplace=True)
