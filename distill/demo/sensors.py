"""The sensor rig of the demo world: nuScenes-like mountings, rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.demo.shapes import rotation

FULL_SIZE = (1600, 900)  # pixels the focal lengths refer to


@dataclass(frozen=True)
class CameraMount:
    """A camera on the ego vehicle.

    Attributes:
        channel: nuScenes channel name.
        position: x, y, z in the ego frame, metres.
        aim: viewing direction, degrees to the left of straight ahead and degrees downwards.
        focal: pixels at 1600 x 900.
        principal: pixels at 1600 x 900.
        delay_us: exposure relative to the LiDAR time stamp, microseconds.
    """

    channel: str
    position: tuple[float, float, float]
    aim: tuple[float, float]
    focal: float
    principal: tuple[float, float]
    delay_us: int

    def camera2ego(self) -> np.ndarray:
        """Optical frame (x right, y down, z forward) to ego, float64 (4, 4)."""
        optical = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
        pose = np.eye(4)
        pose[:3, :3] = rotation(*np.radians(self.aim)) @ optical
        pose[:3, 3] = self.position
        return pose

    def intrinsics(self, size: tuple[int, int]) -> np.ndarray:
        """Pinhole matrix float64 (3, 3) for images of `size` = (width, height); pixels stay square."""
        scale = size[0] / FULL_SIZE[0]
        cx, cy = self.principal[0] * scale, self.principal[1] * size[1] / FULL_SIZE[1]
        return np.array([[self.focal * scale, 0.0, cx], [0.0, self.focal * scale, cy], [0.0, 0.0, 1.0]])


CAMERAS = (
    CameraMount("CAM_FRONT_LEFT", (1.52, 0.49, 1.51), (55.0, 0.3), 1271.0, (824.0, 480.0), -43_000),
    CameraMount("CAM_FRONT", (1.70, 0.02, 1.51), (0.0, 0.2), 1266.0, (816.0, 491.0), -35_000),
    CameraMount("CAM_FRONT_RIGHT", (1.55, -0.49, 1.50), (-55.5, 0.4), 1261.0, (808.0, 495.0), -27_000),
    CameraMount("CAM_BACK_LEFT", (1.04, 0.48, 1.59), (108.5, 0.1), 1257.0, (792.0, 493.0), -1_000),
    CameraMount("CAM_BACK", (0.03, 0.00, 1.58), (180.0, 0.4), 809.0, (829.0, 482.0), -10_000),
    CameraMount("CAM_BACK_RIGHT", (1.01, -0.48, 1.56), (-110.0, 0.2), 1259.0, (807.0, 501.0), -20_000),
)

LIDAR_POSITION = (0.94, 0.0, 1.84)
RINGS, AZIMUTHS = 32, 1084
ELEVATIONS = np.radians(np.linspace(-30.67, 10.67, RINGS))
LIDAR_RANGE = 100.0  # metres


def lidar2ego() -> np.ndarray:
    """LiDAR frame (x right, y forward, z up) to ego, float64 (4, 4)."""
    pose = np.eye(4)
    pose[:3, :3] = rotation(-math.pi / 2)
    pose[:3, 3] = LIDAR_POSITION
    return pose


def lidar_directions() -> np.ndarray:
    """Unit ray directions float64 (32, 1084, 3); columns go round the z axis of an upright frame."""
    azimuth = (np.arange(AZIMUTHS) + 0.5) * 2 * math.pi / AZIMUTHS
    flat, up = np.cos(ELEVATIONS)[:, None], np.sin(ELEVATIONS)[:, None]
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), up * np.ones(AZIMUTHS)], axis=-1)
