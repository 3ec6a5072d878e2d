"""What the cameras of a keyframe see through what a teacher finds there (docs/formulas.md 4.9).

Where there are no labels, there is no mask of visible voxels: this one stands in for it. Letters: B batch, N cameras,
X Y Z voxel axes, V voxels of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from distill.frame import GRID, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.signals.arrays import StoredArray, bit_planes
from distill.signals.signal import Signal, TeacherPrediction
from kernels.observe import observe


@dataclass(frozen=True)
class SeenVoxels(Record):
    """What travels of them.

    Attributes:
        seen: bool (X, Y, Z).
    """

    seen: Array = declared(GRID)


@dataclass(frozen=True)
class Seen(Signal):
    """Which voxels the images that the teacher was given show, if what it finds is there.

    Attributes:
        rays_per_row: of an image; as many rows of them as its aspect asks for.
    """

    name: ClassVar[str] = "seen"
    answers: ClassVar[frozenset[str]] = frozenset({"seen"})

    rays_per_row: int = 800

    @override
    def arrays(self) -> Sequence[StoredArray]:
        return (StoredArray("seen", "bool", self.grid.shape, (0, 1, 2), bit_planes(1)),)

    @override
    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[np.ndarray]:
        """Bool (X, Y, Z) each."""
        occupied_BXYZ = prediction.semantics(free) != free
        to_voxels_44 = torch.from_numpy(self.grid.to_voxels()).to(frame.cam2ego.device)
        cam2voxel_BN44 = to_voxels_44 @ frame.cam2ego.double()
        cameras = zip(occupied_BXYZ, frame.intrinsics, cam2voxel_BN44, strict=True)
        image_size = frame.images.shape[-2:]
        return [observe(*of_one, image_size, self.rays_per_row).cpu().numpy() for of_one in cameras]

    @override
    def decode(self, read: Callable[[str], np.ndarray]) -> SeenVoxels:
        return SeenVoxels(seen=np.ascontiguousarray(read("seen")))

    @override
    def listen(self, record: SeenVoxels, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> StoredSeen:
        return StoredSeen(record)


class StoredSeen:
    """Looks up the voxels that are asked for."""

    def __init__(self, record: SeenVoxels) -> None:
        self.seen_BXYZ: Tensor = record.seen

    def seen(self, index_V: Tensor) -> Tensor:
        """Whether a camera sees them, bool (V,)."""
        return self.seen_BXYZ.flatten()[index_V]
