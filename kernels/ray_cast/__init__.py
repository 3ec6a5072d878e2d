"""Ray casting through voxel volumes: where a ray leaves the first occupied voxel that it meets.

The traversal of Amanatides & Woo (1987) in voxel units, with the edge cases of the CUDA kernel behind the published
RayIoU numbers (docs/formulas.md 3.4), so that it returns that kernel's numbers:

* origins and ends are float32; from there to the returned distance everything is float64;
* the first voxel is the origin truncated towards zero, so an origin less than one voxel below the grid begins inside;
* where a ray meets two borders at once, it crosses that of z first, then that of y;
* a ray visits at most 1001 voxels, those outside the grid included, and ends where it leaves the grid;
* a ray that hits nothing ends in its last voxel inside the grid; one that never enters, in voxel 0 at distance -1.

Letters: S volumes, X Y Z voxel axes, R rays.
"""

from __future__ import annotations

from torch import Tensor

from kernels.dispatch import twin


def ray_cast(occupied_SXYZ: Tensor, origins_R3: Tensor, ends_R3: Tensor) -> tuple[Tensor, Tensor]:
    """Follow the same rays through several volumes; every device returns the same bits.

    Args:
        occupied_SXYZ: bool, at most 8 volumes.
        origins_R3: float32 in voxels: voxel (i, j, k) spans [i, i + 1) x [j, j + 1) x [k, k + 1).
        ends_R3: float32, another point of each ray; it gives the direction, the ray goes on beyond it.

    Returns:
        int32 (S, R), the voxel in which each ray ends, as (i * Y + j) * Z + k; and float32 (S, R), the distance from
        the origin to where the ray leaves that voxel, in voxels.
    """
    return twin(__name__, occupied_SXYZ.device).walk(occupied_SXYZ, origins_R3, ends_R3)
