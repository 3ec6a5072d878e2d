"""Terms of labels and of LiDAR; frames without labels (`labelled` False) add nothing to those of labels.

Letters: B batch, C classes, V valid voxels of the whole batch, N cameras, D depth bins, H W image cells, M image cells
with a LiDAR return.

Only valid voxels are gathered, decoded and normalised: about 14 % of the grid (docs/formulas.md 2.2).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.classes import ClassSet
from distill.errors import InputError
from distill.losses.objective import Lesson, Needs, Term
from distill.losses.regions import decoupled, labelled_voxels, rows, wide
from distill.networks.prediction import DepthBins, Spacing, depth_bin


class CrossEntropy(Term):
    """Class-balanced cross-entropy against the labels.

    Args:
        weight: of the term.
        balance: how classes are weighed, see `ClassSet.weights`.
        mask: see `regions.labelled_voxels`; it moves mIoU and RayIoU in opposite directions (docs/formulas.md 3.5).
        classes: names, ids and weights of the classes.
    """

    def __init__(self, weight: float, balance: str | float, mask: str, classes: ClassSet) -> None:
        super().__init__(weight)
        self.mask, self.classes = mask, classes
        self.register_buffer("weights_C", torch.as_tensor(classes.weights(balance)), persistent=False)

    weights_C: Tensor

    def forward(self, lesson: Lesson) -> Tensor:
        """The weighted mean over the labelled voxels in the mask."""
        return cross_entropy(*_labelled(lesson, self.mask, self.classes), self.weights_C)


class FocalLoss(CrossEntropy):
    """Cross-entropy in which voxels count less the surer the network is of their label.

    Args:
        gamma: how much less; 0: it is the cross-entropy.
        labels: arguments of `CrossEntropy`.
    """

    def __init__(self, gamma: float, **labels: Any) -> None:
        super().__init__(**labels)
        self.gamma = gamma

    def forward(self, lesson: Lesson) -> Tensor:
        """The weighted mean over the labelled voxels in the mask."""
        return focal_loss(*_labelled(lesson, self.mask, self.classes), self.weights_C, self.gamma)


class DecoupledCrossEntropy(CrossEntropy):
    """Cross-entropy of whether voxels are occupied, and of what the occupied ones are, as UniOcc has it.

    Args:
        free_weight: of the first.
        class_weight: of the second, in which classes are balanced.
        labels: arguments of `CrossEntropy`.
    """

    def __init__(self, free_weight: float, class_weight: float, **labels: Any) -> None:
        super().__init__(**labels)
        self.free_weight, self.class_weight = free_weight, class_weight

    def forward(self, lesson: Lesson) -> Tensor:
        """The means over the labelled voxels in the mask, and over those labelled occupied."""
        log_probs_VC, labels_V = _labelled(lesson, self.mask, self.classes)
        said, free = decoupled(log_probs_VC, self.classes.free), self.classes.free
        geometric, semantic = decoupled_cross_entropy(*said, labels_V, self.weights_C, free)
        return self.free_weight * geometric + self.class_weight * semantic


class LovaszSoftmax(Term):
    """Lovász-softmax against the labels.

    Args:
        weight: of the term.
        mask: see `regions.labelled_voxels`.
        classes: names and ids of the classes.
    """

    def __init__(self, weight: float, mask: str, classes: ClassSet) -> None:
        super().__init__(weight)
        self.mask, self.classes = mask, classes

    def forward(self, lesson: Lesson) -> Tensor:
        """The mean over the classes that are labelled in the mask."""
        log_probs_VC, labels_V = _labelled(lesson, self.mask, self.classes)
        return lovasz_softmax(log_probs_VC.exp(), labels_V)


class SemanticScal(Term):
    """Precision, recall and specificity of each class against the labels, as MonoScene and MonoOcc raise them.

    Args:
        weight: of the term.
        mask: see `regions.labelled_voxels`.
        classes: names and ids of the classes.
    """

    def __init__(self, weight: float, mask: str, classes: ClassSet) -> None:
        super().__init__(weight)
        self.mask, self.classes = mask, classes

    def forward(self, lesson: Lesson) -> Tensor:
        """The mean over the classes that are labelled in the mask."""
        log_probs_VC, labels_V = _labelled(lesson, self.mask, self.classes)
        return semantic_scal(log_probs_VC.exp(), labels_V)


class GeometricScal(SemanticScal):
    """The same of occupied space against the labels, whatever its class; arguments of `SemanticScal`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of all labelled voxels in the mask."""
        log_probs_VC, labels_V = _labelled(lesson, self.mask, self.classes)
        return geometric_scal(log_probs_VC.exp(), labels_V, self.classes.free)


class LidarDepth(Term):
    """Depth of the camera lift against the LiDAR; left out for networks that predict none.

    Args:
        weight: of the term.
    """

    needs = Needs(depth=True)

    def forward(self, lesson: Lesson) -> Tensor:
        """The mean over the image cells with a return.

        Raises:
            InputError: the depth maps do not lie on the cells of the network's depth bins.
        """
        bins, depth_BNHW = self._on_cells(lesson)
        return depth_cross_entropy(bins.logits_BNDHW, depth_BNHW, bins.lower, bins.upper, bins.spacing)

    def _on_cells(self, lesson: Lesson) -> tuple[DepthBins, Tensor]:
        """The network's depth bins, and the depth maps on their cells."""
        bins, depth_BNHW = lesson.prediction.depth, lesson.frame.depth
        cells = None if bins is None else tuple(bins.logits_BNDHW[:, :, 0].shape)
        found = None if depth_BNHW is None else tuple(depth_BNHW.shape)
        if bins is None or cells != found:
            raise InputError(
                f"the network predicts depth on cells {cells}, the batch has {found}: let its depth_stride be that of "
                "its depth bins, or set objective.terms.depth.weight=0 and objective.terms.silog.weight=0"
            )
        return bins, depth_BNHW


class LidarSILog(LidarDepth):
    """The same by the scale-invariant logarithmic error of the expected depth."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Over the image cells with a return within the depth bins."""
        bins, depth_BNHW = self._on_cells(lesson)
        hit_BNHW = bins.bin_of(depth_BNHW) >= 0
        probs_MD = wide(bins.logits_BNDHW.movedim(2, -1)[hit_BNHW]).softmax(-1)
        return 10 * silog(probs_MD @ bins.centres(), depth_BNHW[hit_BNHW])


def _labelled(lesson: Lesson, mask: str, classes: ClassSet) -> tuple[Tensor, Tensor]:
    """The network's log-probabilities (V, C) of the labelled voxels in the mask, and their labels int64 (V,)."""

    def work_out() -> tuple[Tensor, Tensor]:
        index_V = labelled_voxels(lesson, mask, classes)
        log_probs_VC = rows(lesson.prediction.voxel_logits_BXYZC, index_V, axes=1).log_softmax(-1)
        return log_probs_VC, lesson.frame.semantics.flatten()[index_V].long()

    return lesson.once(("labelled log-probabilities", mask), work_out)


def cross_entropy(
    log_probs_VC: Tensor, labels_V: Tensor, weights_C: Tensor, confidence_V: Tensor | float = 1.0
) -> Tensor:
    """Class-balanced cross-entropy: sum_v c_v w_y(v) (-ln p_y(v)) / sum_v w_y(v); 0 without voxels.

    Args:
        log_probs_VC: of the network.
        labels_V: int64 class ids.
        weights_C: of the classes.
        confidence_V: c, in [0, 1].
    """
    weights_V = weights_C.to(log_probs_VC.dtype)[labels_V]
    nll_V = -log_probs_VC.gather(1, labels_V.unsqueeze(1)).squeeze(1)
    total = (confidence_V * weights_V * nll_V).sum()
    return total / weights_V.sum().clamp_min(torch.finfo(weights_V.dtype).tiny)


def focal_loss(log_probs_VC: Tensor, labels_V: Tensor, weights_C: Tensor, gamma: float) -> Tensor:
    """sum_v w_y(v) (1 - p_y(v))^gamma (-ln p_y(v)) / sum_v w_y(v) (Lin et al. 2017; docs/formulas.md 4.20).

    Args:
        log_probs_VC: of the network.
        labels_V: int64 class ids.
        weights_C: of the classes.
        gamma: 0: it is `cross_entropy`.

    Returns:
        A scalar; 0 without voxels.
    """
    unsure_V = -torch.expm1(log_probs_VC.gather(1, labels_V.unsqueeze(1)).squeeze(1))
    # where the network is quite sure, a power below 1 has no gradient
    unsure_V = unsure_V.clamp_min(torch.finfo(unsure_V.dtype).tiny)
    return cross_entropy(log_probs_VC, labels_V, weights_C, unsure_V**gamma)


def decoupled_cross_entropy(
    pair_V2: Tensor, classes_VK: Tensor, labels_V: Tensor, weights_C: Tensor, free: int
) -> tuple[Tensor, Tensor]:
    """UniOcc's geometric and semantic cross-entropy (docs/formulas.md 4.20).

    Args:
        pair_V2: logits of (occupied, free).
        classes_VK: logits of the classes but free, in the order of their ids.
        labels_V: int64 class ids.
        weights_C: of all classes; that of free is not used.
        free: id of the free class.

    Returns:
        Two scalars: the mean over voxels, and the weighted mean over occupied ones; each 0 without any.
    """
    free_V = labels_V == free
    geometric = F.cross_entropy(pair_V2, free_V.long(), reduction="sum") / max(len(labels_V), 1)
    ids_V = labels_V[~free_V]
    weights_K = torch.cat([weights_C[:free], weights_C[free + 1 :]])
    return geometric, cross_entropy(classes_VK[~free_V].log_softmax(-1), ids_V - (ids_V > free).long(), weights_K)


def lovasz_softmax(probs_VC: Tensor, labels_V: Tensor) -> Tensor:
    """Lovász-softmax, mean over the classes present in the labels (Berman et al. 2018; docs/formulas.md 4.2).

    Args:
        probs_VC: probabilities.
        labels_V: int64 class ids.

    Returns:
        A scalar in [0, 1]; 0 without voxels.
    """
    present = labels_V.bincount(minlength=probs_VC.shape[1]).nonzero().flatten().tolist()
    losses = [
        _lovasz_binary(probs_V, labels_V == class_id)
        for class_id, probs_V in enumerate(probs_VC.unbind(1))
        if class_id in present
    ]
    return torch.stack(losses).mean() if losses else probs_VC.sum()


def _lovasz_binary(probs_V: Tensor, foreground_V: Tensor) -> Tensor:
    """The Lovász hinge of one class that is present: errors, weighed by what each adds to the Jaccard loss."""
    errors_V = torch.where(foreground_V, 1 - probs_V, probs_V)
    with torch.no_grad():
        # in the order of falling error the Jaccard loss is 1 after the last foreground voxel: the rest adds nothing
        index_K = (errors_V >= errors_V[foreground_V].min()).nonzero().squeeze(1)
        index_K = index_K[errors_V[index_K].argsort(descending=True)]
        foreground_K = foreground_V[index_K].to(probs_V.dtype)
        total = foreground_K.sum()
        jaccard_K = 1 - (total - foreground_K.cumsum(0)) / (total + (1 - foreground_K).cumsum(0))
        weights_V = torch.zeros_like(errors_V)
        weights_V[index_K] = jaccard_K.diff(prepend=jaccard_K.new_zeros(1))
    return (errors_V * weights_V).sum()


def semantic_scal(probs_VC: Tensor, labels_V: Tensor) -> Tensor:
    """-ln of precision, recall and specificity of each class, mean over those in the labels (docs/formulas.md 4.10).

    Args:
        probs_VC: probabilities.
        labels_V: int64 class ids.

    Returns:
        A scalar in [0, 300]; 0 without voxels.
    """
    own_VC = labels_V.unsqueeze(1) == torch.arange(probs_VC.shape[1], device=labels_V.device)
    right_C = torch.where(own_VC, probs_VC, 0).sum(0)
    count_C = labels_V.bincount(minlength=probs_VC.shape[1])
    scal_C = _scal(right_C, probs_VC.sum(0), count_C.to(probs_VC.dtype), len(labels_V))
    return scal_C.sum() / (count_C > 0).sum().clamp_min(1)


def geometric_scal(probs_VC: Tensor, labels_V: Tensor, free: int) -> Tensor:
    """-ln of precision, recall and specificity of occupied space (docs/formulas.md 4.10).

    Args:
        probs_VC: probabilities.
        labels_V: int64 class ids.
        free: id of the free class.

    Returns:
        A scalar in [0, 300]; 0 without an occupied voxel.
    """
    probs_V, occupied_V = 1 - probs_VC[:, free], labels_V != free
    return _scal((probs_V * occupied_V).sum(), probs_V.sum(), occupied_V.sum().to(probs_V.dtype), len(labels_V))


def _scal(right: Tensor, said: Tensor, count: Tensor, voxels: int) -> Tensor:
    """The sum of the three; 0 where the labels have no such voxel.

    Args:
        right: probability of the class, summed over its voxels.
        said: the same over all voxels.
        count: of its voxels.
        voxels: of all.
    """
    others = voxels - count
    sum_of_three = _nll(right, said) + _nll(right, count) + _nll(others - (said - right), others)
    return torch.where(count > 0, sum_of_three, 0)


def _nll(part: Tensor, whole: Tensor) -> Tensor:
    """-ln (part / whole), at most 100 as in binary cross-entropy; 0 where there is no whole."""
    share = part / whole.clamp_min(torch.finfo(whole.dtype).tiny)
    return torch.where(whole > 0, -share.clamp_min(math.exp(-100)).log(), 0)


def depth_cross_entropy(
    logits_BNDHW: Tensor, depth_BNHW: Tensor, lower: float, upper: float, spacing: Spacing = "linear"
) -> Tensor:
    """Cross-entropy between the depth bins of a lift network and the LiDAR, mean over the cells with a return.

    BEVDepth (Li et al. 2023) supervises the same bins with a binary cross-entropy each; as the bins are one softmax,
    the categorical form of CaDDN (Reading et al. 2021, without the focal factor) is the proper score.

    Args:
        logits_BNDHW: scores of D bins over [lower, upper).
        depth_BNHW: metres; 0 = no return. Returns outside the range are left out.
        lower: start of the first bin, metres.
        upper: end of the last bin, metres.
        spacing: of the bins, see `distill.networks.prediction.depth_bin`.

    Returns:
        A scalar; 0 without a return.
    """
    target_BNHW = depth_bin(depth_BNHW, lower, upper, logits_BNDHW.shape[2], spacing)
    hit_BNHW = target_BNHW >= 0
    target_M, logits_MD = target_BNHW[hit_BNHW], wide(logits_BNDHW.movedim(2, -1)[hit_BNHW])
    return F.cross_entropy(logits_MD, target_M, reduction="sum") / max(len(target_M), 1)


def silog(predicted_M: Tensor, depth_M: Tensor) -> Tensor:
    """(mean d^2 - 0.85 (mean d)^2)^(1/2), d = ln predicted - ln depth: scale-invariant (docs/formulas.md 4.5).

    Args:
        predicted_M: metres; below 1e-6 counts as that.
        depth_M: metres, above 0.

    Returns:
        A scalar; 0 with zero gradient without depths, and where all are right.
    """
    apart_M = predicted_M.clamp_min(1e-6).log() - depth_M.log()
    count = max(len(apart_M), 1)
    square = apart_M.square().sum() / count - 0.85 * (apart_M.sum() / count).square()
    return torch.where(square > 0, square.clamp_min(torch.finfo(square.dtype).tiny).sqrt(), 0)
