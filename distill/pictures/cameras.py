"""Voxels drawn into camera pictures: what each camera would see of them.

Each pixel casts one ray, and the first occupied voxel on it colours the pixel. Inside, lengths are in voxels and the
lower corner of the grid is the origin; a ray advances by one metre of depth (along the optical axis) per unit of its
parameter. Letters: X Y Z voxel axes, R rays (one per pixel, row by row), K rays that hit something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from distill.classes import ClassSet
from distill.grids import VoxelGrid
from distill.nuscenes.keyframe import Keyframe
from kernels.ray_cast import ray_cast

OPACITY = 0.55
# Brightness of a voxel's (lower, upper) faces across the forward, the sideways and the upward axis.
SHADES = ((0.76, 0.76), (0.62, 0.62), (0.5, 1.0))
LINE = 0.6  # brightness of the line between two faces
LINED = (3.0, 8.0)  # pixels that a face measures across where lines begin to show, and where they show in full
_FAR = 256.0  # voxels from a ray's start to its end; float32 rounds an end to 1e-7 of the direction


class _Hits(NamedTuple):
    """Rays that hit a voxel.

    Attributes:
        ray_K: positions of the rays.
        voxel_3K: what they hit.
        axis_K: the axis across which they enter it.
        upper_K: 1 where they enter by its upper face along that axis, else 0.
        depth_K: metres.
        slant_K: cosine between ray and face normal.
    """

    ray_K: np.ndarray
    voxel_3K: np.ndarray
    axis_K: np.ndarray
    upper_K: np.ndarray
    depth_K: np.ndarray
    slant_K: np.ndarray


def keyframe_overlays(
    keyframe: Keyframe,
    pictures: Sequence[np.ndarray],
    semantics_XYZ: np.ndarray,
    mask_XYZ: np.ndarray | None,
    grid: VoxelGrid,
    classes: ClassSet,
) -> list[np.ndarray]:
    """The six camera pictures of a keyframe with voxels drawn in, ego motion between camera and LiDAR time included.

    Args:
        keyframe: gives calibration and poses.
        pictures: RGB uint8 (rows, columns, 3) in the order of its cameras: whole images at any resolution.
        semantics_XYZ, mask_XYZ, grid, classes: see `draw_voxels`.

    Returns:
        RGB uint8, of the sizes of `pictures`.
    """
    ego2grid_44 = grid.from_ego(keyframe.lidar2ego)
    overlays = []
    for camera, cam2ego_44, pixels in zip(keyframe.cameras, keyframe.cam2ego(), pictures, strict=True):
        rows, columns = pixels.shape[:2]
        intrinsics_33 = np.diag([columns / camera.width, rows / camera.height, 1.0]) @ camera.intrinsics
        cam2grid_44 = ego2grid_44 @ cam2ego_44
        overlays.append(draw_voxels(pixels, intrinsics_33, cam2grid_44, semantics_XYZ, mask_XYZ, grid, classes))
    return overlays


def draw_voxels(
    pixels: np.ndarray,
    intrinsics_33: np.ndarray,
    cam2grid_44: np.ndarray,
    semantics_XYZ: np.ndarray,
    mask_XYZ: np.ndarray | None,
    grid: VoxelGrid,
    classes: ClassSet,
) -> np.ndarray:
    """Blend the occupied voxels that a pinhole camera sees over its picture.

    The camera may stand anywhere; the voxel it stands in is not drawn.

    Args:
        pixels: RGB uint8 (rows, columns, 3).
        intrinsics_33: camera frame to these pixels; column j spans [j, j + 1).
        cam2grid_44: camera frame to the frame of the grid, metres.
        semantics_XYZ: class ids, uint8 on the grid.
        mask_XYZ: bool; voxels outside it are transparent. None: none are.
        grid: of the arrays.
        classes: colours, and the free class, which is transparent.

    Returns:
        RGB uint8 (rows, columns, 3); pixels that see no voxel are as they were.
    """
    shown_XYZ = semantics_XYZ != classes.free
    if mask_XYZ is not None:
        shown_XYZ &= mask_XYZ
    camera_3 = (cam2grid_44[:3, 3] - grid.lower) / grid.voxel_size
    own = tuple(np.floor(camera_3).astype(int).tolist())
    if all(0 <= index < count for index, count in zip(own, grid.shape, strict=True)):
        shown_XYZ[own] = False
    size = (pixels.shape[0], pixels.shape[1])
    direction_3R = _directions(size, intrinsics_33, cam2grid_44) / grid.voxel_size
    hits = _first_hits(shown_XYZ, camera_3, direction_3R)
    shades = SHADES if grid.frame == "ego" else (SHADES[1], SHADES[0], SHADES[2])  # LIDAR_TOP looks along y
    focal = np.sqrt(abs(np.linalg.det(intrinsics_33[:2, :2])))
    width_K = focal * grid.voxel_size / hits.depth_K * hits.slant_K
    shade_K = np.array(shades)[hits.axis_K, hits.upper_K] * _lines(hits, width_K, size, grid.shape)
    colour_K3 = classes.palette[semantics_XYZ[tuple(hits.voxel_3K)]] * shade_K[:, None]
    blended_R3 = np.array(pixels, order="C").reshape(-1, 3)
    blended_R3[hits.ray_K] = np.rint((1 - OPACITY) * blended_R3[hits.ray_K] + OPACITY * colour_K3)
    return blended_R3.reshape(pixels.shape)


def _directions(size: tuple[int, int], intrinsics_33: np.ndarray, cam2grid_44: np.ndarray) -> np.ndarray:
    """Rays through the centres of pixels, metres in the grid's frame per metre of depth, float64 (3, R)."""
    rows, columns = size
    across_3, down_3, first_3 = (cam2grid_44[:3, :3] @ np.linalg.inv(intrinsics_33)).T
    across_3W = across_3[:, None] * (np.arange(columns) + 0.5)
    down_3H = down_3[:, None] * (np.arange(rows) + 0.5) + first_3[:, None]
    direction_3R = (down_3H[:, :, None] + across_3W[:, None]).reshape(3, -1)
    direction_3R[direction_3R == 0] = 1e-12  # a ray within a border would divide zero by zero
    return direction_3R


def _first_hits(shown_XYZ: np.ndarray, camera_3: np.ndarray, direction_3R: np.ndarray) -> _Hits:
    camera_31, shape_31 = camera_3[:, None], np.array(shown_XYZ.shape)[:, None]
    enter_3R, leave_3R = _crossings(np.zeros((3, 1)), shape_31, camera_31, direction_3R)
    enter_R = enter_3R.max(0).clip(0)
    ray_K = np.flatnonzero(enter_R < leave_3R.min(0))  # those that meet the grid
    direction_3K = direction_3R.take(ray_K, 1)
    start_3K = camera_31 + enter_R[ray_K] * direction_3K
    end_3K = start_3K + direction_3K * (_FAR / np.linalg.norm(direction_3K, axis=0))
    voxel_1K, distance_1K = ray_cast(
        torch.from_numpy(shown_XYZ[None]), torch.from_numpy(start_3K).float().T, torch.from_numpy(end_3K).float().T
    )
    voxel_K = voxel_1K[0].numpy()
    hit_K = shown_XYZ.reshape(-1)[voxel_K] & (distance_1K[0].numpy() >= 0)
    ray_K, direction_3K = ray_K[hit_K], direction_3K[:, hit_K]
    voxel_3K = np.stack(np.unravel_index(voxel_K[hit_K], shown_XYZ.shape))
    enter_3K, _ = _crossings(voxel_3K, voxel_3K + 1, camera_31, direction_3K)
    axis_K = enter_3K.argmax(0)
    across_K = np.take_along_axis(direction_3K, axis_K[None], 0)[0]
    slant_K = np.abs(across_K) / np.linalg.norm(direction_3K, axis=0)
    return _Hits(ray_K, voxel_3K, axis_K, (across_K < 0).astype(int), enter_3K.max(0).clip(1e-6), slant_K)


def _crossings(
    lower: np.ndarray, upper: np.ndarray, camera_31: np.ndarray, direction_3R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave the slab between two planes, for each axis, (3, R)."""
    first_3R, second_3R = (lower - camera_31) / direction_3R, (upper - camera_31) / direction_3R
    return np.minimum(first_3R, second_3R), np.maximum(first_3R, second_3R)


def _lines(hits: _Hits, width_K: np.ndarray, size: tuple[int, int], shape: tuple[int, int, int]) -> np.ndarray:
    """Brightness (K,): dark where the pixel to the left or above shows another face, unless faces are too narrow."""
    face_R = np.full(size[0] * size[1], -1)
    face_R[hits.ray_K] = np.ravel_multi_index((*hits.voxel_3K, hits.axis_K), (*shape, 3))
    face_HW = face_R.reshape(size)
    edge_HW = np.zeros(size, dtype=bool)
    edge_HW[:, 1:] |= face_HW[:, 1:] != face_HW[:, :-1]
    edge_HW[1:] |= face_HW[1:] != face_HW[:-1]
    begin, full = LINED
    strength_K = ((width_K - begin) / (full - begin)).clip(0, 1) * edge_HW.reshape(-1)[hits.ray_K]
    return 1 - (1 - LINE) * strength_K
