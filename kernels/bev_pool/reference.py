"""Torch reference of BEV pooling; runs on any device. Letters as in `kernels.bev_pool`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sort_by_cell(cell_PD: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Flat point numbers in the order of their cells, and where each of the K + 1 cells begins, (P*D,) and (K + 1,)."""
    sorted_cell, order = cell_PD.flatten().int().sort(stable=True)
    bounds = torch.arange(cells + 1, dtype=torch.int32, device=cell_PD.device)
    return order, torch.searchsorted(sorted_cell, bounds)


def splat(depth_PD: Tensor, context_PC: Tensor, cell_PD: Tensor, cells: int) -> Tensor:
    """The pooling, (K, C); a bag of image cells per BEV cell."""
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
    """The gradients (P, D) and (P, C); a bag of BEV cells per image cell.

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
