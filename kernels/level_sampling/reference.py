"""Torch reference of level sampling; runs on any device. Letters as in `kernels.level_sampling`; K corners = 4."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(maps: list[Tensor], image_AM: Tensor, uv_AM2: Tensor, weights_AML: Tensor) -> Tensor:
    """Weighted samples (A, M, C): per level a bag of four pixels for each sample."""
    groups, total = len(image_AM), maps[0].new_zeros(())
    for map_IHWD, weights_AM in zip(maps, weights_AML.unbind(2), strict=True):
        index_AMK, share_AMK = corners(map_IHWD, image_AM, uv_AM2)
        total = total + F.embedding_bag(
            index_AMK.flatten(0, 1),
            map_IHWD.reshape(-1, map_IHWD.shape[3] // groups),
            mode="sum",
            per_sample_weights=(share_AMK * weights_AM.unsqueeze(2)).flatten(0, 1),
        )
    return total.unflatten(0, image_AM.shape)


def gradients(
    grad_AMC: Tensor, maps: list[Tensor], image_AM: Tensor, uv_AM2: Tensor, weights_AML: Tensor
) -> tuple[Tensor, ...]:
    """With respect to positions, weights and maps, in this order."""
    with torch.enable_grad():
        uv_AM2, weights_AML, *maps = (each.detach().requires_grad_() for each in (uv_AM2, weights_AML, *maps))
        found_AMC = sample(maps, image_AM, uv_AM2, weights_AML)
    return torch.autograd.grad(found_AMC, (uv_AM2, weights_AML, *maps), grad_AMC)


def corners(map_IHWD: Tensor, image_AM: Tensor, uv_AM2: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels around each sample, as rows of (I * H * W * A, C), and their shares, 0 outside; (A, M, K)."""
    groups, (height, width) = len(image_AM), map_IHWD.shape[1:3]
    column_AM, row_AM = uv_AM2[..., 0] * (width - 1), uv_AM2[..., 1] * (height - 1)
    left_AM, top_AM = column_AM.detach().floor(), row_AM.detach().floor()
    right_AM, below_AM = column_AM - left_AM, row_AM - top_AM
    group_A1 = torch.arange(groups, device=image_AM.device).unsqueeze(1)
    indices, shares = [], []
    for row, row_share in ((top_AM, 1 - below_AM), (top_AM + 1, below_AM)):
        for column, column_share in ((left_AM, 1 - right_AM), (left_AM + 1, right_AM)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = (image_AM * height + row.long()) * width + column.long()
            indices.append(torch.where(inside, pixel * groups + group_A1, 0))
            shares.append(torch.where(inside, row_share * column_share, 0))
    return torch.stack(indices, 2), torch.stack(shares, 2)
