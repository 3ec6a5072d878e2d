"""mIoU, by the convention of the class set, and geometric IoU from one global confusion matrix.

Letters: X Y Z voxel axes, C classes (axis 0 of a matrix: label, axis 1: prediction).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from distill.classes import ClassSet
from distill.metrics.base import Array, KeyframeMetric
from distill.metrics.conventions import conventions
from distill.metrics.counting import count_confusion


@dataclass(frozen=True)
class OccupancyResult:
    """Scores in percent.

    Attributes:
        convention: which mIoU this is, "Occ3D-17" or "SurroundOcc-16".
        miou: mean IoU by the convention; NaN when nothing was counted.
        occurring_miou: mean IoU over the scored classes in labels or predictions: no points for what is not there.
        geometric_iou: IoU of occupied against free, classes ignored; NaN when nothing is occupied.
        per_class_iou: (C,) float64 of the scored classes and free; NaN for a class in neither labels nor predictions.
        keyframes: how many keyframes were counted.
    """

    convention: str
    miou: float
    occurring_miou: float
    geometric_iou: float
    per_class_iou: np.ndarray
    keyframes: int

    def to_dict(self, classes: ClassSet) -> dict[str, Any]:
        """JSON-ready numbers; NaN becomes None."""
        return {
            "convention": self.convention,
            "miou": _number(self.miou),
            "occurring_miou": _number(self.occurring_miou),
            "geometric_iou": _number(self.geometric_iou),
            "per_class_iou": dict(zip(classes.names, map(_number, self.per_class_iou), strict=True)),
            "keyframes": self.keyframes,
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


class OccupancyScore(KeyframeMetric):
    """Accumulates a confusion matrix, and scores it by the conventions of its class set.

    Args:
        classes: the class set of labels and predictions.
        options: of `torchmetrics.Metric`.

    Attributes:
        confusion_CC: int64 voxel counts, [label, prediction].
    """

    higher_is_better = True
    confusion_CC: Tensor

    def __init__(self, classes: ClassSet, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes
        self._add_counts("confusion_CC", len(classes), len(classes))

    def update(self, prediction_XYZ: Array, semantics_XYZ: Array, mask_XYZ: Array) -> None:
        """Count the voxels of one keyframe.

        Args:
            prediction_XYZ: predicted class ids, uint8.
            semantics_XYZ: label class ids, uint8; ids beyond the class set and `classes.ignored` are not counted.
            mask_XYZ: bool, voxels to count: `mask_camera`.

        Raises:
            InputError: volumes of different shapes or of the wrong type, or a prediction beyond the class set.
        """
        prediction_XYZ, semantics_XYZ, mask_XYZ = self._volumes(
            prediction_XYZ=prediction_XYZ, semantics_XYZ=semantics_XYZ, mask_XYZ=mask_XYZ
        )
        self.confusion_CC += count_confusion(prediction_XYZ, semantics_XYZ, mask_XYZ, self.classes)[0]
        self.keyframes += 1

    def all_reduce(self) -> None:
        """Add up the counts of all processes, on each of them; call it once, after the last `update`."""
        if dist.is_initialized():
            self.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(self.confusion_CC)
            dist.all_reduce(self.keyframes)

    def result(self) -> OccupancyResult:
        """Scores of what this process holds, by the class set's own convention; `compute` asks all processes."""
        own = conventions(self.classes)[0]
        score = own.score(self.confusion_CC)
        return OccupancyResult(
            convention=own.name,
            miou=float(score.miou),
            occurring_miou=float(score.occurring_miou),
            geometric_iou=float(score.geometric_iou),
            per_class_iou=score.per_class_iou.cpu().numpy(),
            keyframes=int(self.keyframes),
        )

    def compute(self) -> dict[str, Tensor]:
        """In percent, float64, by each convention of the class set.

        Returns:
            "<convention> mIoU", "<convention> occurring mIoU", "<convention> geometric IoU" and "<convention> IoU per
            class" (C,), as described at `ConventionScore`; "confusion" (C, C), int64.
        """
        result = {"confusion": self.confusion_CC}
        for convention in conventions(self.classes):
            score = convention.score(self.confusion_CC)
            result[f"{convention.name} mIoU"] = score.miou
            result[f"{convention.name} occurring mIoU"] = score.occurring_miou
            result[f"{convention.name} geometric IoU"] = score.geometric_iou
            result[f"{convention.name} IoU per class"] = score.per_class_iou
        return result
