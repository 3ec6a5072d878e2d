"""What a teacher's store says, in the place of labels: how far a student agrees with it where nobody has labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill.classes import ClassSet
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.nuscenes.keyframe import Keyframe
from distill.store import NOT_COVERED, TeacherStore


class TeacherLabels:
    """The classes that a store says, on the voxels that the teacher's images show, a `LabelSource`.

    The masks hold what the signal `seen` says; without this signal in the store, every voxel that the teacher has
    modelled. Keyframes that the store lacks have no labels.

    Args:
        place: of the store.
        grid: where labels are wanted.
        classes: of the labels.

    Raises:
        InputError: there is no store, or it is on another grid or of other classes.
    """

    def __init__(self, place: Path, grid: VoxelGrid, classes: ClassSet) -> None:
        self.store, self.grid, self.free = TeacherStore(place), grid, classes.free
        if self.store.grid != grid:
            raise InputError(f"{place} is on grid {self.store.grid.name}, labels are wanted on {grid.name}: say grid=")
        self._masks = ["seen"] if "seen" in self.store.identity.signals else []
        self.store.check(grid, classes, self._masks)

    @property
    def teacher(self) -> str:
        """Who speaks, in a few words."""
        identity = self.store.identity
        return f"{identity.teacher} {identity.checkpoint_sha256[:8]}".strip()

    def path(self, keyframe: Keyframe) -> Path | None:
        """The file that holds the classes of a keyframe; None: the store lacks it."""
        return self.store.file(keyframe.token) if keyframe.token in self.store.present else None

    def read(self, keyframe: Keyframe) -> dict[str, np.ndarray] | None:
        """What stands for the labels of a keyframe, None if the store lacks it."""
        if keyframe.token not in self.store.present:
            return None
        semantics = self.store.semantics(keyframe.token)
        known = semantics != NOT_COVERED
        for told in self.store.told(keyframe.token, self._masks, coverage=False).signals.values():
            known &= told.seen
        return {"semantics": np.where(known, semantics, self.free).astype(np.uint8), **_masks(known)}

    def unlabelled(self) -> dict[str, np.ndarray]:
        """Everything free, nothing observed."""
        return {"semantics": np.full(self.grid.shape, self.free, np.uint8), **_masks(np.zeros(self.grid.shape, bool))}


def _masks(known: np.ndarray) -> dict[str, np.ndarray]:
    return {"mask_camera": known, "mask_lidar": known.copy()}
