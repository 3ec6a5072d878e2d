"""Quality control while dumping: a broken teacher must stop itself, not fill a disk."""

from __future__ import annotations

import numpy as np
import torch

from distill.classes import ClassSet
from distill.errors import InputError
from distill.gaussians import Gaussians
from distill.grids import VoxelGrid
from distill.metrics import Confusion
from distill.store.gaussians import MAX_MEAN_KL
from distill.teaching import render

_LOWEST = -100.0  # stands for the logarithm of 0 where a probability of 0 is multiplied with it


class Gate:
    """Watches a teacher's output sample by sample.

    Args:
        min_miou: mIoU in percent below which the dump stops.
        after: labelled samples after which the mIoU is judged.
        classes: the class set of the labels.

    Attributes:
        measure: in words, which mIoU this is.
    """

    def __init__(self, min_miou: float, after: int, classes: ClassSet) -> None:
        self.min_miou = min_miou
        self.after = after
        self.confusion = Confusion(classes)
        self.measure = f"{classes.convention}, classes that occur"

    @property
    def labelled(self) -> int:
        """Labelled samples seen so far."""
        return self.confusion.keyframes

    @property
    def miou(self) -> float:
        """mIoU so far, percent, by the convention of the class set but over the classes that occur.

        SurroundOcc-16 gives a class without labels 100: on a few samples, a broken teacher would pass. NaN before the
        first labelled sample.
        """
        return float(self.confusion.score().occurring_miou)

    def check_finite(self, token: str, voxel_log_probs_XYZC: torch.Tensor) -> None:
        """Raise InputError unless every log-probability is a number no larger than 0 (-inf is a probability of 0)."""
        if not bool((voxel_log_probs_XYZC <= 1e-3).all()):
            raise InputError(
                f"the teacher's output for sample {token} is not log-probabilities (NaN or > 0): "
                "nothing was written for it; check the checkpoint and its input"
            )

    def check_gaussians(
        self,
        token: str,
        stored: Gaussians,
        grid: VoxelGrid,
        lidar2ego_44: torch.Tensor,
        voxel_log_probs_XYZC: torch.Tensor,
        covered_XYZ: torch.Tensor | None,
    ) -> None:
        """Raise InputError unless Gaussians, as they come out of the store, say what the voxels of the sample say.

        Args:
            token: of the sample.
            stored: in the LIDAR_TOP frame, on the device of the other tensors.
            grid: where the voxels lie.
            lidar2ego_44: LIDAR_TOP to the frame of the grid.
            voxel_log_probs_XYZC: what the teacher says.
            covered_XYZ: bool, where it says anything; None: everywhere.
        """
        covered_XYZ = torch.ones_like(voxel_log_probs_XYZC[..., 0]) if covered_XYZ is None else covered_XYZ
        index_V = covered_XYZ.flatten().nonzero().squeeze(1)
        teacher_VC = voxel_log_probs_XYZC.flatten(0, -2)[index_V]
        difference_VC = teacher_VC.clamp_min(_LOWEST) - render(stored, grid, lidar2ego_44, index_V)[0]
        kl = float((teacher_VC.exp() * difference_VC).sum(1).mean())
        if not kl <= MAX_MEAN_KL:
            raise InputError(
                f"sample {token}: voxels rendered from its stored Gaussians would miss the teacher's by {kl:.1e} nats "
                f"in the mean, the store promises {MAX_MEAN_KL:.0e}: check the teacher, set "
                "teacher.network.head.det=stable, or dump.gaussians=false"
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
        self.confusion.update(semantics_XYZ, labels_XYZ, mask_XYZ)
        if self.labelled == self.after and not self.miou >= self.min_miou:
            raise InputError(
                f"the teacher scores {self.miou:.2f} mIoU ({self.measure}) on its first {self.after} labelled samples, "
                f"less than gate.min_miou={self.min_miou}: check checkpoint and data, or lower gate.min_miou"
            )
