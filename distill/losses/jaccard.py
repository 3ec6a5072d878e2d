"""The overlap of what teacher and student say of a region, class by class (docs/formulas.md 4.11).

Letters: V voxels of the whole batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.losses.objective import Lesson, Needs
from distill.losses.regions import RegionTerm, rows
from distill.teaching.taught import Taught


class SoftJaccard(RegionTerm):
    """One minus the soft IoU of teacher and student on the voxels in the mask, mean over the classes that are there.

    The soft form of what `PseudoLovasz` asks of the teacher's classes: nothing is called, nothing is sorted.
    """

    needs = Needs(answers=frozenset({"voxels"}))

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        index_V = self.region(lesson, teacher)
        student_VC = rows(lesson.prediction.voxel_logits_BXYZC, index_V, axes=1)
        return soft_jaccard(student_VC.softmax(-1), teacher.voxels(index_V).softmax(-1))


def soft_jaccard(student_VC: Tensor, teacher_VC: Tensor) -> Tensor:
    """1 - (|p + q| - |p - q|) / (|p + q| + |p - q|) of each class, in L1 over voxels (Wang et al. 2023, JML1).

    Args:
        student_VC: probabilities p.
        teacher_VC: probabilities q; get no gradient.

    Returns:
        The mean over the classes of which the teacher says one voxel or more, in [0, 1]; 0 where there is none.
    """
    teacher_VC = teacher_VC.detach()
    said_C = teacher_VC.sum(0)
    apart_C = (student_VC - teacher_VC).abs().sum(0)
    loss_C = 2 * apart_C / (student_VC.sum(0) + said_C + apart_C).clamp_min(torch.finfo(apart_C.dtype).tiny)
    there_C = said_C >= 1
    return torch.where(there_C, loss_C, 0).sum() / there_C.sum().clamp_min(1)
