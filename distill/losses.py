"""Supervised and distillation losses.

Letters: B batch, X Y Z voxel axes, C classes, V valid voxels and K columns of the whole batch,
P present classes, N cameras, D depth bins, H W image cells, M image cells with a LiDAR return.

Only valid voxels are gathered, decoded and normalised: about 14 % of the grid (docs/formulas.md 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from distill.bev import bev_log_probs
from distill.classes import ClassSet
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.networks.prediction import Occupancy
from distill.teaching import Teaching, teaching, voxels_of


@dataclass(frozen=True)
class Supervision:
    """Losses against the labels; the training loss is the sum of the terms.

    Frames without labels (`labelled` False) contribute nothing. `mask` chooses the voxels of labelled frames:

    * camera: seen by the cameras (`mask_camera`), the setting of Occ3D mIoU;
    * lidar: observed by the accumulated LiDAR (`mask_lidar`);
    * all: every voxel but those whose label says nothing; unobserved ones are labelled free.

    The choice moves mIoU and RayIoU in opposite directions (docs/formulas.md 3.5), so report it.

    Attributes:
        ce_weight: weight of the class-balanced cross-entropy, term "ce".
        lovasz_weight: weight of the Lovász-softmax, term "lovasz".
        depth_weight: weight of the LiDAR depth loss, term "depth"; only for networks that predict depth.
        balance: how the cross-entropy weighs classes, "log" or "sqrt" (`ClassSet.weights`).
        mask: "camera", "lidar" or "all".
        classes: names, ids and weights of the classes.

    Raises:
        InputError: an unknown mask or a negative weight.
    """

    ce_weight: float
    lovasz_weight: float
    depth_weight: float
    balance: str
    mask: str
    classes: ClassSet

    def __post_init__(self) -> None:
        _check_choice("trainer.loss.balance", self.balance, ("log", "sqrt"))
        _check_choice("trainer.loss.mask", self.mask, ("camera", "lidar", "all"))
        _check_not_negative("trainer.loss", self.ce_weight, self.lovasz_weight, self.depth_weight)

    def __call__(self, prediction: Occupancy, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Weighted scalar terms by name; a term of weight 0 is left out.

        Args:
            prediction: the network's output.
            batch: `semantics` uint8, `mask_camera`, `mask_lidar` bool (B, X, Y, Z), `labelled` bool (B,), and for
                networks that predict depth `depth` float32 (B, N, H, W) metres, 0 = no return.
        """
        mask_BXYZ = region(self.mask, batch, self.classes.ignored) & _per_frame(batch["labelled"])
        index_V = mask_BXYZ.flatten().nonzero().squeeze(1)
        log_probs_VC = _rows(prediction.voxel_logits_BXYZC, index_V, axes=1).log_softmax(-1)
        labels_V = batch["semantics"].flatten()[index_V].long()
        terms = {}
        if self.ce_weight:
            weights_C = torch.as_tensor(self.classes.weights(self.balance), device=log_probs_VC.device)
            terms["ce"] = self.ce_weight * cross_entropy(log_probs_VC, labels_V, weights_C)
        if self.lovasz_weight:
            terms["lovasz"] = self.lovasz_weight * lovasz_softmax(log_probs_VC.exp(), labels_V)
        depth = prediction.depth
        if self.depth_weight and depth is not None:
            _check_depth(depth.logits_BNDHW, batch)
            terms["depth"] = self.depth_weight * depth_cross_entropy(
                depth.logits_BNDHW, batch["depth"], depth.lower, depth.upper
            )
        return terms


@dataclass(frozen=True)
class Distillation:
    """KL(teacher || student) on voxels and BEV columns (docs/formulas.md 4.3, 4.4); the loss is the sum of the terms.

    `mask` chooses the voxels; a BEV column counts when any of its voxels does:

    * camera: labelled frames `mask_camera`, frames without labels every voxel;
    * lidar: labelled frames `mask_lidar`, frames without labels every voxel;
    * occupied: those of camera that the label or the teacher's argmax calls occupied;
    * all: every voxel but those whose label says nothing.

    What no teacher has said contributes nothing: frames without one (`taught` False), and voxels that it has not
    modelled, which are left out of their columns too, for teacher and student alike.

    Attributes:
        voxel_weight: weight of term "kd_voxel".
        bev_weight: weight of term "kd_bev".
        temperature: softens both distributions; the loss is multiplied by its square.
        mask: "camera", "lidar", "occupied" or "all".
        grid: where the voxels lie.
        classes: the class set of teacher and student.

    Raises:
        InputError: an unknown mask, a negative weight, or a temperature that is not above 0.
    """

    voxel_weight: float
    bev_weight: float
    temperature: float
    mask: str
    grid: VoxelGrid
    classes: ClassSet

    def __post_init__(self) -> None:
        _check_choice("kd.loss.mask", self.mask, ("camera", "lidar", "occupied", "all"))
        _check_not_negative("kd.loss", self.voxel_weight, self.bev_weight)
        if not self.temperature > 0:
            raise InputError(f"kd.loss.temperature={self.temperature}: give a number above 0")

    def __call__(self, prediction: Occupancy, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Weighted scalar terms by name; a term of weight 0 is left out.

        Args:
            prediction: the student's output.
            batch: as for `Supervision`, and what `teaching` asks for, and `taught` bool (B,).
        """
        logits_BXYZC = prediction.voxel_logits_BXYZC
        policy = "camera" if self.mask == "occupied" else self.mask
        mask_BXYZ = region(policy, batch, self.classes.ignored) | ~_per_frame(batch["labelled"])
        mask_BXYZ &= _per_frame(batch["taught"])
        needed_BXYZ = mask_BXYZ.any(-1, keepdim=True).expand_as(mask_BXYZ) if self.bev_weight else mask_BXYZ
        teacher = teaching(batch, needed_BXYZ, self.grid, self.classes.free)
        index_V = self._valid(mask_BXYZ, batch, teacher)
        terms = {}
        if self.voxel_weight:
            student_VC = _rows(logits_BXYZC, index_V, axes=1)
            terms["kd_voxel"] = self.voxel_weight * distillation_kl(
                student_VC, teacher.voxels(index_V), self.temperature
            )
        if self.bev_weight:
            index_K = (index_V // mask_BXYZ.shape[-1]).unique_consecutive()
            student_KZC = _rows(logits_BXYZC, index_K, axes=2).log_softmax(-1)
            covered_KZ = teacher.covered(voxels_of(index_K, mask_BXYZ.shape[-1]))
            student_KC = bev_log_probs(student_KZC, self.classes.free, covered_KZ)
            terms["kd_bev"] = self.bev_weight * distillation_kl(student_KC, teacher.columns(index_K), self.temperature)
        return terms

    def _valid(self, mask_BXYZ: torch.Tensor, batch: dict[str, Any], teacher: Teaching) -> torch.Tensor:
        """Flat positions of the voxels in the mask that are valid, rising (V,)."""
        index_V = mask_BXYZ.flatten().nonzero().squeeze(1)
        index_V = index_V[teacher.covered(index_V)]
        if self.mask != "occupied":
            return index_V
        occupied_V = batch["semantics"].flatten()[index_V] != self.classes.free
        occupied_V |= teacher.voxels(index_V).argmax(-1) != self.classes.free
        return index_V[occupied_V]


def cross_entropy(log_probs_VC: torch.Tensor, labels_V: torch.Tensor, weights_C: torch.Tensor) -> torch.Tensor:
    """Class-balanced cross-entropy: sum_v w_y(v) (-ln p_y(v)) / sum_v w_y(v); 0 without voxels."""
    weights_V = weights_C.to(log_probs_VC.dtype)[labels_V]
    nll_V = -log_probs_VC.gather(1, labels_V.unsqueeze(1)).squeeze(1)
    return (weights_V * nll_V).sum() / weights_V.sum().clamp_min(torch.finfo(weights_V.dtype).tiny)


def lovasz_softmax(probs_VC: torch.Tensor, labels_V: torch.Tensor) -> torch.Tensor:
    """Lovász-softmax, mean over the classes present in the labels (Berman et al. 2018; docs/formulas.md 4.2).

    Args:
        probs_VC: probabilities.
        labels_V: int64 class ids.

    Returns:
        A scalar in [0, 1]; 0 without voxels.
    """
    present = labels_V.bincount(minlength=probs_VC.shape[1]).nonzero().flatten().tolist()
    losses = [_lovasz_binary(probs_V, labels_V == id) for id, probs_V in enumerate(probs_VC.unbind(1)) if id in present]
    return torch.stack(losses).mean() if losses else probs_VC.sum()


def _lovasz_binary(probs_V: torch.Tensor, foreground_V: torch.Tensor) -> torch.Tensor:
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


def depth_cross_entropy(
    logits_BNDHW: torch.Tensor, depth_BNHW: torch.Tensor, lower: float, upper: float
) -> torch.Tensor:
    """Cross-entropy between the depth bins of a lift network and the LiDAR, mean over the cells with a return.

    BEVDepth (Li et al. 2023) supervises the same bins with a binary cross-entropy each; as the bins are one softmax,
    the categorical form of CaDDN (Reading et al. 2021, without the focal factor) is the proper score.

    Args:
        logits_BNDHW: scores of D equal bins over [lower, upper).
        depth_BNHW: metres; 0 = no return. Returns outside the range are left out.
        lower: start of the first bin, metres.
        upper: end of the last bin, metres.

    Returns:
        A scalar; 0 without a return.
    """
    hit_BNHW = (depth_BNHW > 0) & (depth_BNHW >= lower) & (depth_BNHW < upper)
    bins = logits_BNDHW.shape[2]
    # rounding may put a depth just below `upper` into bin D
    target_M = ((depth_BNHW[hit_BNHW] - lower) * (bins / (upper - lower))).long().clamp_max(bins - 1)
    logits_MD = _wide(logits_BNDHW.movedim(2, -1)[hit_BNHW])
    return F.cross_entropy(logits_MD, target_M, reduction="sum") / max(len(target_M), 1)


def distillation_kl(student_VC: torch.Tensor, teacher_VC: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 / |V| sum_v sum_k p_t(k) (ln p_t(k) - ln p_s(k)) with p = softmax(. / T) (docs/formulas.md 4.3).

    Args:
        student_VC: logits or log-probabilities.
        teacher_VC: finite logits or log-probabilities; gets no gradient.
        temperature: T, applied to both.

    Returns:
        A scalar; 0 without rows.
    """
    student_VC = (student_VC / temperature).log_softmax(-1)
    teacher_VC = (teacher_VC.detach() / temperature).log_softmax(-1)
    total = F.kl_div(student_VC, teacher_VC, reduction="sum", log_target=True)
    return temperature**2 * total / max(len(student_VC), 1)


def region(policy: str, batch: dict[str, Any], ignored: int) -> torch.Tensor:
    """Mask of the policy "camera", "lidar" or "all", bool (B, X, Y, Z); `ignored` is the label that says nothing."""
    if policy == "all":
        return batch["semantics"] != ignored
    return batch[f"mask_{policy}"]


def _per_frame(flag_B: torch.Tensor) -> torch.Tensor:
    return flag_B[:, None, None, None]


def _rows(values: torch.Tensor, index_V: torch.Tensor, axes: int) -> torch.Tensor:
    """Flatten all but the last `axes` axes and take rows, in float32 at least."""
    return _wide(values.flatten(0, -1 - axes).index_select(0, index_V))


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_depth(logits_BNDHW: torch.Tensor, batch: dict[str, Any]) -> None:
    """Raise InputError unless the LiDAR depth map lies on the cells of the network's depth bins."""
    cells = tuple(logits_BNDHW[:, :, 0].shape)
    found = tuple(batch["depth"].shape) if "depth" in batch else "none"
    if cells != found:
        raise InputError(
            f"the network predicts depth on cells {cells}, the batch has {found}: "
            "set student.inputs.depth_stride to the network's stride, or trainer.loss.depth_weight=0"
        )


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{key}={value}: choose one of {', '.join(choices)}")


def _check_not_negative(key: str, *weights: float) -> None:
    if min(weights) < 0:
        raise InputError(f"{key}: a weight is negative ({min(weights)}); give 0 to leave a term out")
