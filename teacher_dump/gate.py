"""Quality control while dumping: a broken teacher must stop itself, not fill a disk."""

from __future__ import annotations

import math

import numpy as np

from distill.classes import ClassSet
from distill.errors import InputError
from distill.metrics import Confusion

_MOST_FREE = 0.99  # of the voxels that a teacher covers: more are no driving scene, which has a ground


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
        self.classes = classes
        self.confusion = Confusion(classes)
        self.covered, self.free = 0, 0  # voxels of all samples
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

    def check_classes(
        self, token: str, semantics_XYZ: np.ndarray, covered_XYZ: np.ndarray, free_XYZ: np.ndarray
    ) -> None:
        """Raise InputError if the teacher's classes are numbered by another convention.

        Args:
            token: of the sample.
            semantics_XYZ: the teacher's argmax, uint8.
            covered_XYZ: bool, where it says anything.
            free_XYZ: bool, the voxels that cameras see and the label calls free; none without a label.
        """
        self.covered += int(np.count_nonzero(covered_XYZ))
        self.free += int(np.count_nonzero(semantics_XYZ[covered_XYZ] == self.classes.free))
        reason = self.classes.misfit(semantics_XYZ[covered_XYZ])
        if reason is None:
            said_V = semantics_XYZ[covered_XYZ & free_XYZ]
            share_C = np.bincount(said_V, minlength=len(self.classes)) / max(1, len(said_V))
            most = int(share_C.argmax())
            if most == self.classes.free or share_C[most] <= 0.5:
                return
            reason = (
                f"{share_C[most]:.0%} of the voxels that cameras see and the label calls free are class {most} "
                f"({self.classes.names[most]}): class ids of another convention, with free space there?"
            )
        raise InputError(
            f"sample {token}: what the teacher predicts is no scene of {self.classes.name}: {reason} Elsewhere free is "
            f"0 or 16, here it is {self.classes.free}: let predict put the classes in the order "
            f"{', '.join(self.classes.names)}. Nothing was written for it"
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
        if self.labelled != self.after:
            return
        if math.isnan(self.miou):
            raise InputError(
                f"the teacher cannot be judged: the labels of its first {self.after} labelled samples say nothing of "
                "voxels that cameras see; check their mask_camera"
            )
        if self.miou < self.min_miou:
            raise InputError(
                f"the teacher scores {self.miou:.2f} mIoU ({self.measure}) on its first {self.after} labelled samples, "
                f"less than gate.min_miou={self.min_miou}: check checkpoint and data, or lower gate.min_miou"
            )

    def verdict(self) -> str:
        """In words, how the teacher has done so far, whether that was judged, and what is suspicious about it."""
        share_free = self.free / max(1, self.covered)
        warning = f"; suspicious: it calls {share_free:.2%} of the voxels free" if share_free > _MOST_FREE else ""
        return self._judgement() + warning

    def _judgement(self) -> str:
        if math.isnan(self.miou):
            return f"none of them has a label to judge the teacher by (gate.min_miou={self.min_miou})"
        scored = f"teacher mIoU {self.miou:.2f} ({self.measure}) on the {self.labelled} labelled ones"
        if self.labelled >= self.after:
            return f"{scored}, judged on the first {self.after}"
        below = ", below" if self.miou < self.min_miou else ""
        return f"{scored}{below}: too few to be judged by gate.min_miou={self.min_miou} (gate.after={self.after})"
