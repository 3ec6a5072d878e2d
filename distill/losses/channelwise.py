"""Where in a region each class is, rather than what each voxel is (docs/formulas.md 4.14).

Letters: B frames, V voxels of the whole batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.confidence import frames_of
from distill.losses.objective import Lesson, Needs
from distill.losses.regions import RegionTerm, rows
from distill.teaching.taught import Taught


class ChannelwiseKL(RegionTerm):
    """KL of what teacher and student say of where each class is, over the voxels in the mask of each frame.

    It knows no class apart from another: a class that the student finds everywhere too likely costs nothing. It goes
    beside a KL on voxels.

    Args:
        temperature: softens both distributions; the term is multiplied by its square.
    """

    needs = Needs(answers=frozenset({"voxels"}))

    def __init__(self, temperature: float, **region: Any) -> None:
        super().__init__(**region)
        self.temperature = temperature

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        index_V = self.region(lesson, teacher)
        student_VC = rows(lesson.prediction.voxel_logits_BXYZC, index_V, axes=1).log_softmax(-1)
        counts_B = frames_of(index_V, lesson).bincount(minlength=len(lesson.frame.labelled)).tolist()
        return channelwise_kl(student_VC, teacher.voxels(index_V).log_softmax(-1), self.temperature, counts_B)


def channelwise_kl(student_VC: Tensor, teacher_VC: Tensor, temperature: float, counts_B: Sequence[int]) -> Tensor:
    """T^2 / C sum_c KL over voxels of softmax_v(. / T), mean over the frames with voxels (Shu et al. 2021, CWD).

    Args:
        student_VC: what the student says of voxels, frame after frame.
        teacher_VC: the same of the teacher; gets no gradient.
        temperature: T, applied to both.
        counts_B: how many voxels each frame has.

    Returns:
        A scalar; 0 without voxels.
    """
    parts = [
        F.kl_div(
            (student_NC / temperature).log_softmax(0),
            (teacher_NC.detach() / temperature).log_softmax(0),
            reduction="sum",
            log_target=True,
        )
        for student_NC, teacher_NC in zip(student_VC.split(counts_B), teacher_VC.split(counts_B), strict=True)
        if len(student_NC)
    ]
    if not parts:
        return student_VC.sum()
    return temperature**2 / student_VC.shape[-1] * torch.stack(parts).mean()
