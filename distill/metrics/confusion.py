"""Occ3D mIoU and geometric IoU from one global confusion matrix.

Letters: X Y Z voxel axes, C classes (axis 0 of a matrix: label, axis 1: prediction).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distill.classes import ClassSet
from distill.errors import InputError


@dataclass(frozen=True)
class OccupancyResult:
    """Scores in percent.

    Attributes:
        miou: mean IoU over the classes that occur, free left out (systems.md 0.4); NaN when none occurs.
        geometric_iou: IoU of occupied against free, classes ignored; NaN when nothing is occupied.
        per_class_iou: (C,) float64, free included; NaN for a class in neither labels nor predictions.
        keyframes: how many keyframes were counted.
    """

    miou: float
    geometric_iou: float
    per_class_iou: np.ndarray
    keyframes: int

    def to_dict(self, classes: ClassSet) -> dict[str, Any]:
        """JSON-ready numbers; NaN becomes None."""
        return {
            "miou": _number(self.miou),
            "geometric_iou": _number(self.geometric_iou),
            "per_class_iou": dict(zip(classes.names, map(_number, self.per_class_iou), strict=True)),
            "keyframes": self.keyframes,
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


class OccupancyScore:
    """Accumulates the confusion matrix of Occ3D-nuScenes (systems.md 0.4).

    Args:
        classes: the class set of labels and predictions.

    Attributes:
        confusion_CC: int64 voxel counts, [label, prediction].
        keyframes: how many keyframes were counted.
    """

    def __init__(self, classes: ClassSet) -> None:
        self.classes = classes
        self.confusion_CC = np.zeros((len(classes), len(classes)), dtype=np.int64)
        self.keyframes = 0

    def update(self, prediction_XYZ: np.ndarray, semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> None:
        """Count the voxels of one keyframe.

        Args:
            prediction_XYZ: predicted class ids, uint8.
            semantics_XYZ: label class ids, uint8; ids beyond the class set (255 = unknown) are not counted.
            mask_XYZ: bool, voxels to count: `mask_camera` for Occ3D.

        Raises:
            InputError: the prediction holds an id beyond the class set.
        """
        count = len(self.classes)
        counted_XYZ = mask_XYZ & (semantics_XYZ < count)
        prediction_V, semantics_V = prediction_XYZ[counted_XYZ], semantics_XYZ[counted_XYZ]
        if prediction_V.max(initial=0) >= count:
            raise InputError(
                f"a prediction holds class {prediction_V.max()}, but {self.classes.name} has {count} classes (0 to "
                f"{count - 1}): score it with its own class set"
            )
        pair_V = semantics_V.astype(np.intp) * count + prediction_V
        self.confusion_CC += np.bincount(pair_V, minlength=count * count).reshape(count, count)
        self.keyframes += 1

    def all_reduce(self) -> None:
        """Add up the counts of all processes, on each of them; call it once, after the last `update`."""
        if not dist.is_initialized():
            return
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        counts = torch.from_numpy(np.append(self.confusion_CC, self.keyframes)).to(device)
        dist.all_reduce(counts)
        self.confusion_CC = counts[:-1].cpu().numpy().reshape(self.confusion_CC.shape)
        self.keyframes = int(counts[-1])

    def result(self) -> OccupancyResult:
        """IoU = TP / (TP + FP + FN) over everything counted so far."""
        true_positives_C = np.diagonal(self.confusion_CC)
        union_C = self.confusion_CC.sum(0) + self.confusion_CC.sum(1) - true_positives_C
        per_class_iou = np.full(len(self.classes), np.nan)
        np.divide(100.0 * true_positives_C, union_C, out=per_class_iou, where=union_C > 0)
        occupied = np.arange(len(self.classes)) != self.classes.free
        seen = per_class_iou[occupied & (union_C > 0)]
        both = self.confusion_CC[np.ix_(occupied, occupied)].sum()
        either = self.confusion_CC.sum() - self.confusion_CC[self.classes.free, self.classes.free]
        return OccupancyResult(
            miou=float(seen.mean()) if len(seen) else float("nan"),
            geometric_iou=float(100.0 * both / either) if either else float("nan"),
            per_class_iou=per_class_iou,
            keyframes=self.keyframes,
        )
