"""FlashOcc M2's depth net: it is told the cameras, and what two images of one camera agree on (docs/formulas.md 9.4).

Letters: M images, C channels, D depth bins, H W image cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks.flashocc.bev_encoder import Block
from distill.networks.flashocc.rig import Rig

_NUMBERS = 27  # that say what a camera is
_DILATIONS = (1, 6, 12, 18)


class CameraAwareDepthNet(nn.Module):
    """Image features, the cameras' numbers and a cost volume -> depth logits and context (BEVDepth, BEVStereo).

    Args:
        in_channels: of the image features.
        channels: inside.
        depth_bins, context_channels: of the result.
    """

    def __init__(self, in_channels: int, channels: int, depth_bins: int, context_channels: int) -> None:
        super().__init__()
        self.reduce_conv = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.bn = nn.BatchNorm1d(_NUMBERS)
        self.depth_mlp, self.depth_se = Perceptron(_NUMBERS, channels), Gate(channels)
        self.context_mlp, self.context_se = Perceptron(_NUMBERS, channels), Gate(channels)
        self.context_conv = nn.Conv2d(channels, context_channels, 1)
        self.cost_net = nn.Sequential(
            nn.Conv2d(depth_bins, depth_bins, 3, 2, 1),
            nn.BatchNorm2d(depth_bins),
            nn.Conv2d(depth_bins, depth_bins, 3, 2, 1),
            nn.BatchNorm2d(depth_bins),
        )
        self.depth_conv = nn.Sequential(
            Block(channels + depth_bins, channels, 1, shortcut=1),
            Block(channels, channels, 1, shortcut=None),
            Block(channels, channels, 1, shortcut=None),
            ASPP(channels, 96),
            nn.Conv2d(channels, depth_bins, 1),
        )

    def forward(self, feat_MCHW: Tensor, numbers_M27: Tensor, cost_MDHW: Tensor) -> tuple[Tensor, Tensor]:
        """Depth logits (M, D, H, W) and context (M, context_channels, H, W).

        Args:
            feat_MCHW: image features.
            numbers_M27: see `camera_numbers`.
            cost_MDHW: of `stereo.cost_volume`, at four times the resolution.
        """
        numbers_M27, x_MCHW = self.bn(numbers_M27), self.reduce_conv(feat_MCHW)
        context_MCHW = self.context_conv(self.context_se(x_MCHW, self.context_mlp(numbers_M27)))
        depth_MCHW = self.depth_se(x_MCHW, self.depth_mlp(numbers_M27))
        return self.depth_conv(torch.cat([depth_MCHW, self.cost_net(cost_MDHW)], 1)), context_MCHW


def camera_numbers(rig: Rig) -> Tensor:
    """What a depth net is told of each camera, (B, N, 27): lens, image, world, and the pose in the voxels' frame."""
    lens, world = rig.intrinsics_BN33, rig.world_B33[:, None].expand(*rig.intrinsics_BN33.shape)
    turn, shift = rig.image_rotation_BN33, rig.image_shift_BN3
    told = [lens[..., 0, 0], lens[..., 1, 1], lens[..., 0, 2], lens[..., 1, 2]]
    told += [turn[..., 0, 0], turn[..., 0, 1], shift[..., 0], turn[..., 1, 0], turn[..., 1, 1], shift[..., 1]]
    told += [world[..., 0, 0], world[..., 0, 1], world[..., 1, 0], world[..., 1, 1], world[..., 2, 2]]
    return torch.cat([torch.stack(told, -1), rig.cam2key_BN44[..., :3, :].flatten(2)], -1)


class Perceptron(nn.Module):
    """Two layers."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_channels, channels), nn.Linear(channels, channels)

    def forward(self, x_MC: Tensor) -> Tensor:
        """(M, in) -> (M, channels)."""
        return self.fc2(self.fc1(x_MC).relu())


class Gate(nn.Module):
    """Channels opened and closed by a vector (squeeze and excite, Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x_MCHW: Tensor, told_MC: Tensor) -> Tensor:
        """The map with each channel times what the vector says of it."""
        return x_MCHW * self.conv_expand(self.conv_reduce(told_MC[..., None, None]).relu()).sigmoid()


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabv3, Chen et al. 2017).

    Args:
        channels: in and out.
        inner: of each branch.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        for place, dilation in enumerate(_DILATIONS, 1):
            self.add_module(f"aspp{place}", _Branch(channels, inner, dilation))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        )
        self.conv1 = nn.Conv2d(inner * (1 + len(_DILATIONS)), channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x_MCHW: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, C, H, W)."""
        found = [self.get_submodule(f"aspp{place}")(x_MCHW) for place in range(1, 1 + len(_DILATIONS))]
        mean_MCHW = self.global_avg_pool(x_MCHW)
        found.append(F.interpolate(mean_MCHW, x_MCHW.shape[-2:], mode="bilinear", align_corners=True))
        return self.dropout(self.bn1(self.conv1(torch.cat(found, 1))).relu())


class _Branch(nn.Module):
    """One dilation of the pyramid."""

    def __init__(self, in_channels: int, channels: int, dilation: int) -> None:
        super().__init__()
        kernel, padding = (1, 0) if dilation == 1 else (3, dilation)
        self.atrous_conv = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x_MCHW: Tensor) -> Tensor:
        """(M, in, H, W) -> (M, channels, H, W)."""
        return self.bn(self.atrous_conv(x_MCHW)).relu()
