"""Temporal flicker: how much of a prediction changes from one keyframe to the next where the labels do not.

A voxel of a keyframe is compared when it is scored there, its centre, moved with the ego motion (the world stands
still), lies in a scored voxel of the keyframe before, and both have the same label. It flickers when the two
predictions differ. What moves is left out by its labels; what is wrong all the time does not flicker, so read it next
to the mIoU. The grids of two keyframes do not coincide: a prediction that is wrong but stands still in the world
flickers where it is sampled anew, one that equals the labels never does.

Letters: X Y Z voxel axes, C classes, V compared voxels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.grids import VoxelGrid
from distill.metrics.base import KeyframeMetric
from distill.metrics.conventions import percent
from distill.metrics.counting import Array


class _Seen(NamedTuple):
    """A keyframe, kept until the next one."""

    token: str
    prediction_XYZ: Tensor
    semantics_XYZ: Tensor
    known_XYZ: Tensor
    grid2global_44: np.ndarray


class Flicker(KeyframeMetric):
    """Share of the voxels whose predicted class changes although the label does not.

    Keyframes must come in the order of time. With several processes each takes whole scenes, or the pairs between them
    are lost; what is lost is counted in "flicker unpaired", and single process and many agree when that is 0.

    Args:
        grid, classes: of labels and predictions.
        options: of `torchmetrics.Metric`.

    Attributes:
        compared_C, changed_C: int64, compared voxels and those that flicker, by label.
        pairs: int64 (), pairs of keyframes that were compared.
        unpaired: int64 (), keyframes that have one before them, which was not the last one seen here.
    """

    higher_is_better = False
    full_state_update = True
    compared_C: Tensor
    changed_C: Tensor
    pairs: Tensor
    unpaired: Tensor

    def __init__(self, grid: VoxelGrid, classes: ClassSet, **options: Any) -> None:
        super().__init__(**options)
        self.grid, self.classes = grid, classes
        self._last: _Seen | None = None
        for name in ("compared_C", "changed_C"):
            self._add_counts(name, len(classes))
        for name in ("pairs", "unpaired"):
            self._add_counts(name)

    def reset(self) -> None:
        """Forget everything, the last keyframe too."""
        super().reset()
        self._last = None

    def update(
        self,
        prediction_XYZ: Array,
        semantics_XYZ: Array,
        mask_XYZ: Array,
        token: str,
        previous: str,
        grid2global_44: np.ndarray,
    ) -> None:
        """Compare a keyframe with the one before, if that was the last one given.

        Args:
            prediction_XYZ, semantics_XYZ: class ids, uint8.
            mask_XYZ: bool, the voxels to count: `mask_camera`.
            token: sample token of the keyframe.
            previous: sample token of the keyframe before it in its scene, "" for the first one.
            grid2global_44: the grid's frame to the map, float64; for an ego grid `ego2global`.

        Raises:
            InputError: volumes of different shapes or of the wrong type.
        """
        prediction_XYZ, semantics_XYZ, mask_XYZ = self._volumes(
            prediction_XYZ=prediction_XYZ, semantics_XYZ=semantics_XYZ, mask_XYZ=mask_XYZ
        )
        known_XYZ = mask_XYZ & (semantics_XYZ < len(self.classes)) & (semantics_XYZ != self.classes.ignored)
        seen = _Seen(token, prediction_XYZ.clone(), semantics_XYZ.clone(), known_XYZ, np.array(grid2global_44))
        if self._last is not None and previous == self._last.token:
            self._compare(self._last, seen)
            self.pairs += 1
        elif previous:
            self.unpaired += 1
        self._last = seen
        self.keyframes += 1

    def _compare(self, before: _Seen, now: _Seen) -> None:
        voxel_V3 = now.known_XYZ.nonzero()
        before_V3 = self._voxels_before(voxel_V3, np.linalg.inv(before.grid2global_44) @ now.grid2global_44)
        shape_3 = torch.tensor(self.grid.shape, device=self.device)
        inside_V = ((before_V3 >= 0) & (before_V3 < shape_3)).all(-1)
        here, there = voxel_V3[inside_V].unbind(-1), before_V3[inside_V].unbind(-1)
        label_V = now.semantics_XYZ[here]
        same_V = before.known_XYZ[there] & (label_V == before.semantics_XYZ[there])
        changed_V = same_V & (now.prediction_XYZ[here] != before.prediction_XYZ[there])
        self.compared_C += torch.bincount(label_V[same_V].long(), minlength=len(self.classes))
        self.changed_C += torch.bincount(label_V[changed_V].long(), minlength=len(self.classes))

    def _voxels_before(self, voxel_V3: Tensor, now2before_44: np.ndarray) -> Tensor:
        """In which voxels of the earlier grid the centres lie, int64 (V, 3)."""
        motion_44 = torch.from_numpy(now2before_44).to(self.device)
        lower_3 = torch.tensor(self.grid.lower, dtype=torch.float64, device=self.device)
        centre_V3 = (voxel_V3 + 0.5) * self.grid.voxel_size + lower_3
        moved_V3 = centre_V3 @ motion_44[:3, :3].T + motion_44[:3, 3]
        return ((moved_V3 - lower_3) / self.grid.voxel_size).floor().long()

    def compute(self) -> dict[str, Tensor]:
        """Shares in percent, float64, NaN where nothing was compared.

        Returns:
            "flicker" of all compared voxels, "flicker occupied" of those labelled as any class but free, "flicker per
            class" (C,) by label; "flicker pairs" and "flicker unpaired", int64, of keyframes.
        """
        occupied_C = torch.arange(len(self.classes), device=self.device) != self.classes.free
        return {
            "flicker": percent(self.changed_C.sum(), self.compared_C.sum()),
            "flicker occupied": percent(self.changed_C[occupied_C].sum(), self.compared_C[occupied_C].sum()),
            "flicker per class": percent(self.changed_C, self.compared_C),
            "flicker pairs": self.pairs,
            "flicker unpaired": self.unpaired,
        }
