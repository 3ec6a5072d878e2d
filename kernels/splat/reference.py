"""Torch reference of splatting; runs on any device.

Letters as in `kernels.splat`; here T are the points of one tile and P the Gaussians of its block, M = 10 monomials of a
point up to degree two, K cells along the longest edge of a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.splat.tiles import BLOCK, Splats, Tiles

_LOG2_E = math.log2(math.e)


def splat(points_V3: Tensor, cells_V3: Tensor, splats: Splats, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """Sums (V, S) and emptiness (V,) by dense algebra on one tile after the other."""
    sums_VS = points_V3.new_empty(len(points_V3), splats.features_GS.shape[1])
    empty_V = points_V3.new_empty(len(points_V3))
    exponents_GM = _exponents(splats)
    for begin, end, first, last in torch.stack(tiles[2:], 1).tolist():
        point_T, gaussian_P = tiles.order_V[begin:end], tiles.gaussian_P[first:last]
        exponent_PT = (exponents_GM[gaussian_P] @ _monomials(points_V3[point_T]).T).float()
        reached_PT = _reached(cells_V3[point_T], splats.cells_G3[gaussian_P], splats.radius_G[gaussian_P])
        # not exp: on a CPU it takes ten times as long where the result is 0
        p_PT = torch.where(reached_PT, exponent_PT.exp2_(), 0)
        empty_V[point_T] = (1 - p_PT).prod(0)
        weighted_PT = torch.where(reached_PT, splats.weights_G[gaussian_P, None] * p_PT, 0)
        sums_VS[point_T] = weighted_PT.T @ splats.features_GS[gaussian_P]
    return sums_VS, empty_V


def _exponents(splats: Splats) -> Tensor:
    """log2 p as coefficients of `_monomials`; (G, M), in float64, since the terms cancel."""
    mean_G3, precision_G6 = splats.means_G3.double(), splats.precisions_G6.double()
    precision_G33 = precision_G6[:, (0, 3, 4, 3, 1, 5, 4, 5, 2)].view(-1, 3, 3)
    linear_G3 = (precision_G33 @ mean_G3.unsqueeze(2)).squeeze(2)
    constant_G1 = (linear_G3 * mean_G3).sum(1, keepdim=True)
    halves_6 = precision_G6.new_tensor([0.5, 0.5, 0.5, 1, 1, 1])
    return _LOG2_E * torch.cat([-halves_6 * precision_G6, linear_G3, -0.5 * constant_G1], 1)


def _monomials(points_T3: Tensor) -> Tensor:
    """xx, yy, zz, xy, xz, yz, x, y, z, 1 of each point; float64 (T, M)."""
    x, y, z = points_T3.double().unbind(1)
    return torch.stack([x * x, y * y, z * z, x * y, x * z, y * z, x, y, z, torch.ones_like(x)], 1)


def _reached(cells_T3: Tensor, cells_P3: Tensor, radius_P: Tensor) -> Tensor:
    """Whether a point lies in the box of a Gaussian, bool (P, T): along all three axes, counted by a matrix product."""
    axis_3K = cells_T3.amin(0).unsqueeze(1) + torch.arange(max(BLOCK), device=cells_T3.device)
    reaches_P3K = (axis_3K - cells_P3.unsqueeze(2)).abs() <= radius_P[:, None, None]
    is_there_T3K = cells_T3.unsqueeze(2) == axis_3K
    return reaches_P3K.flatten(1).float() @ is_there_T3K.flatten(1).float().T == 3
