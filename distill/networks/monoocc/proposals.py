"""The query proposal network: which coarser voxels are worth a look, from a volume with holes (docs/formulas.md 11.2).

LMSCNet (Roldão et al. 2020) in MonoOcc's size. Modules are called as upstream calls them, so that its files load as
they are.

Letters: B batch, X Y Z voxel axes, K the two scores empty and occupied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.checkpoint import resolve
from distill.networks.monoocc.weights import QPN

HEIGHT = 16  # voxels of a column: channels of the network
DILATIONS = (1, 2, 3)


class QueryProposals(nn.Module):
    """A volume of 16 layers, of which little is known -> scores of empty and occupied at 1/2, 1/4 and 1/8.

    Args:
        rectified: whether scores end in a ReLU as upstream's, under which most of them are 0 and learn nothing: true
            with weights of upstream's, false for what is trained here.
        weights: which ones training begins with: "none", or a file of upstream's.
    """

    def __init__(self, rectified: bool, weights: str) -> None:
        super().__init__()
        self.weights = weights
        self.Encoder_block1 = nn.Sequential(*_two_convolutions(HEIGHT, 16))
        self.Encoder_block2 = nn.Sequential(nn.MaxPool2d(2), *_two_convolutions(16, 24))
        self.Encoder_block3 = nn.Sequential(nn.MaxPool2d(2), *_two_convolutions(24, 32))
        self.Encoder_block4 = nn.Sequential(nn.MaxPool2d(2), *_two_convolutions(32, 40))
        self.conv_out_scale_1_8 = nn.Conv2d(40, 2, 3, padding=1)
        self.deconv_1_8__1_2 = nn.ConvTranspose2d(2, 2, 4, 4)
        self.deconv_1_8__1_1 = _unused(nn.ConvTranspose2d(2, 2, 8, 8))
        self.deconv1_8 = nn.ConvTranspose2d(2, 2, 6, 2, 2)
        self.conv1_4 = nn.Conv2d(34, 32, 3, padding=1)
        self.conv_out_scale_1_4 = nn.Conv2d(32, 4, 3, padding=1)
        self.deconv_1_4__1_1 = _unused(nn.ConvTranspose2d(4, 4, 4, 4))
        self.deconv1_4 = nn.ConvTranspose2d(4, 4, 6, 2, 2)
        self.conv1_2 = nn.Conv2d(30, 24, 3, padding=1)
        self.conv_out_scale_1_2 = nn.Conv2d(24, 8, 3, padding=1)
        self.seg_head_1_2 = OccupancyHead(rectified)
        self.seg_head_1_4 = OccupancyHead(rectified)
        self.seg_head_1_8 = OccupancyHead(rectified)

    def load_pretrained(self) -> None:
        """Replace the random weights by those of the file, if there is one.

        Raises:
            InputError: it is missing, or of another network.
        """
        if self.weights != "none":
            QPN.load(self, resolve(self.weights))

    def forward(self, volume_BXYZ: Tensor) -> dict[int, Tensor]:
        """0 and 1 of (B, X, Y, 16), X and Y multiples of 8 -> by scale s, logits (B, X / s, Y / s, 16 / s, K)."""
        full = self.Encoder_block1(volume_BXYZ.movedim(-1, 1))
        half = self.Encoder_block2(full)
        quarter = self.Encoder_block3(half)
        layers_8 = self.conv_out_scale_1_8(self.Encoder_block4(quarter))
        quarter = self.conv1_4(torch.cat([self.deconv1_8(layers_8), quarter], 1)).relu()
        layers_4 = self.conv_out_scale_1_4(quarter)
        half = self.conv1_2(torch.cat([self.deconv1_4(layers_4), half, self.deconv_1_8__1_2(layers_8)], 1)).relu()
        layers_2 = self.conv_out_scale_1_2(half)
        return {
            2: self.seg_head_1_2(layers_2),
            4: self.seg_head_1_4(layers_4),
            8: self.seg_head_1_8(layers_8),
        }


class OccupancyHead(nn.Module):
    """Layers of a coarser volume -> scores of its voxels, by three dilated branches.

    Args:
        rectified: see `QueryProposals`.
    """

    def __init__(self, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.conv0 = nn.Conv3d(1, 8, 3, padding=1)
        self.conv1, self.bn1 = _dilated(), nn.ModuleList(nn.BatchNorm3d(8) for _ in DILATIONS)
        self.conv2, self.bn2 = _dilated(), nn.ModuleList(nn.BatchNorm3d(8) for _ in DILATIONS)
        self.conv_classes = nn.Conv3d(8, 2, 3, padding=1)
        if not rectified:  # begin with few proposals, or at first all voxels look at the images
            assert self.conv_classes.bias is not None
            self.conv_classes.bias.data = torch.tensor([0.9, 0.1]).log()

    def forward(self, layers_BZXY: Tensor) -> Tensor:
        """(B, Z, X, Y) -> logits (B, X, Y, Z, K)."""
        stem = self.conv0(layers_BZXY.unsqueeze(1)).relu()
        branches = zip(self.conv1, self.bn1, self.conv2, self.bn2, strict=True)
        summed = stem + sum(bn2(conv2(bn1(conv1(stem)).relu())) for conv1, bn1, conv2, bn2 in branches)
        logits_BKZXY = self.conv_classes(summed.relu())
        return (logits_BKZXY.relu() if self.rectified else logits_BKZXY).permute(0, 3, 4, 2, 1)


def proposed(logits_BXYZK: Tensor) -> Tensor:
    """The voxels that are rather occupied than empty, bool (B, X, Y, Z); equal scores propose nothing."""
    empty_BXYZ, occupied_BXYZ = logits_BXYZK.unbind(-1)
    return occupied_BXYZ > empty_BXYZ


def _two_convolutions(in_channels: int, out_channels: int) -> list[nn.Module]:
    first, second = (nn.Conv2d(width, out_channels, 3, padding=1) for width in (in_channels, out_channels))
    return [first, nn.ReLU(), second, nn.ReLU()]


def _dilated() -> nn.ModuleList:
    return nn.ModuleList(nn.Conv3d(8, 8, 3, padding=rate, dilation=rate, bias=False) for rate in DILATIONS)


def _unused(module: nn.Module) -> nn.Module:
    """A layer that upstream's files hold and its network never asks; what is never trained must not say that it is."""
    return module.requires_grad_(False)
