"""Quality control while dumping: a broken teacher must stop itself, not fill a disk."""

from __future__ import annotations

import numpy as np
import torch

from distill.classes import ClassSet
from distill.errors import InputError
from distill.metrics import OccupancyScore


class Gate:
    """Watches a teacher's output sample by sample.

    Args:
        min_miou: Occ3D mIoU in percent below which the dump stops.
        after: labelled samples after which the mIoU is judged.
        classes: the class set of the labels.
    """

    def __init__(self, min_miou: float, after: int, classes: ClassSet) -> None:
        self.min_miou = min_miou
        self.after = after
        self.score = OccupancyScore(classes)

    @property
    def labelled(self) -> int:
        """Labelled samples seen so far."""
        return self.score.keyframes

    @property
    def miou(self) -> float:
        """Occ3D mIoU so far, percent; NaN before the first labelled sample."""
        return self.score.result().miou

    def check_finite(self, token: str, voxel_log_probs_XYZC: torch.Tensor) -> None:
        """Raise InputError unless every log-probability is a number no larger than 0 (-inf is a probability of 0)."""
        if not bool((voxel_log_probs_XYZC <= 1e-3).all()):
            raise InputError(
                f"the teacher's output for sample {token} is not log-probabilities (NaN or > 0): "
                "nothing was written for it; check the checkpoint and its input"
            )

    def judge(self, semantics_XYZ: np.ndarray, labels_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> None:
        """Count one labelled sample and stop the run if the teacher has shown to be too weak.

        Args:
            semantics_XYZ: the teacher's argmax, uint8.
            labels_XYZ: ground truth, uint8.
            mask_XYZ: mask_camera, bool.

        Raises:
            InputError: the running mIoU is below `min_miou` after `after` samples.
        """
        self.score.update(semantics_XYZ, labels_XYZ, mask_XYZ)
        if self.labelled == self.after and not self.miou >= self.min_miou:
            raise InputError(
                f"the teacher scores {self.miou:.2f} mIoU on its first {self.after} labelled samples, less than "
                f"gate.min_miou={self.min_miou}: check checkpoint and data, or lower gate.min_miou"
            )
