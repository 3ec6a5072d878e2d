"""What a camera, the sun or the LiDAR sees first: one z-buffer kernel for pictures, one for the range image.

Rays of a picture are affine in the pixel: origin(u, v) = o + u ou + v ov and direction(u, v) = d + u du + v dv, so
one kernel serves perspective cameras (fixed origin) and the parallel light of the sun (fixed direction).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.demo.ground import enter_ground
from distill.demo.noise import kernel
from distill.demo.shapes import (
    AXES,
    CENTRE,
    FAR,
    HALF,
    KIND,
    MATERIAL,
    Shapes,
    enter,
    passes_through,
    unit_frame,
)

NEAR = 0.1  # metres
SKY, GROUND = -1, -2  # in place of a shape number
_SCAN_RANGE = 110.0  # metres beyond which the LiDAR looks for nothing

_CORNERS = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=np.float64)
_EDGES = np.array([[i, j] for i in range(8) for j in range(i) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 2])


@dataclass(frozen=True)
class View:
    """A picture's rays and size.

    Attributes:
        rays: float64 (6, 3): o, ou, ov, d, du, dv (see the module).
        to_view: float64 (4, 4), world to the view's own axes (x right, y down, z forward).
        focal: pixels per unit of x / z, or 0 for parallel light with `scale` pixels per metre.
        scale: see `focal`.
        principal: (cx, cy), pixels.
        size: (width, height), pixels.
    """

    rays: np.ndarray
    to_view: np.ndarray
    focal: float
    scale: float
    principal: tuple[float, float]
    size: tuple[int, int]

    def rectangles(self, shapes: Shapes) -> np.ndarray:
        """Pixel rectangles that hold each shape, int64 (N, 4): first column, end column, first row, end row."""
        solid = shapes.solid.astype(np.float64)
        offsets = (_CORNERS * solid[:, None, HALF]) @ solid[:, AXES].reshape(-1, 3, 3)
        corners = (solid[:, None, CENTRE] + offsets) @ self.to_view[:3, :3].T + self.to_view[:3, 3]
        if self.focal == 0.0:
            uv, valid = corners[..., :2] * self.scale, np.ones(corners.shape[:2], bool)
        else:
            uv, valid = self._project(corners)
        uv = uv + self.principal
        low = np.where(valid[..., None], uv, FAR).min(1)
        high = np.where(valid[..., None], uv, -FAR).max(1)
        limit = np.array(self.size)
        low, high = np.clip(np.floor(low), 0, limit), np.clip(np.ceil(high), 0, limit)
        return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1).astype(np.int64)

    def _project(self, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corners in front of the near plane, and where edges cut it: focal-scaled (N, 20, 2) and validity."""
        start, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
        crosses = (start[..., 2] - NEAR) * (end[..., 2] - NEAR) < 0
        step = np.where(crosses, end[..., 2] - start[..., 2], 1.0)
        cut = start + ((NEAR - start[..., 2]) / step)[..., None] * (end - start)
        points = np.concatenate([corners, cut], axis=1)
        valid = np.concatenate([corners[..., 2] >= NEAR, crosses], axis=1)
        depth = np.where(valid, points[..., 2], 1.0)
        return self.focal * points[..., :2] / depth[..., None], valid


def camera_view(intrinsics: np.ndarray, camera2world: np.ndarray, size: tuple[int, int]) -> View:
    """The view of a pinhole camera with square pixels; ray length is depth along the optical axis."""
    focal, cx, cy = intrinsics[0, 0], intrinsics[0, 2], intrinsics[1, 2]
    right, down, forward = camera2world[:3, :3].T
    none = np.zeros(3)
    direction = forward - right * cx / focal - down * cy / focal
    rays = np.stack([camera2world[:3, 3], none, none, direction, right / focal, down / focal])
    return View(rays, np.linalg.inv(camera2world), focal, 0.0, (cx, cy), size)


def parallel_view(towards_light: np.ndarray, centre: np.ndarray, extent: float, scale: float) -> View:
    """The view of parallel light on a square of `extent` metres around `centre`, `scale` pixels per metre."""
    forward = -towards_light
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, down, forward], axis=1)
    pose[:3, 3] = centre + 300.0 * towards_light
    pixels = math.ceil(extent * scale)
    half, none = 0.5 * pixels, np.zeros(3)
    origin = pose[:3, 3] - (right + down) * half / scale
    rays = np.stack([origin, right / scale, down / scale, forward, none, none])
    return View(rays, np.linalg.inv(pose), 0.0, scale, (half, half), (pixels, pixels))


def draw(depth: np.ndarray, drawn: np.ndarray, view: View, shapes: Shapes, first: int) -> None:
    """Draw shapes, numbered from `first`, into a z-buffer: depth float32 (H, W) and shape numbers int32 (H, W)."""
    _draw(depth, drawn, view.rays, view.rectangles(shapes), shapes.solid, shapes.tags, first)


@kernel
def at_pixel(rays, first, u, v):  # type: ignore[no-untyped-def]
    """Origin (first = 0) or direction (first = 3) of the ray through (u, v)."""
    return (
        rays[first, 0] + u * rays[first + 1, 0] + v * rays[first + 2, 0],
        rays[first, 1] + u * rays[first + 1, 1] + v * rays[first + 2, 1],
        rays[first, 2] + u * rays[first + 1, 2] + v * rays[first + 2, 2],
    )


@kernel
def _to_unit_frame(local, rays, row):  # type: ignore[no-untyped-def]
    """The rays of a view in the unit frame of a shape, into `local` (6, 3)."""
    frame = unit_frame(row)
    for i in range(6):
        x, y, z = rays[i, 0], rays[i, 1], rays[i, 2]
        if i == 0:
            x, y, z = x - row[0], y - row[1], z - row[2]
        for k in range(3):
            local[i, k] = frame[3 * k] * x + frame[3 * k + 1] * y + frame[3 * k + 2] * z


@kernel
def _draw(depth, drawn, rays, rectangles, solid, tags, first):  # type: ignore[no-untyped-def]
    local = np.empty((6, 3))
    for n in range(len(solid)):
        first_column, end_column, first_row, end_row = rectangles[n]
        if first_column >= end_column or first_row >= end_row:
            continue
        _to_unit_frame(local, rays, solid[n])
        kind, material, tx, ty = tags[n, KIND], tags[n, MATERIAL], solid[n, 15], solid[n, 16]
        for r in range(first_row, end_row):
            v = r + 0.5
            for c in range(first_column, end_column):
                u = c + 0.5
                ox, oy, oz = at_pixel(local, 0, u, v)
                dx, dy, dz = at_pixel(local, 3, u, v)
                t, _ = enter(kind, tx, ty, ox, oy, oz, dx, dy, dz)
                if t <= NEAR or t >= depth[r, c]:
                    continue
                px, py, pz = at_pixel(rays, 0, u, v)
                qx, qy, qz = at_pixel(rays, 3, u, v)
                x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                if passes_through(material, x, y, z, dx, dy, dz, px + t * qx, py + t * qy, pz + t * qz):
                    continue
                depth[r, c] = t
                drawn[r, c] = first + n


@kernel
def draw_ground(depth, drawn, rays, ground):  # type: ignore[no-untyped-def]
    """Draw the ground into the z-buffer of a perspective view."""
    for r in range(depth.shape[0]):
        for c in range(depth.shape[1]):
            dx, dy, dz = at_pixel(rays, 3, c + 0.5, r + 0.5)
            t, _, _ = enter_ground(ground, rays[0, 0], rays[0, 1], rays[0, 2], dx, dy, dz)
            if t < depth[r, c]:
                depth[r, c] = t
                drawn[r, c] = GROUND


@kernel
def _scan_shape(ranges, seen, origin, directions, first, count, row, tag, number):  # type: ignore[no-untyped-def]
    """One shape in `count` columns of one ring."""
    frame = unit_frame(row)
    x, y, z = origin[0] - row[0], origin[1] - row[1], origin[2] - row[2]
    ox = frame[0] * x + frame[1] * y + frame[2] * z
    oy = frame[3] * x + frame[4] * y + frame[5] * z
    oz = frame[6] * x + frame[7] * y + frame[8] * z
    for k in range(count):
        column = (first + k) % len(ranges)
        d = directions[column]
        dx = frame[0] * d[0] + frame[1] * d[1] + frame[2] * d[2]
        dy = frame[3] * d[0] + frame[4] * d[1] + frame[5] * d[2]
        dz = frame[6] * d[0] + frame[7] * d[1] + frame[8] * d[2]
        t, _ = enter(tag[KIND], row[15], row[16], ox, oy, oz, dx, dy, dz)
        if t >= ranges[column]:
            continue
        px, py, pz = origin[0] + t * d[0], origin[1] + t * d[1], origin[2] + t * d[2]
        ux, uy, uz = ox + t * dx, oy + t * dy, oz + t * dz
        if not passes_through(tag[MATERIAL], ux, uy, uz, dx, dy, dz, px, py, pz):
            ranges[column], seen[column] = t, number


@kernel
def scan(ranges, seen, origin, directions, elevations, solid, tags, ground):  # type: ignore[no-untyped-def]
    """Range image of a LiDAR: ranges float64 (R, A) in metres and shape numbers int32 (R, A), both filled here.

    directions float64 (R, A, 3) are unit vectors in the world; column a looks along azimuth 2 pi a / A of the world,
    elevations float64 (R,) are radians.
    """
    rings, columns = ranges.shape
    for ring in range(rings):
        for column in range(columns):
            d = directions[ring, column]
            t, _, _ = enter_ground(ground, origin[0], origin[1], origin[2], d[0], d[1], d[2])
            ranges[ring, column], seen[ring, column] = t, GROUND if t < FAR else SKY
    for n in range(len(solid)):
        row = solid[n]
        x, y, z = row[0] - origin[0], row[1] - origin[1], row[2] - origin[2]
        radius = math.sqrt(row[12] ** 2 + row[13] ** 2 + row[14] ** 2)
        flat, far = math.hypot(x, y), math.sqrt(x * x + y * y + z * z)
        if far - radius > _SCAN_RANGE:
            continue
        width = math.pi if flat <= radius else math.asin(radius / flat)
        reach = math.pi if far <= radius else math.asin(radius / far)
        first = math.floor((math.atan2(y, x) - width) / (2.0 * math.pi) * columns)
        count = min(columns, math.ceil(width / math.pi * columns) + 2)
        elevation = math.atan2(z, flat)
        for ring in range(rings):
            if abs(elevations[ring] - elevation) <= reach:
                _scan_shape(ranges[ring], seen[ring], origin, directions[ring], first, count, row, tags[n], n)
