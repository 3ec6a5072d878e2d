"""Which Gaussians concern which query points; torch on any device. Letters as in `kernels.splat`;
C is a chunk of blocks, P the pairs of a block and a Gaussian that touches it.

Space is cut into blocks B of cells. Query points are sorted by block and cut into tiles, at most `POINTS` points of one
block; each occupied block lists the Gaussians whose boxes touch it, in ascending order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = (4, 4, 8)  # cells
POINTS = 128  # of a tile; as many as a block has cells
_PAIRS = 2**24  # of block and Gaussian, looked at at once


class Splats(NamedTuple):
    """Gaussians ready for splatting, contiguous.

    Attributes:
        means_G3: float32.
        precisions_G6: float32 xx, yy, zz, xy, xz, yz.
        cells_G3: int32, the cell of the mean.
        radius_G: int32 cells.
        weights_G: float32.
        features_GS: float32.
    """

    means_G3: Tensor
    precisions_G6: Tensor
    cells_G3: Tensor
    radius_G: Tensor
    weights_G: Tensor
    features_GS: Tensor


class Tiles(NamedTuple):
    """Tiles and the lists of their blocks, int64.

    Attributes:
        order_V: query points, block by block.
        gaussian_P: Gaussians, block by block.
        begin_T: where the points of a tile begin in `order_V`.
        end_T: where they end.
        first_T: where the Gaussians of the tile's block begin in `gaussian_P`.
        last_T: where they end.
    """

    order_V: Tensor
    gaussian_P: Tensor
    begin_T: Tensor
    end_T: Tensor
    first_T: Tensor
    last_T: Tensor


def cells_of(points_V3: Tensor, lower: Sequence[float], cell: float) -> Tensor:
    """The cells that points lie in, int32 (V, 3)."""
    return ((points_V3 - points_V3.new_tensor(lower)) / cell).floor().int()


def cut(cells_V3: Tensor, cells_G3: Tensor, radius_G: Tensor) -> Tiles:
    """Cut V > 0 query points into tiles and list the Gaussians of their blocks; arguments as in `Splats`."""
    block_3 = cells_V3.new_tensor(BLOCK)
    block_V3 = cells_V3.div(block_3, rounding_mode="floor")
    low_3 = block_V3.amin(0)
    x, y, z = (block_V3 - low_3).long().unbind(1)
    number_V, order_V = ((x * (y.max() + 1) + y) * (z.max() + 1) + z).sort(stable=True)
    points_B = number_V.unique_consecutive(return_counts=True)[1]
    end_B = points_B.cumsum(0)

    radius_G1 = radius_G.unsqueeze(1)
    gaussian_P, gaussians_B = _touching(
        block_V3[order_V[end_B - 1]],
        (cells_G3 - radius_G1).div(block_3, rounding_mode="floor"),
        (cells_G3 + radius_G1).div(block_3, rounding_mode="floor"),
    )
    last_B = gaussians_B.cumsum(0)

    tiles_B = (points_B + POINTS - 1) // POINTS
    block_T = torch.repeat_interleave(tiles_B)
    tile_T = torch.arange(len(block_T), device=block_T.device) - (tiles_B.cumsum(0) - tiles_B)[block_T]
    begin_T = (end_B - points_B)[block_T] + tile_T * POINTS
    end_T = torch.minimum(begin_T + POINTS, end_B[block_T])
    return Tiles(order_V, gaussian_P, begin_T, end_T, (last_B - gaussians_B)[block_T], last_B[block_T])


def _touching(block_B3: Tensor, from_G3: Tensor, to_G3: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussians whose boxes, block from .. to inclusive, hold each block: numbers (P,) and how many per block (B,)."""
    along = [_touching_along(block_B3[:, axis], from_G3[:, axis], to_G3[:, axis]) for axis in range(3)]
    numbers, counts = [], []
    for block_C in torch.arange(len(block_B3), device=block_B3.device).split(max(1, _PAIRS // len(from_G3))):
        touches_CG = torch.ones(len(block_C), len(from_G3), dtype=torch.bool, device=block_B3.device)
        for touches_KG, place_B in along:
            touches_CG &= touches_KG[place_B[block_C]]
        block_P, gaussian_P = touches_CG.nonzero().unbind(1)
        numbers.append(gaussian_P)
        counts.append(torch.searchsorted(block_P, torch.arange(len(block_C) + 1, device=block_P.device)).diff())
    return torch.cat(numbers), torch.cat(counts)


def _touching_along(block_B: Tensor, from_G: Tensor, to_G: Tensor) -> tuple[Tensor, Tensor]:
    """Along one axis: which of the K different blocks each Gaussian holds (K, G), which of them each block is (B,)."""
    block_K, place_B = block_B.unique(return_inverse=True)
    return (from_G <= block_K[:, None]) & (block_K[:, None] <= to_G), place_B
