"""Gaussian splatting onto arbitrary query points, the sum behind GaussianFormer's heads (docs/formulas.md 7.1 to 7.3).

p_g(x) = exp(-(x - mean_g)^T precision_g (x - mean_g) / 2) in a box of cells around the Gaussian's own cell, else 0.
Pairs of point and Gaussian are never stored.

Letters: V query points, G Gaussians, S channels, T tiles, P pairs of block and Gaussian, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kernels.dispatch import twin
from kernels.splat.tiles import Splats, cells_of, cut


def splat(
    points_V3: Tensor,
    means_G3: Tensor,
    precisions_G33: Tensor,
    radius_G: Tensor,
    weights_G: Tensor,
    features_GS: Tensor,
    lower: Sequence[float],
    cell: float,
) -> tuple[Tensor, Tensor]:
    """Mix the features of Gaussians, and tell how likely none of them is there. Deterministic; not differentiable.

    All tensors lie on one device. Any number of points anywhere; the cost falls with the number of blocks of 4 x 4 x 8
    cells they occupy and with the Gaussians that reach those.

    Args:
        points_V3: query points; everything is computed in float32.
        means_G3: in the unit and frame of the points.
        precisions_G33: symmetric; the upper triangle is read.
        radius_G: integer, cells that a Gaussian reaches from its own cell, along each axis.
        weights_G: a NaN makes the sums of every point within reach NaN.
        features_GS: finite.
        lower: where cell (0, 0, 0) begins.
        cell: edge length of a cell.

    Returns:
        sum_g weights_g p_g(x) features_g, float32 (V, S), and prod_g(1 - p_g(x)), float32 (V,).
    """
    points_V3, means_G3 = points_V3.detach().float().contiguous(), means_G3.detach().float().contiguous()
    if not len(points_V3) or not len(means_G3):
        return points_V3.new_zeros(len(points_V3), features_GS.shape[1]), points_V3.new_ones(len(points_V3))
    splats = Splats(
        means_G3,
        precisions_G33.detach()[:, (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)].float().contiguous(),
        cells_of(means_G3, lower, cell),
        radius_G.int().contiguous(),
        weights_G.detach().float().contiguous(),
        features_GS.detach().float().contiguous(),
    )
    cells_V3 = cells_of(points_V3, lower, cell)
    tiles = cut(cells_V3, splats.cells_G3, splats.radius_G)
    return twin(__name__, points_V3.device).splat(points_V3, cells_V3, splats, tiles)
