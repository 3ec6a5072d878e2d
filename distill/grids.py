"""Voxel grids: where a (200, 200, 16) array lies in the world.

Two grids of the same shape circulate in this field (Occ3D-nuScenes and SurroundOcc); a shape check cannot tell
them apart, so everything that carries voxels carries a `VoxelGrid`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from distill import rigid
from distill.errors import InputError

# Where nuScenes mounts LIDAR_TOP on the ego vehicle, metres; the frame itself looks forward along y.
LIDAR_MOUNT = (0.94, 0.0, 1.84)


@dataclass(frozen=True)
class VoxelGrid:
    """An axis-aligned voxel grid in the `frame` of one keyframe.

    Arrays on it are indexed [x, y, z]; voxel (i, j, k) has its centre at `lower + (index + 0.5) * voxel_size`.

    Attributes:
        name: short name used in configs and stores.
        frame: "ego" (x forward, y left, z up, LiDAR-time ego pose) or "lidar" (the LIDAR_TOP sensor frame).
        lower: the minimum corner, metres.
        voxel_size: edge length of a voxel, metres.
        shape: number of voxels along x, y, z.
    """

    name: str
    frame: Literal["ego", "lidar"]
    lower: tuple[float, float, float]
    voxel_size: float
    shape: tuple[int, int, int]

    @property
    def upper(self) -> tuple[float, float, float]:
        """The maximum corner, metres."""
        x, y, z = (low + self.voxel_size * count for low, count in zip(self.lower, self.shape, strict=True))
        return (x, y, z)

    @property
    def ground(self) -> float:
        """Height of a flat road in the frame of the grid, metres."""
        return 0.0 if self.frame == "ego" else -LIDAR_MOUNT[2]

    def centres(self) -> np.ndarray:
        """Voxel centres in metres, float64 (X, Y, Z, 3)."""
        axes = [
            low + (np.arange(count) + 0.5) * self.voxel_size for low, count in zip(self.lower, self.shape, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    def to_voxels(self) -> np.ndarray:
        """Metres in its frame to voxel coordinates, in which voxel (i, j, k) spans [i, i + 1) x ..., float64 (4, 4)."""
        matrix = np.diag([1 / self.voxel_size] * 3 + [1.0])
        matrix[:3, 3] = -np.array(self.lower) / self.voxel_size
        return matrix

    def from_ego(self, lidar2ego: np.ndarray | None) -> np.ndarray:
        """A keyframe's ego frame to the frame of the grid, float64 (4, 4).

        Args:
            lidar2ego: LIDAR_TOP to the ego frame of that keyframe, float64 (4, 4); None: there is no LiDAR.

        Raises:
            InputError: the grid lies in the frame of a LiDAR that there is not.
        """
        if self.frame == "ego":
            return np.eye(4)
        if lidar2ego is None:
            raise InputError(f"grid {self.name} lies in the frame of the LiDAR, and the data have none: use grid=occ3d")
        return rigid.inverse(lidar2ego)

    def coarser(self, size: int) -> VoxelGrid:
        """The grid over the same space whose voxels are blocks of `size` ^ 3 of these.

        Raises:
            InputError: they do not fill it.
        """
        if any(count % size for count in self.shape):
            raise InputError(f"blocks of {size} ^ 3 voxels do not fill the grid {self.name}, {self.shape}")
        x, y, z = self.shape
        coarse_shape = (x // size, y // size, z // size)
        return VoxelGrid(f"{self.name}/{size}", self.frame, self.lower, self.voxel_size * size, coarse_shape)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, the inverse of `from_dict`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> VoxelGrid:
        """Rebuild a grid from `to_dict`."""
        lower, shape = tuple(description["lower"]), tuple(description["shape"])
        return cls(description["name"], description["frame"], lower, description["voxel_size"], shape)


# Occ3D-nuScenes: the ego frame of the keyframe (docs/formulas.md 1.2).
OCC3D = VoxelGrid("occ3d", "ego", (-40.0, -40.0, -1.0), 0.4, (200, 200, 16))
# SurroundOcc / GaussianFormer: the LIDAR_TOP frame (docs/formulas.md 1.3).
SURROUNDOCC = VoxelGrid("surroundocc", "lidar", (-50.0, -50.0, -5.0), 0.5, (200, 200, 16))


def named_grid(name: str) -> VoxelGrid:
    """The grid of this name.

    Raises:
        InputError: there is none.
    """
    grids = {grid.name: grid for grid in (OCC3D, SURROUNDOCC)}
    if name not in grids:
        raise InputError(f"grid.name={name}: choose one of {', '.join(grids)}")
    return grids[name]
