"""Triton twin of `kernels.level_sampling.reference`: one program per sample, no atomics. Same letters.

Gradients of the maps go to the pixels around the samples in a fixed order, by PyTorch's own embedding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.level_sampling.reference import corners


def sample(maps: list[Tensor], image_AM: Tensor, uv_AM2: Tensor, weights_AML: Tensor) -> Tensor:
    """Weighted samples (A, M, C)."""
    (groups, samples), channels = image_AM.shape, maps[0].shape[3] // len(image_AM)
    out_AMC = maps[0].new_zeros(groups, samples, channels)
    given = image_AM.contiguous(), uv_AM2.contiguous(), weights_AML.contiguous()
    for level, map_IHWD in enumerate(maps if samples else []):
        _sample[(groups * samples,)](
            map_IHWD.contiguous(), *given, out_AMC, *_sizes(map_IHWD, level, given[2], channels)
        )
    return out_AMC


def gradients(
    grad_AMC: Tensor, maps: list[Tensor], image_AM: Tensor, uv_AM2: Tensor, weights_AML: Tensor
) -> tuple[Tensor, ...]:
    """With respect to positions, weights and maps, in this order."""
    (groups, samples), channels = image_AM.shape, maps[0].shape[3] // len(image_AM)
    grad_AMC = grad_AMC.contiguous()
    given = image_AM.contiguous(), uv_AM2.contiguous(), weights_AML.contiguous()
    of_uv_AM2, of_weights_AML, of_maps = torch.zeros_like(given[1]), torch.zeros_like(given[2]), []
    for level, map_IHWD in enumerate(maps):
        if samples:
            sizes = _sizes(map_IHWD, level, given[2], channels)
            _gradients[(groups * samples,)](grad_AMC, map_IHWD.contiguous(), *given, of_uv_AM2, of_weights_AML, *sizes)
        index_AMK, share_AMK = corners(map_IHWD, image_AM, uv_AM2)
        of_rows_AMKC = (share_AMK * weights_AML[..., level, None]).unsqueeze(3) * grad_AMC.unsqueeze(2)
        of_rows_RC = torch.ops.aten.embedding_dense_backward(
            of_rows_AMKC.flatten(0, 2), index_AMK.flatten(), map_IHWD.numel() // channels, -1, False
        )
        of_maps.append(of_rows_RC.view(map_IHWD.shape))
    return of_uv_AM2, of_weights_AML, *of_maps


def _sizes(map_IHWD: Tensor, level: int, weights_AML: Tensor, channels: int) -> tuple[int, ...]:
    """The numbers that both kernels end with."""
    groups, samples, levels = weights_AML.shape
    return *map_IHWD.shape[1:3], level, samples, levels, groups, channels, triton.next_power_of_2(channels)


@triton.jit
def _sample(
    rows, image, uv, weights, out, height, width, level, samples, levels, groups, channels, BLOCK_C: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    column, row = tl.load(uv + place * 2) * (width - 1), tl.load(uv + place * 2 + 1) * (height - 1)
    left, top = tl.floor(column), tl.floor(row)
    right, below = column - left, row - top
    first = rows + (tl.load(image + place) * height * width * groups + place // samples) * channels
    stride = groups * channels
    total = _pixel(first, top, left, height, width, c, channels, stride) * ((1 - below) * (1 - right))
    total += _pixel(first, top, left + 1, height, width, c, channels, stride) * ((1 - below) * right)
    total += _pixel(first, top + 1, left, height, width, c, channels, stride) * (below * (1 - right))
    total += _pixel(first, top + 1, left + 1, height, width, c, channels, stride) * (below * right)
    target = out + place * channels + c
    before = tl.load(target, mask=c < channels, other=0.0)
    tl.store(target, before + tl.load(weights + place * levels + level) * total, mask=c < channels)


@triton.jit
def _gradients(
    grad,
    rows,
    image,
    uv,
    weights,
    of_uv,
    of_weights,
    height,
    width,
    level,
    samples,
    levels,
    groups,
    channels,
    BLOCK_C: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    column, row = tl.load(uv + place * 2) * (width - 1), tl.load(uv + place * 2 + 1) * (height - 1)
    left, top = tl.floor(column), tl.floor(row)
    right, below = column - left, row - top
    first = rows + (tl.load(image + place) * height * width * groups + place // samples) * channels
    stride = groups * channels
    asked = tl.load(grad + place * channels + c, mask=c < channels, other=0.0)
    upper_left = tl.sum(asked * _pixel(first, top, left, height, width, c, channels, stride))
    upper_right = tl.sum(asked * _pixel(first, top, left + 1, height, width, c, channels, stride))
    lower_left = tl.sum(asked * _pixel(first, top + 1, left, height, width, c, channels, stride))
    lower_right = tl.sum(asked * _pixel(first, top + 1, left + 1, height, width, c, channels, stride))
    upper = (1 - right) * upper_left + right * upper_right
    lower = (1 - right) * lower_left + right * lower_right
    tl.store(of_weights + place * levels + level, (1 - below) * upper + below * lower)
    weight = tl.load(weights + place * levels + level)
    along_row = (1 - below) * (upper_right - upper_left) + below * (lower_right - lower_left)
    u, v = of_uv + place * 2, of_uv + place * 2 + 1
    tl.store(u, tl.load(u) + weight * (width - 1) * along_row)
    tl.store(v, tl.load(v) + weight * (height - 1) * (lower - upper))


@triton.jit
def _pixel(first, row, column, height, width, c, channels, stride):
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixel = tl.where(inside, row, 0).to(tl.int64) * width + tl.where(inside, column, 0).to(tl.int64)
    within = tl.where(inside, channels, 0)
    return tl.load(first + pixel * stride + c, mask=c < within, other=0.0)
