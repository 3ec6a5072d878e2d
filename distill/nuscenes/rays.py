"""Rays: what LiDAR and cameras see of a keyframe along lines of sight (docs/formulas.md 4.27), after RenderOcc.

Letters of array names: R rays, P points, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from distill import rigid
from distill.classes import OCC3D_CLASSES, ClassSet
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.lidarseg import PointClasses
from distill.nuscenes.points import on_car, project
from distill.nuscenes.scans import read_scan

# they are elsewhere at another time
_MOVING = ("bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "trailer", "truck")
MOVING = frozenset(OCC3D_CLASSES.names.index(name) for name in _MOVING)


class RayDraw:
    """Draws some rays of a keyframe and its neighbours in time, rare classes rather than frequent ones.

    Args:
        count: rays of a frame; fewer where there are no more.
        neighbours: keyframes of the scene before it, and as many behind it, whose rays are drawn from, too; moving
            things are left out there.
        neighbour_weight: how likely one of theirs is drawn, against 1.
        balance: by which classes are drawn, see `ClassSet.weights`.
        farthest: depth up to which rays are drawn from, metres.
        grid: in which they end.
        classes: of the grid.
        points: classes of LiDAR points.
    """

    def __init__(
        self,
        count: int,
        neighbours: int,
        neighbour_weight: float,
        balance: str | float,
        farthest: float,
        grid: VoxelGrid,
        classes: ClassSet,
        points: PointClasses,
    ) -> None:
        self.count, self.neighbours, self.neighbour_weight = count, neighbours, neighbour_weight
        self.farthest, self.grid, self.points = farthest, grid, points
        self.weights_C = classes.weights(balance)[: classes.free].astype(np.float64)
        self.weights_C[0] = self.weights_C[1:].min()  # points of no class say how deep, not what

    def check(self, keyframes: Sequence[Keyframe]) -> None:
        """Raise InputError where a keyframe has no classes of its points."""
        for keyframe in keyframes:
            path = self.points.path(keyframe.token)
            if path is None or not path.exists():
                raise InputError(
                    f"{path or self.points.root / 'lidarseg'}: no lidarseg labels of keyframe {keyframe.token}: unpack "
                    "all of nuScenes-lidarseg into the dataroot, or set objective=default"
                )

    def draw(self, keyframe: Keyframe, neighbours: Sequence[Keyframe], rng: np.random.Generator) -> np.ndarray:
        """Rays that end within the grid, in its frame: float32 (R, 8), see `distill.frame.Frame.rays`.

        Raises:
            InputError: a scan or its classes are missing or damaged.
        """
        parts = [seen_rays(each, keyframe, self.points, self.farthest) for each in (keyframe, *neighbours)]
        rays_R8 = np.concatenate(parts)
        ego2grid = self.grid.from_ego(keyframe.lidar2ego)
        rays_R8[:, :3] = rays_R8[:, :3] @ ego2grid[:3, :3].T + ego2grid[:3, 3]
        rays_R8[:, 3:6] = rays_R8[:, 3:6] @ ego2grid[:3, :3].T
        end_R3 = rays_R8[:, :3] + rays_R8[:, 6:7] * rays_R8[:, 3:6]
        within_R = ((end_R3 >= self.grid.lower) & (end_R3 < self.grid.upper)).all(1)
        is_neighbours_R = np.arange(len(rays_R8)) >= len(parts[0])
        class_R = rays_R8[:, 7].astype(int)
        weight_R = within_R * ray_weights(class_R, is_neighbours_R, self.weights_C, self.neighbour_weight, MOVING)
        return rays_R8[sample(weight_R, self.count, rng)].astype(np.float32)


def seen_rays(seen: Keyframe, keyframe: Keyframe, points: PointClasses, farthest: float) -> np.ndarray:
    """A ray for every pixel of every camera that sees LiDAR points: to the nearest of them.

    Args:
        seen: whose cameras and points.
        keyframe: in whose ego frame (at LiDAR time) they are told.
        points: classes of LiDAR points.
        farthest: largest depth, metres.

    Returns:
        float64 (R, 8), see `distill.frame.Frame.rays`.
    """
    scan_P4 = read_scan(seen)
    class_P, kept_P = points.read(seen.token, len(scan_P4)), ~on_car(scan_P4)
    scan_P4, class_P = scan_P4[kept_P], class_P[kept_P]
    intrinsics_N33, cam2ego_N44 = np.stack([camera.intrinsics for camera in seen.cameras]), seen.cam2ego()
    u_NP, v_NP, depth_NP = project(scan_P4, intrinsics_N33, cam2ego_N44)
    seen2keyframe = rigid.inverse(keyframe.ego2global) @ seen.ego2global
    rays = [np.empty((0, 8))]
    for n, camera in enumerate(seen.cameras):
        inside_P = (depth_NP[n] > 0) & (depth_NP[n] <= farthest) & (u_NP[n] >= 0) & (u_NP[n] < camera.width)
        place_P = (inside_P & (v_NP[n] >= 0) & (v_NP[n] < camera.height)).nonzero()[0]
        place_P = place_P[np.argsort(depth_NP[n, place_P], kind="stable")]
        pixel_P = v_NP[n, place_P].astype(int) * camera.width + u_NP[n, place_P].astype(int)
        place_R = place_P[np.unique(pixel_P, return_index=True)[1]]
        uv_R2 = np.stack([u_NP[n, place_R], v_NP[n, place_R]], 1)
        to_keyframe = seen2keyframe @ cam2ego_N44[n]
        rays.append(camera_rays(uv_R2, depth_NP[n, place_R], class_P[place_R], camera.intrinsics, to_keyframe))
    return np.concatenate(rays)


def camera_rays(
    uv_R2: np.ndarray, depth_R: np.ndarray, class_R: np.ndarray, intrinsics: np.ndarray, cam2ego: np.ndarray
) -> np.ndarray:
    """Rays through places in an image, float64 (R, 8), see `distill.frame.Frame.rays`.

    Args:
        uv_R2: column and row, pixels; the centre of pixel (0, 0) is at 1/2, 1/2.
        depth_R, class_R: what is seen there.
        intrinsics: camera frame to pixels, (3, 3).
        cam2ego: (4, 4).
    """
    homogeneous_R3 = np.column_stack([uv_R2.astype(np.float64), np.ones(len(uv_R2))])
    direction_R3 = homogeneous_R3 @ (cam2ego[:3, :3] @ np.linalg.inv(intrinsics)).T
    origin_R3 = np.broadcast_to(cam2ego[:3, 3], direction_R3.shape)
    return np.column_stack([origin_R3, direction_R3, depth_R, class_R])


def ray_weights(
    class_R: np.ndarray,
    is_neighbours_R: np.ndarray,
    weights_C: np.ndarray,
    neighbour_weight: float,
    moving: Collection[int],
) -> np.ndarray:
    """How likely rays are drawn, float64 (R,): those of neighbours less, their moving things not at all.

    Args:
        class_R: class ids.
        is_neighbours_R: whether it is a ray of a neighbour.
        weights_C: of classes.
        neighbour_weight: of rays of neighbours.
        moving: ids of classes that move.
    """
    elsewhere_R = is_neighbours_R & np.isin(class_R, list(moving))
    return weights_C[class_R] * np.where(is_neighbours_R, neighbour_weight, 1.0) * ~elsewhere_R


def sample(weight_R: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to so many places without replacement, with chances by weight, none of weight 0; rising (R,).

    An exponential clock each, and the first to ring (Efraimidis, Spirakis 2006).
    """
    clock_R = rng.exponential(size=len(weight_R))
    chosen_R = weight_R.nonzero()[0]
    return np.sort(chosen_R[np.argsort(clock_R[chosen_R] / weight_R[chosen_R], kind="stable")[:count]])
