"""Torch reference of splatting; runs on any device. Letters as in `kernels.splat`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.splat.tiles import Splats, Tiles


def splat(points_V3: Tensor, cells_V3: Tensor, splats: Splats, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """Sums (V, S) and emptiness (V,) by dense algebra on one tile after the other."""
    sums_VS = points_V3.new_empty(len(points_V3), splats.features_GS.shape[1])
    empty_V = points_V3.new_empty(len(points_V3))
    for begin, end, first, last in torch.stack(tiles[2:], 1).tolist():
        point_T, gaussian_P = tiles.order_V[begin:end], tiles.gaussian_P[first:last]
        means_P3, precisions_P6, cells_P3, radius_P, weights_P, features_PS = (field[gaussian_P] for field in splats)
        cells_3PT = cells_V3[point_T].T[:, None] - cells_P3.T[:, :, None]
        reached_PT = cells_3PT.abs().amax(0) <= radius_P[:, None]
        x, y, z = points_V3[point_T].T[:, None] - means_P3.T[:, :, None]
        xx, yy, zz, xy, xz, yz = precisions_P6[:, :, None].unbind(1)
        exponent_PT = -0.5 * (xx * x * x + yy * y * y + zz * z * z) - (xy * x * y + xz * x * z + yz * y * z)
        p_PT = torch.where(reached_PT, exponent_PT.exp(), 0)
        empty_V[point_T] = (1 - p_PT).prod(0)
        sums_VS[point_T] = torch.where(reached_PT, weights_P[:, None] * p_PT, 0).T @ features_PS
    return sums_VS, empty_V
