"""mIoU, by every convention of the class set, and geometric IoU from one global confusion matrix.

Letters: X Y Z voxel axes, C classes (axis 0 of a matrix: label, axis 1: prediction).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distill.classes import ClassSet
from distill.metrics.base import KeyframeMetric
from distill.metrics.conventions import conventions
from distill.metrics.counting import Array, count_confusion


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

    def compute(self) -> dict[str, Tensor]:
        """In percent, float64, by each convention of the class set.

        Returns:
            "<convention> mIoU", "<convention> occurring mIoU", "<convention> labelled mIoU", "<convention> geometric
            IoU" and "<convention> IoU per class" (C,), as described at `ConventionScore`; "confusion" (C, C), int64.
        """
        result = {"confusion": self.confusion_CC}
        for convention in conventions(self.classes):
            score = convention.score(self.confusion_CC)
            result[f"{convention.name} mIoU"] = score.miou
            result[f"{convention.name} occurring mIoU"] = score.occurring_miou
            result[f"{convention.name} labelled mIoU"] = score.labelled_miou
            result[f"{convention.name} geometric IoU"] = score.geometric_iou
            result[f"{convention.name} IoU per class"] = score.per_class_iou
        return result
