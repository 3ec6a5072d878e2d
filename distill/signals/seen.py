"""What the cameras of a keyframe see through what a teacher finds there (docs/formulas.md 4.9).

Where there are no labels, there is no mask of visible voxels: this one stands in for it. Letters: B batch, N cameras,
X Y Z voxel axes, V voxels of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from distill.frame import GRID, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.signals.arrays import StoredArray, bit_planes
from distill.signals.signal import Reading, Signal, TeacherPrediction
from kernels.observe import observe

RAYS_PER_ROW = 800  # of an image


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

    rays_per_row: int = RAYS_PER_ROW

    @override
    def arrays(self) -> Sequence[StoredArray]:
        return (StoredArray("seen", "bool", self.grid.shape, (0, 1, 2), bit_planes(1)),)

    @override
    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[np.ndarray]:
        """Bool (X, Y, Z) each."""
        seen_BXYZ = seen_by_cameras(prediction.semantics(free) != free, frame, self.grid, self.rays_per_row)
        return list(seen_BXYZ.cpu().numpy())

    @override
    def decode(self, read: Reading) -> SeenVoxels:
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


def seen_by_cameras(occupied_BXYZ: Tensor, frame: Frame, grid: VoxelGrid, rays_per_row: int) -> Tensor:
    """The voxels that the images of a batch show, if what is occupied is there (docs/formulas.md 4.9).

    Args:
        occupied_BXYZ: bool, voxels of the grid.
        frame: the batch, mirrored or not.
        grid: the voxels.
        rays_per_row: of an image; as many rows of them as its aspect asks for.

    Returns:
        bool (B, X, Y, Z).
    """
    to_voxels_44 = torch.from_numpy(grid.to_voxels()).to(frame.cam2ego.device)
    cam2voxel_BN44 = to_voxels_44 @ frame.cam2ego.double()
    cameras = zip(occupied_BXYZ, frame.intrinsics, cam2voxel_BN44, strict=True)
    return torch.stack([observe(*of_one, frame.images.shape[-2:], rays_per_row) for of_one in cameras])
