"""What every occupancy network returns.

Letters: B batch, N cameras, D depth bins, H W image cells, X Y Z voxel axes, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from distill.point_sets import PointSet


def depth_bin(depth: Tensor, lower: float, upper: float, bins: int) -> Tensor:
    """In which of equal bins over [lower, upper) measured depths lie; -1 outside, such as 0 = no return; int64.

    Args:
        depth: metres, any shape.
        lower, upper: metres.
        bins: their number.
    """
    within = (depth > 0) & (depth >= lower) & (depth < upper)
    # rounding may put a depth just below `upper` into bin number `bins`
    return torch.where(within, ((depth - lower) * (bins / (upper - lower))).long().clamp_max(bins - 1), -1)


class FeatureMap(NamedTuple):
    """A map of features that a term may look into.

    Attributes:
        values: (B, N, C, H, W) on the cells of the images, or (B, C, X, Y) on cells of the grid's columns.
        frame: which of the two, "image" or "grid".
        stride: image pixels, or voxel columns, along the edge of one cell.
    """

    values: Tensor
    frame: Literal["image", "grid"]
    stride: int


class FeatureKind(NamedTuple):
    """What is known of a map "bev" before there is one.

    Attributes:
        channels: of a cell.
        stride: voxel columns along the edge of a cell.
    """

    channels: int
    stride: int


class DepthBins(NamedTuple):
    """A distribution over depth for every image cell.

    Attributes:
        logits_BNDHW: unnormalised scores of D equal bins.
        lower: where the first bin starts, metres along the optical axis.
        upper: where the last bin ends, metres.
        stride: image pixels along the edge of one cell.
    """

    logits_BNDHW: Tensor
    lower: float
    upper: float
    stride: int


class Occupancy(NamedTuple):
    """A network's answer for a batch of frames.

    Attributes:
        voxel_logits_BXYZC: unnormalised class scores of every voxel.
        features: by name; which there are is the network's to say.
        depth: None for a network without a camera lift.
        branches: answers of branches that exist in training alone, by name.
        proposals: of a network that first proposes voxels: by scale s, the scores of empty and occupied of blocks of
            s^3 voxels, (B, X / s, Y / s, Z / s, 2).
        points: of a network of sets, from whose last the voxels follow: one per layer, and first what all begin with.
    """

    voxel_logits_BXYZC: Tensor
    features: Mapping[str, FeatureMap] = MappingProxyType({})
    depth: DepthBins | None = None
    branches: Mapping[str, Occupancy] = MappingProxyType({})
    proposals: Mapping[int, Tensor] = MappingProxyType({})
    points: tuple[PointSet, ...] = ()
