"""Modulated deformable convolution, DCNv2 (Zhu et al. 2019).

Letters: N images, C channels, O output channels, H W rows and columns, T = 9 taps of the 3 x 3 kernel in row-major
order, K = 4 bilinear corners, P = H * W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformConv2d(nn.Module):
    """3 x 3, stride 1, no bias; `conv_offset` predicts where each tap samples and how much it counts.

    out(p) = sum over taps t of W_t @ (sigmoid(mask_t(p)) * x(p + t + offset_t(p))), bilinear, zero outside
    (docs/formulas.md 6.2).

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.kaiming_normal_(self.weight)
        # channels 0..17: (dy, dx) of each tap; 18..26: the taps' mask logits
        self.conv_offset = nn.Conv2d(channels, 27, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), float32, stored channels last."""
        height, width = x_NCHW.shape[2:]
        offsets_N2HW, mask_NTHW = self.conv_offset(x_NCHW).split([18, 9], 1)
        index_NPTK, share_NPTK = _corners(offsets_N2HW, mask_NTHW.sigmoid())
        weight_TCO = self.weight.flatten(2).permute(2, 1, 0).flatten(0, 1)
        rows_NPC = x_NCHW.permute(0, 2, 3, 1).flatten(1, 2)
        # image by image: the sampled columns take 9 times the memory of the input
        out_NPO = torch.stack(
            [
                _sample(rows_PC, index_PTK, share_PTK) @ weight_TCO
                for rows_PC, index_PTK, share_PTK in zip(rows_NPC, index_NPTK, share_NPTK, strict=True)
            ]
        )
        return out_NPO.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _corners(offsets_N2HW: Tensor, mask_NTHW: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels around every sample, int32 (N, P, T, 4), and their shares; corners outside have share 0."""
    height, width = offsets_N2HW.shape[2:]
    device = offsets_N2HW.device
    tap_T11 = torch.arange(9, device=device).view(9, 1, 1)
    row_NTHW = offsets_N2HW[:, 0::2] + tap_T11 // 3 - 1 + torch.arange(height, device=device).view(-1, 1)
    column_NTHW = offsets_N2HW[:, 1::2] + tap_T11 % 3 - 1 + torch.arange(width, device=device)
    top, left = row_NTHW.floor(), column_NTHW.floor()
    below, right = row_NTHW - top, column_NTHW - left
    indices, shares = [], []
    for row, row_share in ((top, 1 - below), (top + 1, below)):
        for column, column_share in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            indices.append(torch.where(inside, row * width + column, 0).int())
            shares.append(torch.where(inside, row_share * column_share * mask_NTHW, 0))
    index_NHWTK, share_NHWTK = (torch.stack(corners, -1).permute(0, 2, 3, 1, 4) for corners in (indices, shares))
    return index_NHWTK.flatten(1, 2), share_NHWTK.flatten(1, 2)


def _sample(rows_PC: Tensor, index_PTK: Tensor, share_PTK: Tensor) -> Tensor:
    """The nine samples of every pixel side by side, (P, T * C): a bag of four pixels each."""
    sampled = F.embedding_bag(index_PTK.flatten(0, 1), rows_PC, mode="sum", per_sample_weights=share_PTK.flatten(0, 1))
    return sampled.view(len(rows_PC), -1)
