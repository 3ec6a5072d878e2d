"""LiDAR points of a keyframe, and what the cameras would measure of them: depth maps.

Letters of array names: N cameras, P points.
"""

from __future__ import annotations

import numpy as np

from distill import rigid
from distill.errors import InputError
from distill.nuscenes.index import Keyframe
from distill.nuscenes.layout import LIDAR

# Footprint of the recording car (Renault Zoe; origin on the ground below the rear axle) in the ego frame, metres.
# A third of all LIDAR_TOP returns are its own roof and bonnet.
_CAR_X = (-0.8, 3.4)
_CAR_Y = (-1.0, 1.0)
_FARTHEST = 1000.0  # metres; no scanner reaches so far: other units, or coordinates of a map
_MOST_COLUMNS = 16  # that are tried on a scan that does not fit


def read_points(keyframe: Keyframe) -> np.ndarray:
    """The LIDAR_TOP scan without the recording car itself; returns and raises as `read_scan`."""
    points = read_scan(keyframe)
    return points[~on_car(points)]


def read_scan(keyframe: Keyframe) -> np.ndarray:
    """The whole LIDAR_TOP scan.

    Returns:
        float32 (P, 4): x, y, z in metres in the keyframe's ego frame, intensity in [0, 1].

    Raises:
        InputError: the file is missing, empty, all zero, or not rows of `lidar_columns` float32 that begin with a
            finite x, y, z and an intensity; coordinates are not metres from the scanner, or intensities not 0 to 255.
    """
    path, columns = keyframe.lidar_path, keyframe.lidar_columns
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: LiDAR scan of keyframe {keyframe.token} is missing") from error
    except OSError as error:
        raise InputError(
            f"{path}: LiDAR scan of keyframe {keyframe.token} cannot be read ({error.strerror})"
        ) from error
    scan = _rows(content, columns)
    if not _plausible(scan):
        raise InputError(f"{path}: LiDAR scan of keyframe {keyframe.token} {_misfit(content, columns)}")
    _check_units(scan, f"{path}: LiDAR scan of keyframe {keyframe.token}")
    points = np.empty((len(scan), 4), dtype=np.float32)
    points[:, :3] = scan[:, :3] @ keyframe.lidar2ego[:3, :3].T + keyframe.lidar2ego[:3, 3]
    points[:, 3] = scan[:, 3] / 255
    return points


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


def _rows(content: bytes, columns: int) -> np.ndarray:
    """The file as float32 (P, columns), without rows if its length does not fit."""
    fits = len(content) % (4 * columns) == 0
    return np.frombuffer(content if fits else b"", dtype="<f4").reshape(-1, columns)


def _plausible(scan: np.ndarray) -> bool:
    """Whether these are points: in rows of a wrong length, coordinates, some of them negative, are intensities."""
    return bool(len(scan) and np.isfinite(scan[:, :4]).all() and (scan[:, 3] >= 0).all() and scan[:, :3].any())


def _check_units(scan: np.ndarray, named: str) -> None:
    """Raise InputError where numbers mean something else than those of nuScenes."""
    farthest, brightest = np.abs(scan[:, :3]).max(), scan[:, 3].max()
    if farthest > _FARTHEST:
        raise InputError(
            f"{named} has a coordinate of {farthest:.6g} m: x, y, z should be metres from {LIDAR}, not millimetres or "
            "places on a map: convert it"
        )
    if brightest > 255:
        raise InputError(f"{named} has an intensity of {brightest:.6g}: nuScenes has 0 to 255: scale them")


def _misfit(content: bytes, columns: int) -> str:
    """What is wrong with a scan that is not plausible, and what to do."""
    if not content:
        return "is empty (0 bytes): download it again, or leave this keyframe out"
    scan = _rows(content, columns)
    if len(scan) and (scan[:, :3] == 0).all():
        return f"holds nothing but points at 0, 0, 0 ({len(scan)}): download it again, or leave this keyframe out"
    expected = f"rows of data.lidar_columns={columns} float32 that begin with a finite x, y, z and an intensity >= 0"
    finite = np.isfinite(np.frombuffer(content[: len(content) // 4 * 4], "<f4")).all()
    for other in range(4, _MOST_COLUMNS + 1):
        # every second row of a scan with few bad points may be good
        if finite and other % columns and _plausible(_rows(content, other)):
            return f"does not hold {expected}, but rows of {other}: set data.lidar_columns={other}"
    return f"is damaged, not {expected} ({len(content)} bytes): download it again, or leave this keyframe out"


def on_car(points: np.ndarray) -> np.ndarray:
    """Which points (P, 3+) of the ego frame are on the recording car, bool (P,)."""
    x, y = points[:, 0], points[:, 1]
    return (x > _CAR_X[0]) & (x < _CAR_X[1]) & (y > _CAR_Y[0]) & (y < _CAR_Y[1])
