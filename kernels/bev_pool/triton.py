"""Triton twin of `kernels.bev_pool.reference`; same letters, same results, no atomics.

The forward kernel walks the points of one BEV cell, the backward kernel the depth bins of one image cell.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bev_pool.reference import sort_by_cell

_POINTS = 16  # points handled at once


def splat(depth_PD: Tensor, context_PC: Tensor, cell_PD: Tensor, cells: int) -> Tensor:
    """Pooled context, float32 (K, C)."""
    order, begin_K1 = sort_by_cell(cell_PD, cells)
    bins, channels = depth_PD.shape[1], context_PC.shape[1]
    out_KC = torch.empty(cells, channels, device=context_PC.device)
    _splat[(cells,)](
        depth_PD, context_PC, order, begin_K1, out_KC, bins, channels, _POINTS, triton.next_power_of_2(channels)
    )
    return out_KC


def gather(grad_KC: Tensor, depth_PD: Tensor, context_PC: Tensor, cell_PD: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to depth (P, D) and context (P, C), float32."""
    grad_depth_PD, grad_context_PC = torch.empty_like(depth_PD), torch.empty_like(context_PC)
    bins, channels = depth_PD.shape[1], context_PC.shape[1]
    _gather[(len(depth_PD),)](
        grad_KC,
        depth_PD,
        context_PC,
        cell_PD,
        grad_depth_PD,
        grad_context_PC,
        len(grad_KC),
        bins,
        channels,
        _POINTS,
        triton.next_power_of_2(channels),
    )
    return grad_depth_PD, grad_context_PC


@triton.jit
def _splat(depth, context, order, begin, out, bins, channels, POINTS: tl.constexpr, BLOCK_C: tl.constexpr):
    cell = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    first = tl.load(begin + cell)
    last = tl.load(begin + cell + 1)
    for start in range(first, last, POINTS):
        i = start + tl.arange(0, POINTS)
        point = tl.load(order + i, mask=i < last, other=0)
        weight = tl.load(depth + point, mask=i < last, other=0.0)
        row = (point // bins) * channels
        mask = (i < last)[:, None] & (c < channels)[None, :]
        feature = tl.load(context + row[:, None] + c[None, :], mask=mask, other=0.0)
        total += tl.sum(weight[:, None] * feature, axis=0)
    tl.store(out + cell.to(tl.int64) * channels + c, total, mask=c < channels)


@triton.jit
def _gather(
    grad,
    depth,
    context,
    cell,
    grad_depth,
    grad_context,
    cells,
    bins,
    channels,
    POINTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    feature = tl.load(context + pixel * channels + c, mask=c < channels, other=0.0)
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(0, bins, POINTS):
        d = start + tl.arange(0, POINTS)
        k = tl.load(cell + pixel * bins + d, mask=d < bins, other=cells).to(tl.int64)
        mask = (k < cells)[:, None] & (c < channels)[None, :]
        g = tl.load(grad + k[:, None] * channels + c[None, :], mask=mask, other=0.0)
        tl.store(grad_depth + pixel * bins + d, tl.sum(g * feature[None, :], axis=1), mask=d < bins)
        weight = tl.load(depth + pixel * bins + d, mask=d < bins, other=0.0)
        total += tl.sum(weight[:, None] * g, axis=0)
    tl.store(grad_context + pixel * channels + c, total, mask=c < channels)
