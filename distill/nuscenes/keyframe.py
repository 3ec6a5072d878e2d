"""A keyframe: one moment that is predicted, its cameras, its scan and where all of them were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill import rigid
from distill.nuscenes.layout import ScanFormat


@dataclass(frozen=True)
class Camera:
    """One camera image of a keyframe, as calibrated.

    A camera that the keyframe lacks has no image and a calibration under which it sees nothing of the world: far above
    the ego frame, looking up.

    Attributes:
        channel: its name, "CAM_FRONT" for example.
        path: the image file; None: the keyframe lacks this camera.
        width, height: its size in pixels.
        intrinsics: camera frame to pixels, float64 (3, 3).
        cam2ego: camera frame to the ego frame at the camera's time, float64 (4, 4).
        ego2global: ego frame at the camera's time to the map, float64 (4, 4).
    """

    channel: str
    path: Path | None
    width: int
    height: int
    intrinsics: np.ndarray
    cam2ego: np.ndarray
    ego2global: np.ndarray

    @property
    def present(self) -> bool:
        """Whether the keyframe has an image of this camera."""
        return self.path is not None


@dataclass(frozen=True)
class Keyframe:
    """One moment that is predicted; its ego frame is that of nuScenes at LiDAR time (docs/formulas.md 1.2).

    Attributes:
        token: of nuScenes the sample token; the identity of the keyframe everywhere.
        scene: scene name, for example "scene-0061".
        timestamp: microseconds.
        previous, next: tokens of the neighbours in time within the scene, "" at its ends.
        cameras: in the order of `KeyframeIndex.channels`, N of them.
        lidar_path: the LIDAR_TOP scan; None: there is none.
        scan: what stands in it.
        lidar2ego: LIDAR_TOP to ego frame, float64 (4, 4); None: there is no LiDAR.
        ego2global: ego frame to the map, float64 (4, 4).
        labels: file of its labels; None: the layout of the data does not name it.
    """

    token: str
    scene: str
    timestamp: int
    previous: str
    next: str
    cameras: tuple[Camera, ...]
    lidar_path: Path | None
    scan: ScanFormat
    lidar2ego: np.ndarray | None
    ego2global: np.ndarray
    labels: Path | None = None

    def cam2ego(self) -> np.ndarray:
        """Camera frames, each at its own time, to this keyframe's ego frame: float64 (N, 4, 4).

        The ego motion between camera and LiDAR time is included.
        """
        global2ego = rigid.inverse(self.ego2global)
        return np.stack([global2ego @ camera.ego2global @ camera.cam2ego for camera in self.cameras])
