"""What every occupancy network returns.

Letters: B batch, N cameras, D depth bins, H W image cells, X Y Z voxel axes, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from distill.point_sets import PointSet

Spacing = Literal["linear", "log"]


def depth_bin(depth: Tensor, lower: float, upper: float, bins: int, spacing: Spacing = "linear") -> Tensor:
    """In which bin over [lower, upper) measured depths lie; -1 outside, such as 0 = no return; int64.

    Args:
        depth: metres, any shape.
        lower, upper: metres.
        bins: their number.
        spacing: "linear": they are equal; "log": the i-th begins at the i-th of as many equal steps in the logarithm
            from `lower` to `upper - 1` metres (docs/formulas.md 9.4).
    """
    within = (depth > 0) & (depth >= lower) & (depth < upper)
    if spacing == "linear":
        place = (depth - lower) * (bins / (upper - lower))
    else:
        place = (depth / lower).log() * ((bins - 1) / math.log((upper - 1) / lower))
    # rounding may put a depth just below `upper` into bin number `bins`
    return torch.where(within, place.long().clamp_max(bins - 1), -1)


class FeatureMap(NamedTuple):
    """A map of features that a term may look into.

    Attributes:
        values: (B, N, C, H, W) on the cells of the images; (B, C, X, Y) on cells of the grid's columns, or
            (B, C, X, Y, Z) on blocks of its voxels.
        frame: which of the two, "image" or "grid".
        stride: image pixels, voxel columns or voxels along the edge of one cell.
    """

    values: Tensor
    frame: Literal["image", "grid"]
    stride: int


class FeatureKind(NamedTuple):
    """What is known of a map "bev" or "voxels" before there is one.

    Attributes:
        channels: of a cell.
        stride: voxels along the edges of a cell.
    """

    channels: int
    stride: int


class DepthBins(NamedTuple):
    """A distribution over depth for every image cell.

    Attributes:
        logits_BNDHW: unnormalised scores of D bins.
        lower: where the first bin starts, metres along the optical axis.
        upper: where the last bin ends, metres.
        stride: image pixels along the edge of one cell.
        spacing: of the bins, see `depth_bin`.
    """

    logits_BNDHW: Tensor
    lower: float
    upper: float
    stride: int
    spacing: Spacing = "linear"

    def bin_of(self, depth: Tensor) -> Tensor:
        """In which of the bins measured depths lie, see `depth_bin`."""
        return depth_bin(depth, self.lower, self.upper, self.logits_BNDHW.shape[2], self.spacing)

    def centres(self) -> Tensor:
        """Of the bins, metres (D,)."""
        bins = self.logits_BNDHW.shape[2]
        half_D = torch.arange(bins, device=self.logits_BNDHW.device) + 0.5
        if self.spacing == "linear":
            return self.lower + half_D / bins * (self.upper - self.lower)
        return self.lower * ((self.upper - 1) / self.lower) ** (half_D / (bins - 1))


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
