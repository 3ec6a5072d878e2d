"""New anchors out of features (docs/formulas.md 6.9). Letters: G Gaussians, K anchor columns, C channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.grids import SURROUNDOCC
from teacher_dump.teachers.gaussianformer import anchors
from teacher_dump.teachers.gaussianformer.perceptrons import perceptron


class Refinement(nn.Module):
    """Moves each Gaussian by a bounded step and replaces everything else.

    Args:
        columns: K.
        channels: C.
        step: the longest step along each axis, metres.
        metric: whether steps are added in metres; otherwise to the logits, where they are as long in the middle of
            the range and shorter near its border.
    """

    def __init__(self, columns: int, channels: int, step: Sequence[float], metric: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*perceptron(channels, channels, 2, 2), nn.Linear(channels, columns), Scale(columns))
        extents = [upper - lower for lower, upper in zip(SURROUNDOCC.lower, SURROUNDOCC.upper, strict=True)]
        # the sigmoid's slope is 1 / 4 in the middle
        self.step = list(step) if metric else [4 * s / extent for s, extent in zip(step, extents, strict=True)]
        self.metric = metric

    def forward(self, x_GC: Tensor, embedding_GC: Tensor, anchor_GK: Tensor) -> Tensor:
        """Features, embedded anchors and anchors -> anchors (G, K)."""
        output_GK = self.layers(x_GC + embedding_GC)
        step_G3 = (2 * output_GK[:, :3].sigmoid() - 1) * output_GK.new_tensor(self.step)
        if self.metric:
            xyz_G3 = anchors.position_logits(anchors.means(anchor_GK) + step_G3)
        else:
            xyz_G3 = anchor_GK[:, :3] + step_G3
        rotation_G4 = F.normalize(output_GK[:, 6:10], dim=1)
        return torch.cat([xyz_G3, output_GK[:, 3:6], rotation_G4, output_GK[:, anchors.OPACITY :]], 1)


class Scale(nn.Module):
    """One learned factor per column."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(columns))

    def forward(self, x_GK: Tensor) -> Tensor:
        """(G, K) -> (G, K)."""
        return x_GK * self.scale
