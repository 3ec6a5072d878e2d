"""LiDAR points of a keyframe, and what the cameras would measure of them: depth maps.

Letters of array names: N cameras, P points.
"""

from __future__ import annotations

import numpy as np

from distill import rigid
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.scans import read_scan

# Footprint of the recording car (Renault Zoe; origin on the ground below the rear axle) in the ego frame, metres.
# A third of all LIDAR_TOP returns are its own roof and bonnet.
_CAR_X = (-0.8, 3.4)
_CAR_Y = (-1.0, 1.0)


def read_points(keyframe: Keyframe) -> np.ndarray:
    """The LIDAR_TOP scan without the recording car itself; returns and raises as `read_scan`."""
    points = read_scan(keyframe)
    return points[~on_car(points)]


def depth_maps(
    points: np.ndarray,
    intrinsics: np.ndarray,
    cam2ego: np.ndarray,
    shown: np.ndarray,
    stride: int,
) -> np.ndarray:
    """The nearest return in every feature cell of every camera.

    Cell (i, j) holds the pixels floor(v / stride) = i, floor(u / stride) = j; depth is z in the camera frame.

    Args:
        points: (P, 3+) ego frame, metres.
        intrinsics: (N, 3, 3) of the images as fed to the network.
        cam2ego: (N, 4, 4), with the ego motion between camera and LiDAR time.
        shown: bool (N, H, W), which pixels of these images show anything; what lies in black borders is not seen.
        stride: pixels per cell, divides H and W.

    Returns:
        float32 (N, H / stride, W / stride) metres, 0 = no return.
    """
    u_NP, v_NP, depth_NP = project(points, intrinsics, cam2ego)
    _, height, width = shown.shape
    inside_NP = (depth_NP > 0) & (u_NP >= 0) & (u_NP < width) & (v_NP >= 0) & (v_NP < height)
    (camera, _), u, v, depth = np.nonzero(inside_NP), u_NP[inside_NP], v_NP[inside_NP], depth_NP[inside_NP]
    seen = shown[camera, v.astype(np.int64), u.astype(np.int64)]
    camera, row, column = camera[seen], *((each[seen] // stride).astype(np.int64) for each in (v, u))
    shape = (len(intrinsics), height // stride, width // stride)
    nearest = np.full(np.prod(shape), np.inf, dtype=np.float32)
    np.minimum.at(nearest, np.ravel_multi_index((camera, row, column), shape), depth[seen])
    nearest[np.isinf(nearest)] = 0
    return nearest.reshape(shape)


def project(
    points: np.ndarray, intrinsics: np.ndarray, cam2ego: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the ego frame in the images.

    Args:
        points: (P, 3+) metres.
        intrinsics: (N, 3, 3).
        cam2ego: (N, 4, 4).

    Returns:
        u, v (pixels; meaningless where depth <= 0) and depth (metres along the optical axis), float32 (N, P) each.
    """
    ego2image = intrinsics @ rigid.inverse(cam2ego.astype(np.float64))[:, :3]
    rotation, translation = ego2image[:, :, :3].astype(np.float32), ego2image[:, :, 3:].astype(np.float32)
    scaled_u, scaled_v, depth = np.moveaxis(rotation @ points[:, :3].T.astype(np.float32) + translation, 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return scaled_u / depth, scaled_v / depth, depth


def on_car(points: np.ndarray) -> np.ndarray:
    """Which points (P, 3+) of the ego frame are on the recording car, bool (P,)."""
    x, y = points[:, 0], points[:, 1]
    return (x > _CAR_X[0]) & (x < _CAR_X[1]) & (y > _CAR_Y[0]) & (y < _CAR_Y[1])
