"""BEV pooling: the "splat" of Lift-Splat (Philion & Fidler 2020), a sum of depth-weighted context per BEV cell.

Every image cell p lifts into D points. Point (p, d) carries depth_PD[p, d] * context_PC[p] and falls into one BEV cell
or outside. These P * D feature vectors are never stored: pooling is a sparse (cells x P) matrix, whose non-zeros are
the depth probabilities, times the dense context.

Letters: B batch, N cameras, D depth bins, H W image cells, C channels, P = B*N*H*W image cells, K BEV cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import twin


def bev_pool(depth_BNDHW: Tensor, context_BNCHW: Tensor, cell_BNDHW: Tensor, cells: int) -> Tensor:
    """Sum depth * context over the points of each BEV cell, in float32.

    Deterministic on every device. Differentiable with respect to depth and context.

    Args:
        depth_BNDHW: depth probability of each point.
        context_BNCHW: features of each image cell.
        cell_BNDHW: integer BEV cell of each point in [0, cells), -1 = outside.
        cells: number of BEV cells of one sample.

    Returns:
        float32 (B, C, cells), stored channels last; a cell without points is 0.
    """
    batch, _, bins = depth_BNDHW.shape[:3]
    channels = context_BNCHW.shape[2]
    first_B1 = cells * torch.arange(batch, device=cell_BNDHW.device).view(-1, 1, 1, 1, 1)
    # samples side by side; everything outside shares one more cell behind the last
    cell_BNDHW = torch.where(cell_BNDHW < 0, batch * cells, cell_BNDHW + first_B1)
    pooled_KC = _BevPool.apply(
        depth_BNDHW.float().movedim(2, -1).reshape(-1, bins),
        context_BNCHW.float().movedim(2, -1).reshape(-1, channels),
        cell_BNDHW.movedim(2, -1).reshape(-1, bins),
        batch * cells,
    )
    return pooled_KC.view(batch, cells, channels).transpose(1, 2)


class _BevPool(torch.autograd.Function):
    """Chooses the implementation by device; cells equal to K are outside."""

    @staticmethod
    def forward(ctx: Any, depth_PD: Tensor, context_PC: Tensor, cell_PD: Tensor, cells: int) -> Tensor:
        ctx.save_for_backward(depth_PD, context_PC, cell_PD)
        return twin(__name__, depth_PD.device).splat(depth_PD, context_PC, cell_PD, cells)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        depth_PD, context_PC, cell_PD = ctx.saved_tensors
        gather = twin(__name__, depth_PD.device).gather
        return *gather(grad[0].contiguous(), depth_PD, context_PC, cell_PD), None, None
