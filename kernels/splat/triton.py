"""Triton twin of `kernels.splat.reference`; same letters, same results, no atomics.

A program takes one tile and walks the Gaussians of its block, a few at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.splat.tiles import POINTS, Splats, Tiles

_GAUSSIANS = 16  # handled at once


def splat(points_V3: Tensor, cells_V3: Tensor, splats: Splats, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """Sums (V, S) and emptiness (V,)."""
    channels = splats.features_GS.shape[1]
    sums_VS = torch.empty(len(points_V3), channels, device=points_V3.device)
    empty_V = torch.empty(len(points_V3), device=points_V3.device)
    block_s = max(16, triton.next_power_of_2(channels))  # a matrix product takes no less
    _splat[(len(tiles.begin_T),)](
        points_V3, cells_V3, *splats, *tiles, sums_VS, empty_V, channels, POINTS, _GAUSSIANS, block_s
    )
    return sums_VS, empty_V


@triton.jit
def _splat(
    points,
    cells,
    means,
    precisions,
    centres,
    radii,
    weights,
    features,
    order,
    gaussian,
    begin,
    end,
    first,
    last,
    sums,
    empty,
    channels,
    POINTS: tl.constexpr,
    GAUSSIANS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    tile = tl.program_id(0)
    i = tl.load(begin + tile) + tl.arange(0, POINTS)
    is_point = i < tl.load(end + tile)
    v = tl.load(order + i, mask=is_point, other=0)
    x, y, z = _triple(points, v, is_point)
    cell_x, cell_y, cell_z = _triple(cells, v, is_point)
    s = tl.arange(0, BLOCK_S)
    total = tl.zeros((POINTS, BLOCK_S), dtype=tl.float32)
    vacancy = tl.full((POINTS,), 1.0, dtype=tl.float32)
    stop = tl.load(last + tile)
    for start in range(tl.load(first + tile), stop, GAUSSIANS):
        j = start + tl.arange(0, GAUSSIANS)
        listed = j < stop
        g = tl.load(gaussian + j, mask=listed, other=0)
        centre_x, centre_y, centre_z = _triple(centres, g, listed)
        radius = tl.load(radii + g, mask=listed, other=-1)  # -1 reaches nothing
        near = tl.abs(cell_x[:, None] - centre_x[None, :]) <= radius[None, :]
        near &= tl.abs(cell_y[:, None] - centre_y[None, :]) <= radius[None, :]
        near &= tl.abs(cell_z[:, None] - centre_z[None, :]) <= radius[None, :]
        mean_x, mean_y, mean_z = _triple(means, g, listed)
        exponent = _logarithm(
            precisions + 6 * g, listed, x[:, None] - mean_x[None], y[:, None] - mean_y[None], z[:, None] - mean_z[None]
        )
        p = tl.where(near, tl.exp(exponent), 0.0)
        vacancy *= tl.reduce(1.0 - p, 1, _multiply)
        weight = tl.load(weights + g, mask=listed, other=0.0)
        mask = listed[:, None] & (s < channels)[None, :]
        feature = tl.load(features + g[:, None] * channels + s[None, :], mask=mask, other=0.0)
        total += tl.dot(tl.where(near, weight[None, :] * p, 0.0), feature, input_precision="ieee")
    tl.store(empty + v, vacancy, mask=is_point)
    tl.store(sums + v[:, None] * channels + s[None, :], total, mask=is_point[:, None] & (s < channels)[None, :])


@triton.jit
def _triple(rows, i, mask):
    """The three columns of rows i."""
    at = rows + 3 * i
    return tl.load(at, mask=mask, other=0), tl.load(at + 1, mask=mask, other=0), tl.load(at + 2, mask=mask, other=0)


@triton.jit
def _logarithm(rows, mask, x, y, z):
    """Logarithms of the Gaussians, one per column, at (x, y, z) from their means."""
    xx = tl.load(rows, mask=mask, other=0.0)[None, :]
    yy = tl.load(rows + 1, mask=mask, other=0.0)[None, :]
    zz = tl.load(rows + 2, mask=mask, other=0.0)[None, :]
    xy = tl.load(rows + 3, mask=mask, other=0.0)[None, :]
    xz = tl.load(rows + 4, mask=mask, other=0.0)[None, :]
    yz = tl.load(rows + 5, mask=mask, other=0.0)[None, :]
    return -0.5 * (xx * x * x + yy * y * y + zz * z * z) - (xy * x * y + xz * x * z + yz * y * z)


@triton.jit
def _multiply(a, b):
    return a * b
