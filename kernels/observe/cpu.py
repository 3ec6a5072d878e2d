"""CPU twin of `kernels.observe.reference`, compiled: one ray after the other. Same letters, the same bits.

Rays walk through a copy of the voxels with a border of one voxel around it, so that they look at nothing but the voxel
they are in to know whether to go on.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from kernels.compiled import compiled

_OUTSIDE = 2  # in the border; within are 0, free, and 1, occupied
_WITHIN = (slice(1, -1),) * 3


def observe(occupied_XYZ: Tensor, origins_N3: Tensor, cell2ray_N33: Tensor, columns: int, rows: int) -> Tensor:
    """The voxels that are seen, bool (X, Y, Z)."""
    walls_XYZ = bordered(occupied_XYZ.numpy())
    seen_XYZ = np.zeros(walls_XYZ.shape, bool)
    origins, cell2ray = origins_N3.contiguous().numpy(), cell2ray_N33.contiguous().numpy()

    def look(camera: int) -> None:
        _look(walls_XYZ, seen_XYZ, origins[camera], cell2ray[camera], columns, rows)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numba's own threads do not survive a fork
        list(pool.map(look, range(len(origins))))
    return torch.from_numpy(within(seen_XYZ))


def follow(
    within_XYZ: Tensor, origins_N3: Tensor, cell2ray_N33: Tensor, columns: int, rows: int
) -> tuple[Tensor, Tensor]:
    """The voxels on each ray, int64 (E,), and how many it has (N * R,)."""
    within = within_XYZ.contiguous().numpy()
    origins, cell2ray = origins_N3.contiguous().numpy(), cell2ray_N33.contiguous().numpy()
    count_NR = np.zeros((len(origins), rows * columns), np.int64)

    def trace(camera: int) -> np.ndarray:
        room = np.empty(rows * columns * sum(within.shape), np.int64)
        return room[: _trace(within, room, count_NR[camera], origins[camera], cell2ray[camera], columns, rows)]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        index_E = np.concatenate([np.empty(0, np.int64), *pool.map(trace, range(len(origins)))])
    return torch.from_numpy(index_E), torch.from_numpy(count_NR.reshape(-1))


def bordered(occupied_XYZ: np.ndarray) -> np.ndarray:
    """What `march` walks through, uint8 (X + 2, Y + 2, Z + 2)."""
    return np.pad(occupied_XYZ.astype(np.uint8), 1, constant_values=_OUTSIDE)


def within(bordered_XYZ: np.ndarray) -> np.ndarray:
    """An array without its border, contiguous."""
    return np.ascontiguousarray(bordered_XYZ[_WITHIN])


@compiled(nogil=True)
def _look(walls_XYZ, seen_XYZ, origin_A, cell2ray_33, columns, rows):  # type: ignore[no-untyped-def]
    """Mark what one camera sees."""
    shape = walls_XYZ.shape[0] - 2, walls_XYZ.shape[1] - 2, walls_XYZ.shape[2] - 2
    trail = np.empty(shape[0] + shape[1] + shape[2], np.uint32)
    for row in range(rows):
        for column in range(columns):
            meets, voxel, step, border, spacing = _enter(shape, origin_A, cell2ray_33, column, row)
            if meets:
                march(walls_XYZ, seen_XYZ, trail, voxel, step, border, spacing)


@compiled(nogil=True)
def _trace(within_XYZ, room, count_R, origin_A, cell2ray_33, columns, rows):  # type: ignore[no-untyped-def]
    """Write down the voxels on the rays of one camera, and how many each has; returns how many there are."""
    shape, within, total = within_XYZ.shape, within_XYZ.ravel(), 0
    for row in range(rows):
        for column in range(columns):
            before = total
            meets, (i, j, k), step, border, spacing = _enter(shape, origin_A, cell2ray_33, column, row)
            (x_border, y_border, z_border), (x_spacing, y_spacing, z_spacing) = border, spacing
            while meets and 0 <= i < shape[0] and 0 <= j < shape[1] and 0 <= k < shape[2]:
                here = (i * shape[1] + j) * shape[2] + k
                if within[here]:
                    room[total] = here
                    total += 1
                if x_border < y_border and x_border < z_border:
                    i, x_border = i + step[0], x_border + x_spacing
                elif y_border < z_border:
                    j, y_border = j + step[1], y_border + y_spacing
                else:
                    k, z_border = k + step[2], z_border + z_spacing
            count_R[row * columns + column] = total - before
    return total


@compiled(nogil=True)
def march(walls_XYZ, seen_XYZ, trail, voxel, step, border, spacing):  # type: ignore[no-untyped-def]
    """Follow a ray through the voxels, and mark those on its way if it meets a surface.

    Args:
        walls_XYZ: see `bordered`.
        seen_XYZ: bool, bordered, too.
        trail: uint32 (X + Y + Z,), scratch.
        voxel, step: three numbers each: where the ray begins, and the directions 1 or -1 in which it crosses voxels.
        border, spacing: how far it is to the first border along each axis, and from one to the next.
    """
    z_count = walls_XYZ.shape[2]
    yz_count = walls_XYZ.shape[1] * z_count
    index = (voxel[0] + 1) * yz_count + (voxel[1] + 1) * z_count + voxel[2] + 1
    x_step, y_step, z_step = step[0] * yz_count, step[1] * z_count, step[2]
    (x_border, y_border, z_border), (x_spacing, y_spacing, z_spacing) = border, spacing
    walls, seen = walls_XYZ.ravel(), seen_XYZ.ravel()
    here, count = np.uint32(index), np.uint32(0)  # of signed ones numba would ask whether they count from the end
    while not walls[here]:
        trail[count] = here
        count += np.uint32(1)
        if x_border < y_border and x_border < z_border:
            index, x_border = index + x_step, x_border + x_spacing
        elif y_border < z_border:
            index, y_border = index + y_step, y_border + y_spacing
        else:
            index, z_border = index + z_step, z_border + z_spacing
        here = np.uint32(index)
    if walls[here] == _OUTSIDE:
        return
    seen[here] = True
    for n in range(count):
        seen[trail[n]] = True


@compiled(nogil=True)
def _enter(shape, origin_A, cell2ray_33, column, row):  # type: ignore[no-untyped-def]
    """Whether a ray meets the voxels, and in which one, by which steps, and how far from which borders it does."""
    x, y, z = origin_A
    dx = _direction(cell2ray_33[0], column, row)
    dy = _direction(cell2ray_33[1], column, row)
    dz = _direction(cell2ray_33[2], column, row)
    x_enter, x_leave = _span(x, dx, shape[0])
    y_enter, y_leave = _span(y, dy, shape[1])
    z_enter, z_leave = _span(z, dz, shape[2])
    enter = max(0.0, x_enter, y_enter, z_enter)
    i, x_step, x_border, x_spacing = _begin(x, dx, shape[0], enter)
    j, y_step, y_border, y_spacing = _begin(y, dy, shape[1], enter)
    k, z_step, z_border, z_spacing = _begin(z, dz, shape[2], enter)
    borders, spacings = (x_border, y_border, z_border), (x_spacing, y_spacing, z_spacing)
    return enter < min(x_leave, y_leave, z_leave), (i, j, k), (x_step, y_step, z_step), borders, spacings


@compiled(nogil=True, inline="always")
def _direction(of_cell, column, row):  # type: ignore[no-untyped-def]
    """One coordinate of the direction of a ray through the centre of a cell."""
    return of_cell[0] * (column + 0.5) + of_cell[1] * (row + 0.5) + of_cell[2]


@compiled(nogil=True, inline="always")
def _span(origin, direction, count):  # type: ignore[no-untyped-def]
    """From where to where a ray is within the voxels along an axis."""
    if direction == 0:
        return -np.inf, np.inf if 0 <= origin < count else -np.inf
    first, last = -origin / direction, (count - origin) / direction
    return min(first, last), max(first, last)


@compiled(nogil=True, inline="always")
def _begin(origin, direction, count, enter):  # type: ignore[no-untyped-def]
    """Voxel, step, first border and spacing, along an axis, of a ray that is within the voxels from `enter` on."""
    voxel = min(max(math.floor(origin + enter * direction), 0), count - 1)
    if direction == 0:
        return voxel, -1, np.inf, np.inf
    border = (voxel + (direction > 0) - origin) / direction
    return voxel, 1 if direction > 0 else -1, border, 1 / abs(direction)
