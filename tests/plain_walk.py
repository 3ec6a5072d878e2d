"""The walk of one ray through voxels in plain Python, as the RayIoU kernel describes it; slow and easy to check."""

import math

import numpy as np


def walk(occupied_XYZ, origin, end):
    """Flat voxel and float32 distance where a ray ends: list every voxel of the grid with its exit, then choose one."""
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
    path = []
    for _ in range(1001):
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
