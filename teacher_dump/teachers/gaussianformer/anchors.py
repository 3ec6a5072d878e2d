"""Anchors: a Gaussian as one row of numbers that a network can refine freely (docs/formulas.md 6.5).

The columns of a row are: position 3, scale 3, rotation 4, opacity 1 (not in every model), semantics S. Positions,
scales and opacities are logits of their share of a range; LIDAR_TOP frame, metres.

Letters: G Gaussians (rows), K columns, S semantic channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from distill.grids import SURROUNDOCC

OPACITY = 10  # the column of the opacity, or of the first semantic channel
_LOGIT_LIMIT = 9.21  # sigmoid: 0.0001, 0.9999
_SHARE_LIMIT = 1e-4


class DecodedAnchors(NamedTuple):
    """Anchors as Gaussians.

    Attributes:
        means_G3: float32, metres.
        scales_G3: float32, metres, > 0.
        rotations_G4: float32 unit quaternions (w, x, y, z).
        opacities_G: float32 in (0, 1); ones for a model without opacity.
        semantics_GS: float32 scores.
    """

    means_G3: Tensor
    scales_G3: Tensor
    rotations_G4: Tensor
    opacities_G: Tensor
    semantics_GS: Tensor


def decode(
    anchor_GK: Tensor, scale_range: Sequence[float], semantics: Literal["identity", "softplus"], opacity: bool
) -> DecodedAnchors:
    """Read anchors as Gaussians.

    Args:
        anchor_GK: float32 (G, 10 + opacity + S).
        scale_range: smallest and largest scale, metres.
        semantics: what turns the semantic columns into scores.
        opacity: whether there is an opacity column.
    """
    scores_GS = anchor_GK[:, OPACITY + opacity :]
    return DecodedAnchors(
        means_G3=means(anchor_GK),
        scales_G3=scales(anchor_GK, scale_range),
        rotations_G4=F.normalize(anchor_GK[:, 6:10], dim=1),
        opacities_G=anchor_GK[:, OPACITY].sigmoid() if opacity else anchor_GK.new_ones(len(anchor_GK)),
        semantics_GS=F.softplus(scores_GS) if semantics == "softplus" else scores_GS,
    )


def means(anchor_GK: Tensor) -> Tensor:
    """Centres in metres, (G, 3)."""
    lower_3, extent_3 = _range(anchor_GK)
    return safe_sigmoid(anchor_GK[:, :3]) * extent_3 + lower_3


def position_logits(means_G3: Tensor) -> Tensor:
    """The inverse of `means`: (G, 3) metres -> logits; positions outside the range are moved to its border."""
    lower_3, extent_3 = _range(means_G3)
    return safe_logit((means_G3 - lower_3) / extent_3)


def scales(anchor_GK: Tensor, scale_range: Sequence[float]) -> Tensor:
    """Standard deviations along the local axes, metres, (G, 3)."""
    smallest, largest = scale_range
    return smallest + (largest - smallest) * safe_sigmoid(anchor_GK[:, 3:6])


def safe_sigmoid(logits: Tensor) -> Tensor:
    """Sigmoid that stays within [0.0001, 0.9999]."""
    return logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT).sigmoid()


def safe_logit(shares: Tensor) -> Tensor:
    """Inverse of the sigmoid for shares clamped to [0.0001, 0.9999]."""
    return shares.clamp(_SHARE_LIMIT, 1 - _SHARE_LIMIT).logit()


def _range(like: Tensor) -> tuple[Tensor, Tensor]:
    """Lower corner and extent of the modelled box, metres, (3,) each."""
    lower_3 = like.new_tensor(SURROUNDOCC.lower)
    return lower_3, like.new_tensor(SURROUNDOCC.upper) - lower_3
