"""Labels of a keyframe: shapes and ground turned into voxels, and which of those of Occ3D the sensors observe."""

from __future__ import annotations

import math

import numpy as np

from distill.classes import OCC3D_CLASSES
from distill.demo.ground import material_at
from distill.demo.noise import hash_noise, kernel
from distill.demo.shapes import CLASS, KIND, Shapes, contains, unit_frame
from distill.grids import OCC3D, VoxelGrid
from kernels.observe.cpu import bordered, march, within

FREE = OCC3D_CLASSES.free
_SIZE = OCC3D.voxel_size
_LOW = np.array(OCC3D.lower)
_SUBSAMPLES = 3  # test points along each edge of a voxel
_SOLID, _OVER_GROUND = 3, 9  # test points (of 27) a shape must fill to claim an empty voxel, a ground voxel


def voxelise(
    shapes: Shapes, ground: np.ndarray, town2frame: np.ndarray, classes: np.ndarray, grid: VoxelGrid
) -> np.ndarray:
    """Semantics uint8 (200, 200, 16) on a grid.

    Args:
        shapes: in the town's frame.
        ground: materials uint8 (E, E) of the town.
        town2frame: to the frame of the grid, whose x-y plane is level, float64 (4, 4).
        classes: class id per ground material, uint8.
        grid: where the voxels lie.
    """
    low, size = np.array(grid.lower), grid.voxel_size
    reach = 0.5 * math.hypot(*grid.shape[:2]) * size
    away = shapes.solid[:, :2] - np.linalg.inv(town2frame)[:2, 3]
    near = np.hypot(away[:, 0], away[:, 1]) < reach + np.linalg.norm(shapes.solid[:, 12:15], axis=1)
    nearby = shapes.chosen(near).moved(town2frame)
    layer = int((town2frame[2, 3] - grid.lower[2]) / size)
    semantics = np.full(grid.shape, FREE, np.uint8)
    _lay_ground(semantics[:, :, layer], ground, np.linalg.inv(town2frame), classes, low, size)
    filled = np.zeros(grid.shape, np.uint8)
    _fill(semantics, filled, nearby.solid, nearby.tags, low, size, layer)
    return semantics


@kernel
def _lay_ground(layer, ground, frame2town, classes, low, size):  # type: ignore[no-untyped-def]
    """The class most of a column's 4 x 4 test points stand on goes into the ground layer."""
    votes = np.zeros(FREE + 1, np.int64)
    for i in range(layer.shape[0]):
        for j in range(layer.shape[1]):
            votes[:] = 0
            for k in range(16):
                x = low[0] + (i + 0.125 + 0.25 * (k >> 2)) * size
                y = low[1] + (j + 0.125 + 0.25 * (k & 3)) * size
                tx = frame2town[0, 0] * x + frame2town[0, 1] * y + frame2town[0, 3]
                ty = frame2town[1, 0] * x + frame2town[1, 1] * y + frame2town[1, 3]
                votes[classes[material_at(ground, tx, ty)]] += 1
            layer[i, j] = np.argmax(votes)


@kernel
def _fill(semantics, filled, solid, tags, low, size, ground_layer):  # type: ignore[no-untyped-def]
    """Every voxel goes to the shape that fills most of its 27 test points."""
    least = 0.5 * size / _SUBSAMPLES  # half extents are widened to this, so that poles and wheels meet a test point
    start, stop = np.empty(3, np.int64), np.empty(3, np.int64)
    for n in range(len(solid)):
        row = solid[n].copy()
        thin = min(row[12], row[13], row[14]) < least
        for k in range(12, 15):
            row[k] = max(row[k], least)
        for axis in range(3):
            reach = abs(row[3 + axis]) * row[12] + abs(row[6 + axis]) * row[13] + abs(row[9 + axis]) * row[14]
            start[axis] = max(0, math.floor((row[axis] - reach - low[axis]) / size))
            stop[axis] = min(semantics.shape[axis], math.floor((row[axis] + reach - low[axis]) / size) + 1)
        frame = unit_frame(row)
        for i in range(start[0], stop[0]):
            for j in range(start[1], stop[1]):
                for k in range(start[2], stop[2]):
                    count = 0
                    for s in range(27):
                        x = low[0] + (i + (s // 9 + 0.5) / 3.0) * size - row[0]
                        y = low[1] + (j + (s // 3 % 3 + 0.5) / 3.0) * size - row[1]
                        z = low[2] + (k + (s % 3 + 0.5) / 3.0) * size - row[2]
                        count += contains(
                            tags[n, KIND], row[15], row[16],
                            frame[0] * x + frame[1] * y + frame[2] * z,
                            frame[3] * x + frame[4] * y + frame[5] * z,
                            frame[6] * x + frame[7] * y + frame[8] * z,
                        )  # fmt: skip
                    needed = _OVER_GROUND if k == ground_layer else (1 if thin else _SOLID)
                    if count >= needed and count > filled[i, j, k]:
                        filled[i, j, k] = count
                        semantics[i, j, k] = tags[n, CLASS]


@kernel
def _march(walls, seen, trail, ox, oy, oz, dx, dy, dz, low):  # type: ignore[no-untyped-def]
    """Walk a ray to its first occupied voxel; mark all voxels on the way (docs/formulas.md 4.9)."""
    position, direction = (ox - low[0], oy - low[1], oz - low[2]), (dx, dy, dz)
    first, last = 0.0, 1e9
    for axis in range(3):
        p, d, size = position[axis], direction[axis], (walls.shape[axis] - 2) * _SIZE
        if abs(d) < 1e-9:
            if p < 0.0 or p >= size:
                return
            continue
        a, b = -p / d, (size - p) / d
        first, last = max(first, min(a, b)), min(last, max(a, b))
    if first >= last:
        return
    t = first + 1e-6
    i = math.floor((position[0] + t * dx) / _SIZE)
    j = math.floor((position[1] + t * dy) / _SIZE)
    k = math.floor((position[2] + t * dz) / _SIZE)
    step_x, step_y, step_z = _SIZE / max(abs(dx), 1e-9), _SIZE / max(abs(dy), 1e-9), _SIZE / max(abs(dz), 1e-9)
    next_x = ((i + (dx > 0.0)) * _SIZE - position[0]) / dx if abs(dx) > 1e-9 else 1e9
    next_y = ((j + (dy > 0.0)) * _SIZE - position[1]) / dy if abs(dy) > 1e-9 else 1e9
    next_z = ((k + (dz > 0.0)) * _SIZE - position[2]) / dz if abs(dz) > 1e-9 else 1e9
    steps = (1 if dx > 0.0 else -1, 1 if dy > 0.0 else -1, 1 if dz > 0.0 else -1)
    march(walls, seen, trail, (i, j, k), steps, (next_x, next_y, next_z), (step_x, step_y, step_z))


@kernel
def _observe_picture(walls, seen, rays, columns, rows, low):  # type: ignore[no-untyped-def]
    trail = np.empty(walls.shape[0] + walls.shape[1] + walls.shape[2], np.uint32)
    for r in range(rows):
        for c in range(columns):
            u, v = c + hash_noise(r, c, 1), r + hash_noise(r, c, 2)
            dx = rays[3, 0] + u * rays[4, 0] + v * rays[5, 0]
            dy = rays[3, 1] + u * rays[4, 1] + v * rays[5, 1]
            dz = rays[3, 2] + u * rays[4, 2] + v * rays[5, 2]
            _march(walls, seen, trail, rays[0, 0], rays[0, 1], rays[0, 2], dx, dy, dz, low)


@kernel
def _observe_rays(walls, seen, origin, directions, low):  # type: ignore[no-untyped-def]
    trail = np.empty(walls.shape[0] + walls.shape[1] + walls.shape[2], np.uint32)
    for n in range(len(directions)):
        d = directions[n]
        _march(walls, seen, trail, origin[0], origin[1], origin[2], d[0], d[1], d[2], low)


def observe_picture(semantics: np.ndarray, mask: np.ndarray, rays: np.ndarray, size: tuple[int, int]) -> None:
    """Mark what a camera observes: one jittered ray per pixel of a picture of `size`; `rays` in the ego frame."""
    walls, seen = bordered(semantics != FREE), bordered(mask)
    _observe_picture(walls, seen, rays, size[0], size[1], _LOW)
    mask[:] = within(seen)


def observe_rays(semantics: np.ndarray, mask: np.ndarray, origin: np.ndarray, directions: np.ndarray) -> None:
    """Mark what rays float64 (N, 3) from `origin` observe, both in the ego frame."""
    walls, seen = bordered(semantics != FREE), bordered(mask)
    _observe_rays(walls, seen, origin, np.ascontiguousarray(directions.reshape(-1, 3)), _LOW)
    mask[:] = within(seen)
