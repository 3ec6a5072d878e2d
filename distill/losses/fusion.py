"""What a fusion branch learns by: cross-entropy and Lovász-softmax of each of its heads (docs/formulas.md 4.30).

What it teaches goes through the terms that listen to teachers; this term alone trains the branch, and through its fused
features the student's.

Letters: C classes, V valid voxels of the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.losses.objective import Lesson, Needs, Term
from distill.losses.regions import labelled_voxels
from distill.losses.supervised import cross_entropy, lovasz_softmax


class FusedSegmentation(Term):
    """The heads of a branch against the labels, mean over the heads.

    Frames without points, in which the branch has nothing to fuse, add nothing.

    Args:
        weight: of the term.
        teacher: name of the branch.
        balance: how classes are weighed in the cross-entropy, see `ClassSet.weights`.
        mask: see `regions.labelled_voxels`.
        classes: names, ids and weights of the classes.
    """

    needs = Needs(answers=frozenset({"heads"}))

    def __init__(self, weight: float, teacher: str, balance: str | float, mask: str, classes: ClassSet) -> None:
        super().__init__(weight)
        self.teachers, self.teacher, self.mask, self.classes = (teacher,), teacher, mask, classes
        self.register_buffer("weights_C", torch.as_tensor(classes.weights(balance)), persistent=False)

    weights_C: Tensor

    def forward(self, lesson: Lesson) -> Tensor:
        """Of the labelled voxels in the mask."""
        teacher = lesson.teachers[self.teacher]
        index_V = labelled_voxels(lesson, self.mask, self.classes)
        index_V = index_V[teacher.taught_B[index_V // lesson.frame.semantics[0].numel()]]
        labels_V = lesson.frame.semantics.flatten()[index_V].long()
        parts = [segmentation(logits_VC, labels_V, self.weights_C) for logits_VC in teacher.ask("heads")(index_V)]
        return torch.stack(parts).mean()


def segmentation(logits_VC: Tensor, labels_V: Tensor, weights_C: Tensor) -> Tensor:
    """Cross-entropy plus Lovász-softmax; 0 without voxels.

    Args:
        logits_VC: unnormalised scores.
        labels_V: int64 class ids.
        weights_C: of the classes in the cross-entropy.
    """
    log_probs_VC = logits_VC.log_softmax(-1)
    return cross_entropy(log_probs_VC, labels_V, weights_C) + lovasz_softmax(log_probs_VC.exp(), labels_V)
