"""BEV pooling: the "splat" of Lift-Splat (Philion & Fidler 2020), a sum of depth-weighted context per BEV cell.

Every image cell p lifts into D points. Point (p, d) carries depth_PD[p, d] * context_PC[p] and falls into one BEV cell
or outside. These P * D feature vectors are never stored: pooling is a sparse (cells x P) matrix, whose non-zeros are
the depth probabilities, times the dense context.

Letters: B batch, N cameras, D depth bins, H W image cells, C channels, P = B*N*H*W image cells, K BEV cells.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
        return _implementation(depth_PD.device)[0](depth_PD, context_PC, cell_PD, cells)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        depth_PD, context_PC, cell_PD = ctx.saved_tensors
        gather = _implementation(depth_PD.device)[1]
        return *gather(grad[0].contiguous(), depth_PD, context_PC, cell_PD), None, None


def _implementation(device: torch.device) -> tuple[Any, Any]:
    if device.type == "cuda":
        from kernels import bev_pool_triton as triton_twin

        return triton_twin.splat, triton_twin.gather
    return splat, gather


def sort_by_cell(cell_PD: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Flat point numbers in the order of their cells, and where each of the K + 1 cells begins, (P*D,) and (K + 1,)."""
    sorted_cell, order = cell_PD.flatten().int().sort(stable=True)
    bounds = torch.arange(cells + 1, dtype=torch.int32, device=cell_PD.device)
    return order, torch.searchsorted(sorted_cell, bounds)


def splat(depth_PD: Tensor, context_PC: Tensor, cell_PD: Tensor, cells: int) -> Tensor:
    """Torch reference of the pooling, (K, C); a bag of image cells per BEV cell."""
    order, begin_K1 = sort_by_cell(cell_PD, cells)
    inside = order[: begin_K1[-1]]
    return F.embedding_bag(
        inside // depth_PD.shape[1],
        context_PC,
        begin_K1,
        mode="sum",
        per_sample_weights=depth_PD.flatten()[inside],
        include_last_offset=True,
    )


def gather(grad_KC: Tensor, depth_PD: Tensor, context_PC: Tensor, cell_PD: Tensor) -> tuple[Tensor, Tensor]:
    """Torch reference of the gradients (P, D) and (P, C); a bag of BEV cells per image cell.

    <grad, splat(depth, context)> = <context, grad_context(depth)> is linear in depth, so the gradient with respect to
    depth is the gradient of that product.
    """
    inside_PD = cell_PD < len(grad_KC)
    with torch.enable_grad():
        depth_PD = depth_PD.detach().requires_grad_()
        grad_context_PC = F.embedding_bag(
            torch.where(inside_PD, cell_PD, 0),
            grad_KC.detach(),
            mode="sum",
            per_sample_weights=torch.where(inside_PD, depth_PD, 0),
        )
        (grad_depth_PD,) = torch.autograd.grad(grad_context_PC, depth_PD, context_PC)
    return grad_depth_PD, grad_context_PC.detach()
