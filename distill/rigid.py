"""Rigid transforms: poses of sensors, of the vehicle and of grids, as (4, 4) matrices [R t; 0 0 0 1], R orthogonal."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pyquaternion import Quaternion

if TYPE_CHECKING:  # who has arrays need not wait for torch
    from torch import Tensor

    Pose = TypeVar("Pose", np.ndarray, Tensor)


def from_quaternion(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """A pose as nuScenes writes it, float64 (4, 4).

    Args:
        rotation: quaternion w, x, y, z; its norm does not matter.
        translation: (3,).
    """
    pose = np.eye(4)
    pose[:3, :3] = Quaternion(rotation).rotation_matrix
    pose[:3, 3] = translation
    return pose


def inverse(pose: Pose) -> Pose:
    """[R^T, -R^T t]: the way back. A general solver takes milliseconds for six of them where BLAS threads compete.

    Args:
        pose: floating point (..., 4, 4); R may mirror, too.

    Returns:
        Of the same shape and dtype, on the same device. R^T R = 1 is taken for granted: where R was rounded, the result
        is off by as much.
    """
    rotation = pose[..., :3, :3].swapaxes(-1, -2)
    back = pose.copy() if isinstance(pose, np.ndarray) else pose.clone()
    back[..., :3, :3] = rotation
    back[..., :3, 3:] = -(rotation @ pose[..., :3, 3:])
    return back
