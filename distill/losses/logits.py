"""KL(teacher || student) on what teachers say of voxels and columns (docs/formulas.md 4.3, 4.4, 4.7, 4.12 and 4.16).

What no teacher has said adds nothing: frames without one, and voxels that it has not modelled, which are left out of
their columns too, for teacher and student alike.

Letters: V valid voxels and K columns of the whole batch, Z height, C classes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.bev import bev_log_probs
from distill.grids import VoxelGrid
from distill.losses.confidence import frame_confidence, frames_of
from distill.losses.objective import Lesson, Needs
from distill.losses.regions import RegionTerm, decoupled, rows
from distill.signals.voxels import voxels_of
from distill.teaching.taught import Taught
from kernels.stored_kl import Kept, expected, likeliest, stored_kl


class _LogitsTerm(RegionTerm):
    """What the terms of this module are configured by, beside the arguments of `RegionTerm`.

    Args:
        temperature: softens both distributions; the term is multiplied by its square.
        confidence: what each frame counts, see `confidence.frame_confidence`.
    """

    def __init__(self, temperature: float, confidence: str, **region: Any) -> None:
        super().__init__(**region)
        self.temperature, self.confidence = temperature, confidence
        if confidence != "none":  # it asks what the teacher says of voxels
            self.needs = self.needs._replace(answers=self.needs.answers | {"voxels"})

    def confidence_of(self, index_V: Tensor, lesson: Lesson, teacher: Taught) -> Tensor:
        """In the teacher, of the frames in which voxels lie (V,)."""
        return frame_confidence(self, self.confidence, lesson, teacher)[frames_of(index_V, lesson)]


class VoxelKL(_LogitsTerm):
    """KL on the voxels in the mask, mean over them."""

    needs = Needs(answers=frozenset({"voxels"}))

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        index_V = self.region(lesson, teacher)
        student_MC, said = lesson.prediction.voxel_logits_BXYZC.flatten(0, -2), teacher.kept("voxels", index_V)
        confidence_V = self.confidence_of(index_V, lesson, teacher)
        return distillation_kl(student_MC, said, self.temperature, confidence_V, index_V)


class BalancedVoxelKL(_LogitsTerm):
    """KL on the voxels in the mask, of which rare classes and occupied space have shares of their own.

    Args:
        balance: how classes are weighed, see `ClassSet.weights`.
        balance_by: "class": a voxel is of the teacher's class; "mass": of every class by its probability.
        occupied_share: of what the teacher calls occupied, in [0, 1]; the rest is of what it calls free.
        near: metres at which a voxel counts half of what it would at the origin, see `nearness`; None: distance does
            not matter.
    """

    needs = Needs(answers=frozenset({"voxels"}))

    def __init__(
        self, balance: str | float, balance_by: str, occupied_share: float, near: float | None, **logits: Any
    ) -> None:
        super().__init__(**logits)
        self.balance_by, self.occupied_share, self.near = balance_by, occupied_share, near
        self.register_buffer("weights_C", torch.as_tensor(self.classes.weights(balance)), persistent=False)

    weights_C: Tensor

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        index_V = self.region(lesson, teacher)
        student_MC, said = lesson.prediction.voxel_logits_BXYZC.flatten(0, -2), teacher.kept("voxels", index_V)
        weights_V, occupied_V = self.balanced(said)
        if self.near is not None:
            near_V = nearness(teacher.grid, self.near).to(weights_V.device)
            weights_V = weights_V * near_V[index_V % len(near_V)]
        shares_V = voxel_shares(weights_V, occupied_V, self.occupied_share)
        shares_V = shares_V * self.confidence_of(index_V, lesson, teacher)
        return shared_kl(student_MC, said, self.temperature, shares_V, index_V)

    def balanced(self, said: Kept) -> tuple[Tensor, Tensor]:
        """The weights of voxels, and how much of each is occupied, in [0, 1], both (V,)."""
        occupied_C = torch.ones_like(self.weights_C)
        occupied_C[self.classes.free] = 0
        if self.balance_by == "class":
            called_V = likeliest(said)
            return self.weights_C[called_V], occupied_C[called_V]
        weights_V, occupied_V = expected(said, torch.stack([self.weights_C, occupied_C], 1)).unbind(1)
        return weights_V, occupied_V


class DecoupledVoxelKL(_LogitsTerm):
    """KL on whether the voxels in the mask are free, and KL on what they are if they are not, each with its weight.

    Args:
        free_weight: of the first.
        class_weight: of the second, which counts where the teacher is sure of free space as much as elsewhere.
    """

    needs = Needs(answers=frozenset({"voxels"}))

    def __init__(self, free_weight: float, class_weight: float, **logits: Any) -> None:
        super().__init__(**logits)
        self.free_weight, self.class_weight = free_weight, class_weight

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        index_V = self.region(lesson, teacher)
        student_VC = rows(lesson.prediction.voxel_logits_BXYZC, index_V, axes=1)
        confidence_V = self.confidence_of(index_V, lesson, teacher)
        free, rest = decoupled_kl(
            student_VC, teacher.voxels(index_V), self.temperature, self.classes.free, confidence_V
        )
        return self.free_weight * free + self.class_weight * rest


class BevKL(_LogitsTerm):
    """KL on the columns any of whose voxels is in the mask, mean over them."""

    needs = Needs(answers=frozenset({"columns"}))

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        logits_BXYZC = lesson.prediction.voxel_logits_BXYZC
        height = logits_BXYZC.shape[-2]
        index_K = (self.region(lesson, teacher) // height).unique_consecutive()
        student_KZC = rows(logits_BXYZC, index_K, axes=2).log_softmax(-1)
        student_KC = bev_log_probs(student_KZC, self.classes.free, teacher.in_columns(voxels_of(index_K, height)))
        confidence_K = self.confidence_of(index_K * height, lesson, teacher)
        return distillation_kl(student_KC, teacher.kept("columns", index_K), self.temperature, confidence_K)


def distillation_kl(
    student_MC: Tensor,
    teacher: Kept,
    temperature: float,
    confidence_V: Tensor | float = 1.0,
    row_V: Tensor | None = None,
) -> Tensor:
    """T^2 / |V| sum_v c_v sum_k p_t(k) (ln p_t(k) - ln p_s(k)) with p = softmax(. / T) (docs/formulas.md 4.3).

    Args:
        student_MC, teacher, temperature, row_V: see `kernels.stored_kl.stored_kl`.
        confidence_V: c, in [0, 1].

    Returns:
        A scalar; 0 without rows.
    """
    kl_V = stored_kl(student_MC, teacher, temperature, row_V)
    return (confidence_V * kl_V).sum() / max(len(kl_V), 1)


def decoupled_kl(
    student_VC: Tensor, teacher_VC: Tensor, temperature: float, free: int, confidence_V: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """`distillation_kl` of (free, occupied), and of the classes if occupied (DKD; docs/formulas.md 4.16).

    Args:
        student_VC: logits or log-probabilities.
        teacher_VC: finite logits or log-probabilities; gets no gradient.
        temperature: T, applied to all classes before they are decoupled.
        free: id of the free class.
        confidence_V: in [0, 1].

    Returns:
        Two scalars; 0 without rows.
    """
    student, teacher = (decoupled(values_VC / temperature, free) for values_VC in (student_VC, teacher_VC))
    free_kl, class_kl = (
        temperature**2 * distillation_kl(said, told, 1.0, confidence_V)
        for said, told in zip(student, teacher, strict=True)
    )
    return free_kl, class_kl


def shared_kl(
    student_MC: Tensor, teacher: Kept, temperature: float, shares_V: Tensor, row_V: Tensor | None = None
) -> Tensor:
    """T^2 sum_v a_v sum_k p_t(k) (ln p_t(k) - ln p_s(k)) with p = softmax(. / T) (docs/formulas.md 4.7).

    Args:
        student_MC, teacher, temperature, row_V: see `kernels.stored_kl.stored_kl`.
        shares_V: a, of each voxel.

    Returns:
        A scalar; 0 without rows.
    """
    return (shares_V * stored_kl(student_MC, teacher, temperature, row_V)).sum()


def voxel_shares(weights_V: Tensor, occupied_V: Tensor, occupied_share: float) -> Tensor:
    """What each voxel counts, among the occupied ones and among the free ones (docs/formulas.md 4.7 and 4.12).

    Args:
        weights_V: what voxels count relative to each other.
        occupied_V: how much of each is occupied, in [0, 1]; the rest is free.
        occupied_share: the sum over what is occupied, in [0, 1]; that over what is free is the rest.

    Returns:
        In the dtype of the weights; all 0 within a part whose weights are.
    """
    shares_V = torch.zeros_like(weights_V)
    for part_V, share in ((occupied_V, occupied_share), (1 - occupied_V, 1 - occupied_share)):
        of_part_V = weights_V * part_V
        shares_V += share * of_part_V / of_part_V.sum().clamp_min(torch.finfo(weights_V.dtype).tiny)
    return shares_V


@cache
def nearness(grid: VoxelGrid, near: float) -> Tensor:
    """1 / (1 + d / near) of the voxels of one frame, d metres from the origin along the ground, float32 (X * Y * Z,).

    Args:
        grid: its frame says where the origin is: the ego vehicle or the LiDAR.
        near: metres at which that is one half.
    """
    distance_XYZ = np.linalg.norm(grid.centres()[..., :2], axis=-1)
    return torch.from_numpy(1 / (1 + distance_XYZ / near)).float().flatten()
