"""The three numbers that are all called mIoU, by name (docs/formulas.md 3.1). They do not compare.

| name | labels | averaged classes | voxels | a class without labels scores |
|---|---|---|---|---|
| Occ3D-17 | Occ3D | 0 to 16 | mask_camera | its IoU, 0; left out if it is not predicted either |
| MonoOcc-16 | Occ3D | 1 to 16 | mask_camera, but those labelled others | 0 |
| SurroundOcc-16 | SurroundOcc | 1 to 16 | all but those labelled noise | 100 |

All of them score one confusion matrix of the whole split, do not average free, and count a voxel predicted free as
missed for its class. To the last two, a prediction of class 0 is occupied and a hit for no class. Scorers of Occ3D-17
disagree about a class that is predicted but not labelled, which the whole validation split does not have: to the
challenge's and FlashOcc's it scores 0, SparseOcc's leaves it out (`labelled_miou`).

Letters: C classes (axis 0 of a confusion matrix: label, axis 1: prediction), after any leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES, ClassSet


def percent(part: Tensor, whole: Tensor) -> Tensor:
    """100 * part / whole in float64, NaN for 0 of 0."""
    return 100.0 * part.double() / whole.double()


class ConventionScore(NamedTuple):
    """Scores in percent, float64, with the leading axes of the confusion matrices.

    Attributes:
        miou: mean IoU by the convention; NaN when nothing was counted.
        occurring_miou: mean IoU over the averaged classes in labels or predictions: no points for what is not there.
        labelled_miou: mean IoU over the averaged classes in labels.
        geometric_iou: IoU of occupied against free, classes ignored; NaN when nothing is occupied.
        per_class_iou: (..., C) of the averaged classes and free; NaN for a class in neither labels nor predictions.
    """

    miou: Tensor
    occurring_miou: Tensor
    labelled_miou: Tensor
    geometric_iou: Tensor
    per_class_iou: Tensor


@dataclass(frozen=True)
class Convention:
    """What is counted and averaged.

    Attributes:
        name: how a report names the mIoU.
        classes: the class set of the confusion matrices.
        averaged: class ids whose IoU is averaged; voxels with another label but free are not counted.
        unlabelled_iou: see `ClassSet`.
    """

    name: str
    classes: ClassSet
    averaged: range
    unlabelled_iou: float | None

    def score(self, confusion_CC: Tensor) -> ConventionScore:
        """Score confusion matrices, int64 (..., C, C)."""
        ids_C = torch.arange(len(self.classes), device=confusion_CC.device)
        averaged_C, free_C = torch.isin(ids_C, torch.tensor(list(self.averaged)).to(ids_C)), ids_C == self.classes.free
        confusion_CC = confusion_CC * (averaged_C | free_C).unsqueeze(-1)
        hits_C, labels_C = confusion_CC.diagonal(dim1=-2, dim2=-1), confusion_CC.sum(-1)
        iou_C = percent(hits_C, labels_C + confusion_CC.sum(-2) - hits_C)
        by_convention_C = iou_C
        if self.unlabelled_iou is not None:
            filled = (labels_C == 0) & labels_C.any(-1, keepdim=True)
            by_convention_C = iou_C.where(~filled, self.unlabelled_iou)
        total, free = confusion_CC.sum((-2, -1)), confusion_CC[..., free_C, :][..., free_C].sum((-2, -1))
        both = confusion_CC[..., ~free_C, :][..., ~free_C].sum((-2, -1))
        return ConventionScore(
            miou=by_convention_C[..., averaged_C].nanmean(-1),
            occurring_miou=iou_C[..., averaged_C].nanmean(-1),
            labelled_miou=iou_C.where(labels_C > 0, torch.nan)[..., averaged_C].nanmean(-1),
            geometric_iou=percent(both, total - free),
            per_class_iou=iou_C.where(averaged_C | free_C, torch.nan),
        )


def conventions(classes: ClassSet) -> list[Convention]:
    """All that score confusion matrices of a class set, its own first."""
    own = Convention(classes.convention, classes, classes.scored, classes.unlabelled_iou)
    return [own, MONOOCC_16] if classes == OCC3D_CLASSES else [own]


# MonoOcc's labels for nuScenes have no others; its scorer adds 1e-5 to every union, which 0 stands for here.
MONOOCC_16 = Convention("MonoOcc-16", OCC3D_CLASSES, range(1, 17), 0.0)
OCC3D_17, SURROUNDOCC_16 = conventions(OCC3D_CLASSES)[0], conventions(SURROUNDOCC_CLASSES)[0]
