"""What stage 1 of MonoOcc learns by: whether coarser voxels are occupied (docs/formulas.md 11.3).

Letters: B batch, X Y Z voxel axes, V voxels of the whole batch, K the two scores empty and occupied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.classes import ClassSet
from distill.errors import InputError
from distill.losses.objective import Lesson, Needs, Term
from distill.losses.regions import RegionTerm, coarse_labels, found_classes, wide
from distill.teaching.taught import Taught
from kernels.pooled_labels import UNKNOWN, pooled_labels


class Proposals(Term):
    """Scores of proposals against the labels, pooled to their voxels; left out for networks that propose nothing.

    Args:
        weight: of the term.
        free_weight, occupied_weight: what a free and an occupied voxel counts.
        decay: what a scale counts of the next finer one.
        mask: see `regions.labelled_mask`.
        classes: of the labels.
    """

    needs = Needs(proposals=True)

    def __init__(
        self, weight: float, free_weight: float, occupied_weight: float, decay: float, mask: str, classes: ClassSet
    ) -> None:
        super().__init__(weight)
        self.weights, self.decay = (free_weight, occupied_weight), decay
        self.mask, self.classes = mask, classes

    def forward(self, lesson: Lesson) -> Tensor:
        """The weighted sum over the scales, of the labelled voxels in the mask."""
        coarse = {scale: coarse_labels(lesson, self.mask, self.classes, scale) for scale in lesson.prediction.proposals}
        return proposal_loss(lesson.prediction.proposals, coarse, self.classes.free, self.weights, self.decay)


class TaughtProposals(RegionTerm):
    """The same against what teachers call occupied, pooled alike, on frames without labels, too.

    Args:
        free_weight, occupied_weight, decay: see `Proposals`.
        region: arguments of `RegionTerm`.
    """

    needs = Needs(answers=frozenset({"voxels"}))

    def __init__(self, free_weight: float, occupied_weight: float, decay: float, **region: Any) -> None:
        super().__init__(**region)
        self.weights, self.decay = (free_weight, occupied_weight), decay

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """The teacher's part.

        Raises:
            InputError: the network proposes nothing.
        """
        scores = lesson.prediction.proposals
        if not scores:
            raise InputError(
                "kd.terms: a term teaches proposals of voxels, which this network does not make: take student=monoocc, "
                "or another kd"
            )
        found_BXYZ = found_classes(teacher, self.region(lesson, teacher), lesson.frame.semantics.shape)
        coarse = {scale: pooled_labels(found_BXYZ, scale, self.classes.free) for scale in scores}
        return proposal_loss(scores, coarse, self.classes.free, self.weights, self.decay)


def proposal_loss(
    scores: Mapping[int, Tensor],
    coarse: Mapping[int, Tensor],
    free: int,
    weights: tuple[float, float],
    decay: float,
) -> Tensor:
    """sum_i decay^i L_i over the scales, the finest first; L as in `binary_cross_entropy`.

    Args:
        scores: by scale, logits (B, X, Y, Z, K).
        coarse: by scale, uint8 (B, X, Y, Z), `UNKNOWN` where nothing is known.
        free: id of the free class.
        weights: of empty and of occupied.
        decay: see `Proposals`.
    """
    losses = []
    for power, scale in enumerate(sorted(scores)):
        known_BXYZ = coarse[scale] != UNKNOWN
        occupied_V = coarse[scale][known_BXYZ] != free
        losses.append(decay**power * binary_cross_entropy(wide(scores[scale][known_BXYZ]), occupied_V, weights))
    return torch.stack(losses).sum()


def binary_cross_entropy(logits_VK: Tensor, occupied_V: Tensor, weights: tuple[float, float]) -> Tensor:
    """sum_v w_y(v) (-ln p_y(v)) / |V|: not a weighted mean, which would divide by the weights; 0 without voxels.

    Args:
        logits_VK: of empty and occupied.
        occupied_V: bool.
        weights: of empty and of occupied.
    """
    total = F.cross_entropy(logits_VK, occupied_V.long(), logits_VK.new_tensor(weights), reduction="sum")
    return total / max(len(occupied_V), 1)
