"""KL(teacher || student) on what teachers say of voxels and of their columns (docs/formulas.md 4.3, 4.4 and 4.7).

What no teacher has said adds nothing: frames without one, and voxels that it has not modelled, which are left out of
their columns too, for teacher and student alike.

Letters: V valid voxels and K columns of the whole batch, Z height, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.bev import bev_log_probs
from distill.losses.objective import Lesson, Needs
from distill.losses.regions import RegionTerm, rows
from distill.signals.voxels import voxels_of
from distill.teaching.taught import Taught


class _LogitsTerm(RegionTerm):
    """What the terms of this module are configured by, beside the arguments of `RegionTerm`.

    Args:
        temperature: softens both distributions; the term is multiplied by its square.
    """

    def __init__(self, temperature: float, **region: Any) -> None:
        super().__init__(**region)
        self.temperature = temperature


class VoxelKL(_LogitsTerm):
    """KL on the voxels in the mask, mean over them."""

    needs = Needs(answers=frozenset({"voxels"}))

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        index_V = self.region(lesson, teacher)
        student_VC = rows(lesson.prediction.voxel_logits_BXYZC, index_V, axes=1)
        return distillation_kl(student_VC, teacher.voxels(index_V), self.temperature)


class BalancedVoxelKL(_LogitsTerm):
    """KL on the voxels in the mask, of which rare classes and occupied space have shares of their own.

    Args:
        balance: how the classes of the teacher are weighed, "log" or "sqrt" (`ClassSet.weights`).
        occupied_share: of the voxels that the teacher calls occupied, in [0, 1]; the rest is of those that it calls
            free.
    """

    needs = Needs(answers=frozenset({"voxels"}))

    def __init__(self, balance: str, occupied_share: float, **logits: Any) -> None:
        super().__init__(**logits)
        self.occupied_share = occupied_share
        self.register_buffer("weights_C", torch.as_tensor(self.classes.weights(balance)), persistent=False)

    weights_C: Tensor

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        index_V = self.region(lesson, teacher)
        student_VC = rows(lesson.prediction.voxel_logits_BXYZC, index_V, axes=1)
        teacher_VC = teacher.voxels(index_V)
        shares_V = voxel_shares(teacher_VC.argmax(-1), self.weights_C, self.classes.free, self.occupied_share)
        return shared_kl(student_VC, teacher_VC, self.temperature, shares_V)


class BevKL(_LogitsTerm):
    """KL on the columns any of whose voxels is in the mask, mean over them."""

    needs = Needs(answers=frozenset({"columns"}))

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        logits_BXYZC = lesson.prediction.voxel_logits_BXYZC
        height = logits_BXYZC.shape[-2]
        index_K = (self.region(lesson, teacher) // height).unique_consecutive()
        student_KZC = rows(logits_BXYZC, index_K, axes=2).log_softmax(-1)
        student_KC = bev_log_probs(student_KZC, self.classes.free, teacher.covered(voxels_of(index_K, height)))
        return distillation_kl(student_KC, teacher.columns(index_K), self.temperature)


def distillation_kl(student_VC: Tensor, teacher_VC: Tensor, temperature: float) -> Tensor:
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


def shared_kl(student_VC: Tensor, teacher_VC: Tensor, temperature: float, shares_V: Tensor) -> Tensor:
    """T^2 sum_v a_v sum_k p_t(k) (ln p_t(k) - ln p_s(k)) with p = softmax(. / T) (docs/formulas.md 4.7).

    Args:
        student_VC: logits or log-probabilities.
        teacher_VC: finite logits or log-probabilities; gets no gradient.
        temperature: T, applied to both.
        shares_V: a, of each voxel.

    Returns:
        A scalar; 0 without rows.
    """
    student_VC = (student_VC / temperature).log_softmax(-1)
    teacher_VC = (teacher_VC.detach() / temperature).log_softmax(-1)
    kl_V = F.kl_div(student_VC, teacher_VC, reduction="none", log_target=True).sum(-1)
    return temperature**2 * (shares_V.to(kl_V.dtype) * kl_V).sum()


def voxel_shares(called_V: Tensor, weights_C: Tensor, free: int, occupied_share: float) -> Tensor:
    """What each voxel counts: by its class among the occupied ones, or as one of the free ones (docs/formulas.md 4.7).

    Args:
        called_V: class ids.
        weights_C: of the classes.
        free: id of the free class.
        occupied_share: the sum over the occupied voxels, in [0, 1]; that over the free ones is the rest.

    Returns:
        In the dtype of the weights; all 0 within a part whose weights are.
    """
    weights_V, occupied_V = weights_C[called_V], called_V != free
    shares_V = torch.zeros_like(weights_V)
    for part_V, share in ((occupied_V, occupied_share), (~occupied_V, 1 - occupied_share)):
        of_part_V = weights_V * part_V
        shares_V += share * of_part_V / of_part_V.sum().clamp_min(torch.finfo(weights_V.dtype).tiny)
    return shares_V
