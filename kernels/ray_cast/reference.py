"""Ray casting in plain Python, one ray after the other: slow and easy to check. Letters as in `kernels.ray_cast`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.ray_cast.borders import MOST_VOXELS


def walk(occupied_SXYZ: Tensor, origins_R3: Tensor, ends_R3: Tensor) -> tuple[Tensor, Tensor]:
    """Voxel and distance where each ray ends, int32 and float32 (S, R)."""
    rays = list(zip(origins_R3.tolist(), ends_R3.tolist(), strict=True))
    found = [[follow(occupied_XYZ, *ray) for ray in rays] for occupied_XYZ in occupied_SXYZ.cpu().numpy()]
    voxels, distances = ([[end[part] for end in row] for row in found] for part in (0, 1))
    device = occupied_SXYZ.device
    return (
        torch.tensor(voxels, dtype=torch.int32, device=device),
        torch.tensor(distances, dtype=torch.float32, device=device),
    )


def follow(occupied_XYZ: np.ndarray, origin: Sequence[float], end: Sequence[float]) -> tuple[int, np.float32]:
    """Flat voxel and distance where one ray ends: list every voxel of the grid with its exit, then choose one."""
    towards = [e - o for o, e in zip(origin, end, strict=True)]
    length = math.sqrt(towards[0] * towards[0] + towards[1] * towards[1] + towards[2] * towards[2])
    voxel = [int(o) for o in origin]
    border, spacing, step = [math.inf] * 3, [math.inf] * 3, [1] * 3
    for axis in range(3):
        direction = towards[axis] / length
        step[axis] = 1 if direction >= 0 else -1
        if direction != 0:
            border[axis] = (voxel[axis] + (1 if step[axis] > 0 else 0) - origin[axis]) / direction
            spacing[axis] = step[axis] / direction
    path: list[tuple[tuple[int, ...], float]] = []
    for _ in range(MOST_VOXELS):
        inside = all(0 <= v < count for v, count in zip(voxel, occupied_XYZ.shape, strict=True))
        if path and not inside:
            break
        nearest = min(border)
        if inside:
            path.append((tuple(voxel), nearest))
        axis = max(a for a in range(3) if border[a] == nearest)  # z before y before x
        voxel[axis] += step[axis]
        border[axis] += spacing[axis]
    hits = [(v, d) for v, d in path if occupied_XYZ[v]]
    (x, y, z), distance = (hits or path[-1:] or [((0, 0, 0), -1.0)])[0]
    return (x * occupied_XYZ.shape[1] + y) * occupied_XYZ.shape[2] + z, np.float32(distance)
