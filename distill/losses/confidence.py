"""How much a teacher is to be believed in each frame (docs/formulas.md 4.13).

Letters: B batch, V voxels of the whole batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.losses.objective import Lesson
from distill.losses.regions import RegionTerm
from distill.teaching.taught import Taught


def frame_confidence(term: RegionTerm, kind: str, lesson: Lesson, teacher: Taught) -> Tensor:
    """What each frame's voxels are multiplied with, in [0, 1] (B,).

    Args:
        term: whose region is looked at.
        kind: "none": 1; "entropy": how sure the teacher is; "agreement": how often it is right about what is occupied,
            where there are labels.
        lesson: the batch.
        teacher: answers "voxels", unless the kind is "none".
    """
    if kind == "none":
        return torch.ones_like(lesson.frame.labelled, dtype=torch.float32)

    def work_out() -> Tensor:
        index_V = term.region(lesson, teacher)
        if kind == "entropy":
            return _sureness(lesson, teacher, index_V)
        return _agreement(lesson, teacher, index_V, term.classes)

    return lesson.once(("confidence", kind, teacher.name, term.mask, term.unlabelled), work_out)


def frames_of(index_V: Tensor, lesson: Lesson) -> Tensor:
    """The frames in which voxels lie, int64 (V,)."""
    return index_V // lesson.frame.semantics[0].numel()


def _sureness(lesson: Lesson, teacher: Taught, index_V: Tensor) -> Tensor:
    """1 - H / ln C."""
    probs_VC = teacher.voxels(index_V).softmax(-1)
    unsure_V = torch.special.entr(probs_VC).sum(-1) / math.log(probs_VC.shape[-1])
    return (1 - _means(unsure_V, index_V, lesson)).clamp_min(0)  # rounding may take even odds beyond ln C


def _agreement(lesson: Lesson, teacher: Taught, index_V: Tensor, classes: ClassSet) -> Tensor:
    """Right / (labelled occupied or called so)."""
    frame = lesson.frame
    index_V = index_V[frame.labelled[frames_of(index_V, lesson)]]
    labels_V, called_V = frame.semantics.flatten()[index_V], teacher.called(index_V)
    compared_V = (labels_V != classes.ignored) & ((labels_V != classes.free) | (called_V != classes.free))
    return _means((labels_V == called_V)[compared_V].float(), index_V[compared_V], lesson)


def _means(values_V: Tensor, index_V: Tensor, lesson: Lesson) -> Tensor:
    """The mean over each frame's voxels, which are in order (B,); without any, the mean of the frames that have some,
    1 if none has."""
    counts_B = frames_of(index_V, lesson).bincount(minlength=len(lesson.frame.labelled))
    means_B = torch.stack([part_V.mean() for part_V in values_V.split(counts_B.tolist())])
    return torch.where(means_B.isnan(), means_B.nanmean().nan_to_num(1.0), means_B)
