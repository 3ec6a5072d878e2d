"""What an ONNX file of `pool=table` wants to know of the cameras: computed once, as long as they stay where they are.

This file needs NumPy alone and lies beside every such ONNX file: `json.loads(metadata["lift"])` is its `lift`.
"""

import numpy as np


def geometry(intrinsics, cam2ego, lift):
    """Inputs of the graph, by name, for cameras anywhere in the frame of its voxels.

    Rounded as in the network: float32, sum by sum. Of B frames with N cameras, D depths and H x W image cells.

    Args:
        intrinsics: float32 (B, N, 3, 3) of the images that the graph is given.
        cam2ego: float32 (B, N, 4, 4).
        lift: of the file's metadata.

    Returns:
        cells: int32 (B, N, D, H, W), the cell that each point falls into; -1 outside.
        road: float32 (B, N, D, H, W), 1 on the road and 0 away from it; not for every network.
    """
    u, v, depth, lower, cell = (np.float32(lift[name]) for name in ("columns", "rows", "depths", "lower", "cell"))
    a, b, c = np.moveaxis(np.float32(intrinsics), -1, 0)
    rows = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], -2)
    x, y, z = np.moveaxis(a * rows[..., 0, :], -1, 0)
    inverse = (rows / (x + y + z)[..., None, None])[:, :, None, None]
    camera = inverse[..., 0] * u[:, None] + inverse[..., 1] * v[:, None, None] + inverse[..., 2]
    x, y, z = np.split(camera, 3, -1)
    turn, origin = np.split(np.float32(cam2ego)[:, :, None, None, :3], [3], -1)
    rays = turn[..., 0] * x + turn[..., 1] * y + turn[..., 2] * z
    points = origin[:, :, None, ..., 0] + rays[:, :, None] * depth[:, None, None, None]
    place = (np.trunc if lift["truncates"] else np.floor)((points - lower) / cell)
    inside = ((place >= 0) & (place < lift["shape"])).all(-1)
    found = {"cells": np.where(inside, place @ np.array(lift["strides"], np.float64), -1).astype(np.int32)}
    if lift["road"]:
        z = points[..., 2]
        step = np.abs(np.diff(z, axis=2)).mean(2, keepdims=True).clip(lift["road"]["reach"])
        found["road"] = (1 - np.abs(z - np.float32(lift["road"]["height"])) / step).clip(0).astype(np.float32)
    return found
