"""How alike the classes of a region are to each other (docs/formulas.md 4.15).

Letters: V voxels of the whole batch, C classes, S classes that the teacher finds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.objective import Lesson, Needs
from distill.losses.regions import RegionTerm, rows
from distill.teaching.taught import Taught

LEAST = 2  # voxels of a class that is compared


class PrototypeAffinity(RegionTerm):
    """How far teacher and student differ in how alike what they say of one class is to what they say of another."""

    needs = Needs(answers=frozenset({"voxels"}))

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        index_V = self.region(lesson, teacher)
        student_VC = rows(lesson.prediction.voxel_logits_BXYZC, index_V, axes=1).log_softmax(-1)
        return prototype_affinity(student_VC, teacher.voxels(index_V).log_softmax(-1), self.classes.free)


def prototype_affinity(student_VC: Tensor, teacher_VC: Tensor, free: int) -> Tensor:
    """Mean absolute difference of the cosines between class prototypes, which are means over the voxels of a class.

    Args:
        student_VC: what the student says of voxels.
        teacher_VC: the same of the teacher, whose argmax says of which class a voxel is; gets no gradient.
        free: id of the free class, which is not compared.

    Returns:
        A scalar in [0, 2]; 0 without a class of `LEAST` voxels.
    """
    teacher_VC = teacher_VC.detach()
    called_V, classes = teacher_VC.argmax(-1), teacher_VC.shape[-1]
    counts_C = called_V.bincount(minlength=classes)
    there_C = (counts_C >= LEAST) & (torch.arange(classes, device=counts_C.device) != free)

    def affinity(values_VC: Tensor) -> Tensor:
        sums_CC = torch.zeros(classes, classes, dtype=values_VC.dtype, device=values_VC.device)
        # a mean and a sum point the same way
        prototypes_SC = F.normalize(sums_CC.index_add(0, called_V, values_VC)[there_C], dim=-1)
        return prototypes_SC @ prototypes_SC.T

    apart_SS = (affinity(student_VC) - affinity(teacher_VC)).abs()
    return apart_SS.sum() / max(apart_SS.numel(), 1)
