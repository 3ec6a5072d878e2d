"""What every occupancy network returns."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Occupancy(NamedTuple):
    """A network's answer for a batch of B keyframes with N cameras each.

    Attributes:
        voxel_logits_BXYZC: unnormalised class scores of every voxel.
        depth_logits_BNDHW: unnormalised scores of the D depth bins of every image cell; None without a camera lift.
        depth_range: (lower, upper) in metres, divided into D equal bins; without depth logits it means nothing.
    """

    voxel_logits_BXYZC: torch.Tensor
    depth_logits_BNDHW: torch.Tensor | None = None
    depth_range: tuple[float, float] = (0.0, 0.0)
