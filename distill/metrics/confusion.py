"""One global confusion matrix, scored by the convention of its class set; torch alone, so that programs start fast.

Letters: X Y Z voxel axes, C classes (axis 0 of a matrix: label, axis 1: prediction).
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from distill.classes import ClassSet
from distill.metrics.conventions import ConventionScore, conventions
from distill.metrics.counting import Array, count_confusion, volumes_of_keyframe


class Confusion:
    """Counts voxels keyframe by keyframe; `distill.metrics.OccupancyScore` is the same as a torchmetrics metric.

    Args:
        classes: the class set of labels and predictions.

    Attributes:
        counts_CC: int64 voxel counts, [label, prediction].
        keyframes: how many keyframes were counted.
    """

    def __init__(self, classes: ClassSet) -> None:
        self.classes = classes
        self.counts_CC = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        self.keyframes = 0

    def update(self, prediction_XYZ: Array, semantics_XYZ: Array, mask_XYZ: Array) -> None:
        """Count the voxels of one keyframe, on the CPU.

        Args:
            prediction_XYZ: predicted class ids, uint8.
            semantics_XYZ: label class ids, uint8; ids beyond the class set and `classes.ignored` are not counted.
            mask_XYZ: bool, voxels to count: `mask_camera`.

        Raises:
            InputError: volumes of different shapes or of the wrong type, or a prediction beyond the class set.
        """
        prediction_XYZ, semantics_XYZ, mask_XYZ = volumes_of_keyframe(
            torch.device("cpu"), prediction_XYZ=prediction_XYZ, semantics_XYZ=semantics_XYZ, mask_XYZ=mask_XYZ
        )
        self.counts_CC += count_confusion(prediction_XYZ, semantics_XYZ, mask_XYZ, self.classes)[0]
        self.keyframes += 1

    def all_reduce(self) -> None:
        """Add up the counts of all processes, on each of them; call it once, after the last `update`."""
        if dist.is_initialized():
            counts = torch.cat([self.counts_CC.flatten(), torch.tensor([self.keyframes])])
            counts = counts.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(counts)
            self.counts_CC = counts[:-1].view_as(self.counts_CC).cpu()
            self.keyframes = int(counts[-1])

    def score(self) -> ConventionScore:
        """Scores of what this process holds, by the class set's own convention."""
        return conventions(self.classes)[0].score(self.counts_CC)
