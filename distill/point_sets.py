"""Sets of points with class scores, and what they say about voxels (OPUS; docs/formulas.md 10.4, 10.5).

A score is the probability of a class by itself; free space has none, so that the scores of a point need not sum to 1.

Letters: B batch, Q queries, R points of each, P points, C classes but free, D classes with free, X Y Z voxel axes,
V touched voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.grids import VoxelGrid

_LOWEST, _HIGHEST = 1e-4, 1 - 2.0**-22  # a score beyond them counts as them, so that logits are finite


class PointSet(NamedTuple):
    """What a network of sets predicts for a batch.

    Attributes:
        points_BQR3: metres, in the frame of the grid.
        logits_BQRC: of the scores; None of points that have none.
    """

    points_BQR3: Tensor
    logits_BQRC: Tensor | None


@dataclass(frozen=True)
class VoxelRule:
    """How points become voxels.

    Attributes:
        reach: metres; a point further from the centroid of its query is left out.
        threshold: a voxel is occupied where the score of some class is above; a point below it is left out.
        most: so many points, the first, count in a voxel.
        power: of the odds of a score in the odds of its class against free.
    """

    reach: float
    threshold: float
    most: int
    power: float

    def kept(self, points_QR3: Tensor, scores_QRC: Tensor) -> Tensor:
        """Which points count, bool (Q, R)."""
        apart_QR3 = points_QR3 - points_QR3.mean(1, keepdim=True)
        return (apart_QR3.norm(dim=2) < self.reach) & (scores_QRC.amax(2) > self.threshold)

    def touched(self, points_P3: Tensor, scores_PC: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor, Tensor]:
        """The voxels in which points lie.

        Args:
            points_P3: that count, metres in the frame of the grid, float32.
            scores_PC: theirs; the result is differentiable with respect to them.
            grid: the voxels.

        Returns:
            Flat positions of the voxels, rising (V,), their mean scores (V, C), and of how many points (V,).
        """
        place_P3 = voxel_places(points_P3, grid).floor().long()
        inside_P = ((place_P3 >= 0) & (place_P3 < place_P3.new_tensor(grid.shape))).all(1)
        x_P, y_P, z_P = place_P3[inside_P].unbind(1)
        flat_P = (x_P * grid.shape[1] + y_P) * grid.shape[2] + z_P
        flat_P, order_P = flat_P.sort(stable=True)
        index_V, row_P, count_V = flat_P.unique_consecutive(return_inverse=True, return_counts=True)
        rank_P = torch.arange(len(flat_P), device=flat_P.device) - (count_V.cumsum(0) - count_V)[row_P]
        first_P = rank_P < self.most
        # side by side and then summed, so that the sum has an order
        beside_VKC = scores_PC.new_zeros(len(index_V), self.most, scores_PC.shape[1])
        beside_VKC[row_P[first_P], rank_P[first_P]] = scores_PC[inside_P][order_P][first_P]
        count_V = count_V.clamp_max(self.most)
        return index_V, beside_VKC.sum(1) / count_V.unsqueeze(1), count_V

    def voxel_scores(self, points_P3: Tensor, scores_PC: Tensor, grid: VoxelGrid) -> Tensor:
        """Scores of all voxels after closing, (C, X, Y, Z); arguments as in `touched`."""
        index_V, mean_VC, _ = self.touched(points_P3, scores_PC, grid)
        own_CN = mean_VC.new_zeros(mean_VC.shape[1], grid.shape[0] * grid.shape[1] * grid.shape[2])
        own_CN[:, index_V] = mean_VC.T
        closed_CN = _closed(own_CN.unflatten(1, grid.shape)).flatten(1)
        sure_V = index_V[mean_VC.amax(1) > self.threshold]
        return closed_CN.index_copy(1, sure_V, own_CN[:, sure_V]).unflatten(1, grid.shape)

    def voxel_logits(self, points_P3: Tensor, scores_PC: Tensor, grid: VoxelGrid) -> Tensor:
        """Logits of all voxels, (X, Y, Z, D); arguments as in `touched`."""
        return self.logits(self.voxel_scores(points_P3, scores_PC, grid))

    def logits(self, scores_CXYZ: Tensor) -> Tensor:
        """Scores of voxels -> logits of all classes, the last of them free, whose logit is 0: (X, Y, Z, D).

        The likeliest class is the one with the highest score, or free where none is above the threshold.
        """
        logits_CXYZ = scores_CXYZ.clamp(_LOWEST, _HIGHEST).logit() - _logit(self.threshold)
        # no tie with free, whatever rounding does
        above_CXYZ = scores_CXYZ > self.threshold
        logits_CXYZ = torch.where(above_CXYZ, logits_CXYZ.clamp_min(1e-7), logits_CXYZ.clamp_max(-1e-7))
        return F.pad(self.power * logits_CXYZ.movedim(0, -1), (0, 1))

    def semantics(self, scores_CXYZ: Tensor) -> Tensor:
        """The label of each voxel, int64 (X, Y, Z); free is the id behind the last class."""
        best_XYZ, label_XYZ = scores_CXYZ.max(0)
        return label_XYZ.where(best_XYZ > self.threshold, len(scores_CXYZ))


def voxel_places(points_P3: Tensor, grid: VoxelGrid) -> Tensor:
    """Metres in the frame of the grid -> voxel coordinates, in which voxel (i, j, k) spans [i, i + 1) x ..., (P, 3)."""
    return (points_P3 - points_P3.new_tensor(grid.lower)) / grid.voxel_size


def _closed(scores_CXYZ: Tensor) -> Tensor:
    """Morphological closing by blocks of 3 x 3 x 3 voxels; what lies outside of the grid plays no part."""
    return -_dilated(-_dilated(scores_CXYZ))


def _dilated(scores_CXYZ: Tensor) -> Tensor:
    for axis in (1, 2, 3):  # the maximum of three neighbours, of two at a border, from maxima of two
        others = scores_CXYZ.shape[axis] - 1
        of_two = torch.maximum(scores_CXYZ.narrow(axis, 0, others), scores_CXYZ.narrow(axis, 1, others))
        of_three = torch.maximum(of_two.narrow(axis, 0, others - 1), of_two.narrow(axis, 1, others - 1))
        parts = [of_two.narrow(axis, 0, 1), of_three, of_two.narrow(axis, others - 1, 1)]
        scores_CXYZ = torch.cat(parts, axis)
    return scores_CXYZ


def _logit(probability: float) -> float:
    return torch.tensor(probability, dtype=torch.float64).logit().item()
