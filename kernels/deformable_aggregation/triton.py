"""Triton twin of `kernels.deformable_aggregation.reference`: one program per query, no atomics. Same letters.

Gradients are the reference's, which works the samples out once more: a kernel of its own would need atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.deformable_aggregation import reference


def aggregate(maps: list[Tensor], uv_GPN2: Tensor, weights_GPNLA: Tensor) -> Tensor:
    """Weighted samples, float32 (G, C)."""
    return _Aggregate.apply(uv_GPN2, weights_GPNLA, *maps)


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, uv_GPN2: Tensor, weights_GPNLA: Tensor, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(uv_GPN2, weights_GPNLA, *maps)
        return _launch([*maps], uv_GPN2, weights_GPNLA)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        given = [value.detach().requires_grad_(need) for value, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            uv_GPN2, weights_GPNLA, *maps = given
            out_GC = reference.aggregate(maps, uv_GPN2, weights_GPNLA)
        found = iter(torch.autograd.grad(out_GC, [value for value in given if value.requires_grad], gradients))
        return tuple(next(found) if need else None for need in needed)


def _launch(maps: list[Tensor], uv_GPN2: Tensor, weights_GPNLA: Tensor) -> Tensor:
    queries, points, cameras, levels, groups = weights_GPNLA.shape
    channels = maps[0].shape[1]
    rows_QC = torch.cat([map_NCHW.permute(0, 2, 3, 1).reshape(-1, channels) for map_NCHW in maps])
    shapes = [tuple(map_NCHW.shape[2:]) for map_NCHW in maps]
    shape_L2 = torch.tensor(shapes, dtype=torch.int32, device=rows_QC.device)
    out_GC = torch.empty(queries, channels, device=rows_QC.device)
    _aggregate[(queries,)](
        rows_QC,
        shape_L2,
        uv_GPN2.contiguous(),
        weights_GPNLA,
        out_GC,
        *weights_GPNLA.stride(),
        0.5 / min(height for height, _ in shapes),
        0.5 / min(width for _, width in shapes),
        points,
        cameras,
        levels,
        channels,
        channels // groups,
        triton.next_power_of_2(channels),
        num_warps=1,
    )
    return out_GC


@triton.jit
def _aggregate(
    rows,
    shapes,
    uv,
    weights,
    out,
    stride_g,
    stride_p,
    stride_n,
    stride_l,
    stride_a,
    margin_row,
    margin_column,
    points,
    cameras,
    levels,
    channels,
    group_channels,
    BLOCK_C: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for projection in range(points * cameras):
        u = tl.load(uv + (query * points * cameras + projection) * 2)
        v = tl.load(uv + (query * points * cameras + projection) * 2 + 1)
        near_columns = (u > -margin_column) & (u < 1 + margin_column)
        if near_columns & (v > -margin_row) & (v < 1 + margin_row):
            camera = projection % cameras
            first = weights + query * stride_g + (projection // cameras) * stride_p + camera * stride_n
            begin = 0
            for level in range(levels):
                height = tl.load(shapes + 2 * level)
                width = tl.load(shapes + 2 * level + 1)
                sample = _sample(rows + (begin + camera * height * width) * channels, u, v, height, width, c, channels)
                weight = tl.load(
                    first + level * stride_l + (c // group_channels) * stride_a, mask=c < channels, other=0.0
                )
                total += weight * sample
                begin += cameras * height * width
    tl.store(out + query * channels + c, total, mask=c < channels)


@triton.jit
def _sample(image, u, v, height, width, c, channels):
    """Bilinear sample of all channels; `image` points to the pixels of one camera and level."""
    column, row = u * width - 0.5, v * height - 0.5
    left, top = tl.floor(column).to(tl.int32), tl.floor(row).to(tl.int32)
    right, below = column - left, row - top
    total = _pixel(image, top, left, height, width, c, channels) * ((1 - below) * (1 - right))
    total += _pixel(image, top, left + 1, height, width, c, channels) * ((1 - below) * right)
    total += _pixel(image, top + 1, left, height, width, c, channels) * (below * (1 - right))
    total += _pixel(image, top + 1, left + 1, height, width, c, channels) * (below * right)
    return total


@triton.jit
def _pixel(image, row, column, height, width, c, channels):
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    within = tl.where(inside, channels, 0)
    return tl.load(image + (row * width + column) * channels + c, mask=c < within, other=0.0)
