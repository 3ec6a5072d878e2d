"""Which voxels lie on the rays of cameras, and which they see through an occupancy, by Occ3D (docs/formulas.md 4.9).

A ray for every point of a grid over each image, followed from the camera, or from where it enters the voxels, to the
first occupied voxel by the traversal of Amanatides & Woo (1987): all voxels on the way are seen, this one included. A
ray that leaves the voxels without having met a surface sees nothing.

Distances are float64, in steps of a ray's own direction; where a ray meets two borders at once, it crosses that of z
first, then that of y.

Letters: N cameras, X Y Z voxel axes, R rays of a camera, A = 3 axes, E voxels on rays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import twin


def observe(
    occupied_XYZ: Tensor, intrinsics_N33: Tensor, cam2voxel_N44: Tensor, image_size: tuple[int, int], columns: int
) -> Tensor:
    """The voxels that any of the cameras sees; the twins return the same bits.

    Args:
        occupied_XYZ: bool.
        intrinsics_N33: of the images, pixels; pixel column j spans [j, j + 1).
        cam2voxel_N44: camera coordinates to voxel coordinates, in which voxel (i, j, k) spans [i, i + 1) x [j, j + 1) x
            [k, k + 1); of any scale, and left-handed in a mirrored world.
        image_size: (H, W), pixels.
        columns: rays per image row; as many rows as make cells that are as good as square, a ray through the centre of
            each.

    Returns:
        bool (X, Y, Z).
    """
    rays = _rays(intrinsics_N33, cam2voxel_N44, image_size, columns)
    return twin(__name__, occupied_XYZ.device).observe(occupied_XYZ, *rays)


def follow(
    within_XYZ: Tensor, intrinsics_N33: Tensor, cam2voxel_N44: Tensor, image_size: tuple[int, int], columns: int
) -> tuple[Tensor, Tensor]:
    """The voxels on each ray, in the order in which it crosses them; the twins return the same bits.

    Args:
        within_XYZ: bool, the voxels that are looked for; the others are passed over.
        intrinsics_N33, cam2voxel_N44, image_size, columns: see `observe`.

    Returns:
        index_E: (i * Y + j) * Z + k of the voxels of one ray after the other, int64 (E,).
        count_M: how many each ray has, int64 (N * R,).
    """
    rays = _rays(intrinsics_N33, cam2voxel_N44, image_size, columns)
    return twin(__name__, within_XYZ.device).follow(within_XYZ, *rays)


def _rays(
    intrinsics_N33: Tensor, cam2voxel_N44: Tensor, image_size: tuple[int, int], columns: int
) -> tuple[Tensor, Tensor, int, int]:
    """Where the rays of cameras begin, what turns (column, row, 1) into their directions, and how many there are."""
    height, width = image_size
    rows = max(1, round(columns * height / width))
    cell2pixel_33 = torch.diag(intrinsics_N33.new_tensor([width / columns, height / rows, 1.0], dtype=torch.float64))
    cell2ray_N33 = cam2voxel_N44[:, :3, :3].double() @ torch.linalg.inv(intrinsics_N33.double()) @ cell2pixel_33
    return cam2voxel_N44[:, :3, 3].double(), cell2ray_N33, columns, rows
