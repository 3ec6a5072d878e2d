"""Supervision at coarser resolutions (docs/formulas.md 4.19).

Letters: B batch, C channels or classes, X Y Z voxel axes, V voxels of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.classes import ClassSet
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.losses.objective import Lesson, Term
from distill.losses.regions import coarse_labels, wide
from distill.losses.supervised import cross_entropy, geometric_scal, lovasz_softmax, semantic_scal
from distill.networks.blocks.head import ChannelToHeight
from distill.networks.prediction import Occupancy
from kernels.pooled_labels import UNKNOWN


class MultiScale(Term):
    """What heads of its own say of coarser voxels, from the BEV features, against labels pooled to these.

    Args:
        weight: of the term.
        scales: voxels along the edge of a coarser one, a head for each.
        ce_weight, lovasz_weight, scal_weight: of class-balanced cross-entropy, Lovász-softmax, and semantic and
            geometric scal, at each scale.
        balance: how classes are weighed, see `ClassSet.weights`.
        channels: of the feature map "bev"; None: the configuration does not tell.
        hidden_channels: of each voxel column of a head.
        mask: see `regions.labelled_mask`.
        grid: of the labels.
        classes: of the labels.

    Raises:
        InputError: `channels` is None, or coarser voxels do not fill the grid.
    """

    def __init__(
        self,
        weight: float,
        scales: Sequence[int],
        ce_weight: float,
        lovasz_weight: float,
        scal_weight: float,
        balance: str | float,
        channels: int | None,
        hidden_channels: int,
        mask: str,
        grid: VoxelGrid,
        classes: ClassSet,
    ) -> None:
        super().__init__(weight)
        if channels is None:
            raise InputError("objective.terms.multi_scale.channels must be given: of the network's feature map bev")
        self.ce_weight, self.lovasz_weight, self.scal_weight = ce_weight, lovasz_weight, scal_weight
        self.channels, self.mask, self.classes = channels, mask, classes
        self.register_buffer("weights_C", torch.as_tensor(classes.weights(balance)), persistent=False)
        self.heads = nn.ModuleDict()
        for scale in scales:
            self.heads[str(scale)] = ChannelToHeight(channels, hidden_channels, 1, grid.coarser(scale), classes)

    weights_C: Tensor

    def forward(self, lesson: Lesson) -> Tensor:
        """The mean over the scales.

        Raises:
            InputError: the network has no such features.
        """
        losses = []
        for scale, head in self.heads.items():
            coarse_BXYZ = coarse_labels(lesson, self.mask, self.classes, int(scale))
            logits_BXYZC = head(self._features(lesson.prediction, int(scale)))
            there_BXYZ = coarse_BXYZ != UNKNOWN
            losses.append(self._loss(logits_BXYZC[there_BXYZ].log_softmax(-1), coarse_BXYZ[there_BXYZ].long()))
        return torch.stack(losses).mean()

    def _features(self, prediction: Occupancy, scale: int) -> Tensor:
        """The BEV features, a cell for each coarser voxel column, float32 at least (B, C, X / scale, Y / scale)."""
        bev, there = prediction.features.get("bev"), ", ".join(prediction.features) or "none"
        if bev is None or bev.values.shape[1] != self.channels or scale % bev.stride:
            found = f"{bev.values.shape[1]} channels at stride {bev.stride}" if bev else f"no such map ({there})"
            raise InputError(
                f"objective.terms.multi_scale wants a feature map bev of {self.channels} channels whose stride divides "
                f"{scale}, the network has {found}: set its channels or scales, or its weight to 0"
            )
        return F.avg_pool2d(wide(bev.values), scale // bev.stride)

    def _loss(self, log_probs_VC: Tensor, labels_V: Tensor) -> Tensor:
        """Of one scale; parts of weight 0 are not worked out."""
        probs_VC, free = log_probs_VC.exp(), self.classes.free
        loss = self.ce_weight * cross_entropy(log_probs_VC, labels_V, self.weights_C)
        if self.lovasz_weight:
            loss = loss + self.lovasz_weight * lovasz_softmax(probs_VC, labels_V)
        if self.scal_weight:
            scal = semantic_scal(probs_VC, labels_V) + geometric_scal(probs_VC, labels_V, free)
            loss = loss + self.scal_weight * scal
        return loss
