"""From the last anchors to semantic Gaussians (docs/formulas.md 6.1, 7.1 to 7.3).

Letters: G Gaussians, K anchor columns, S = 18 semantic channels (17 = empty).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.gaussians import EMPTY, Gaussians
from distill.grids import SURROUNDOCC
from teacher_dump.teachers.gaussianformer.anchors import DecodedAnchors, decode


class GaussianHead(nn.Module):
    """Reads anchors as Gaussians; parameters and buffers are named as upstream's.

    Args:
        form: "probabilistic" (semantics become a softmax) or "additive".
        scale_range: smallest and largest scale of a Gaussian, metres.
        semantics: "identity" or "softplus", what turns the semantic columns into scores.
        opacity: whether anchors have an opacity column.
        empty: add one fixed Gaussian of free space that fills the whole range.
        reach: where Gaussians end, in multiples of their largest scale.
        det: how covariances are inverted, see `Gaussians`.
    """

    empty_mean: Tensor
    empty_scale: Tensor
    empty_rot: Tensor
    empty_sem: Tensor
    empty_opa: Tensor

    def __init__(
        self,
        form: Literal["probabilistic", "additive"],
        scale_range: Sequence[float],
        semantics: Literal["identity", "softplus"],
        opacity: bool,
        empty: bool,
        reach: float,
        det: Literal["upstream", "stable"],
    ) -> None:
        super().__init__()
        self.form, self.scale_range, self.semantics, self.opacity = form, tuple(scale_range), semantics, opacity
        self.empty, self.reach, self.det = empty, reach, det
        if empty:
            self.empty_scalar = nn.Parameter(torch.full((1,), 10.0))
            self.register_buffer("empty_mean", torch.tensor([[[0.0, 0.0, -1.0]]]))
            self.register_buffer("empty_scale", torch.tensor([[[100.0, 100.0, 8.0]]]))
            self.register_buffer("empty_rot", torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]))
            self.register_buffer("empty_sem", torch.zeros(1, 1, EMPTY + 1))
            self.register_buffer("empty_opa", torch.ones(1, 1, 1))
        # upstream's files hold these two; nothing here reads them
        self.register_buffer("zero_tensor", torch.zeros(1))
        self.aggregator = nn.Module()
        self.aggregator.register_buffer("pc_min", torch.tensor([SURROUNDOCC.lower]))

    def forward(self, anchor_GK: Tensor) -> Gaussians:
        """Anchors float32 (G, K) of one keyframe -> its Gaussians, LIDAR_TOP frame."""
        decoded = decode(anchor_GK, self.scale_range, self.semantics, self.opacity)
        scores_GS = decoded.semantics_GS.softmax(1) if self.form == "probabilistic" else decoded.semantics_GS
        fields = decoded._replace(semantics_GS=F.pad(scores_GS, (0, EMPTY + 1 - scores_GS.shape[1])))
        if self.empty:
            fields = DecodedAnchors._make(map(torch.cat, zip(fields, self._empty_gaussian(), strict=True)))
        return Gaussians(*fields, form=self.form, reach=self.reach, det=self.det, space=SURROUNDOCC)

    def _empty_gaussian(self) -> DecodedAnchors:
        return DecodedAnchors(
            means_G3=self.empty_mean[0],
            scales_G3=self.empty_scale[0],
            rotations_G4=self.empty_rot[0],
            opacities_G=self.empty_opa[0, 0],
            semantics_GS=self.empty_sem[0] + F.pad(self.empty_scalar, (EMPTY, 0)),
        )
