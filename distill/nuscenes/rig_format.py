"""The format of an index of one's own frames, `RigIndex`, version 1 (docs/own_data.md): what may stand in it.

`rig_index.schema.json` beside this file says the same to editors and other programs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from distill.nuscenes.records import PINHOLE, is_pinhole

FORMAT, VERSION = "occ-distill-rig", 1
_ROTATION_ERROR = 1e-3  # of a matrix that was rounded; others are no rotations
_UNDISTORT = "is not supported: undistort the images to a pinhole camera, and give the intrinsics of the new images"
SUFFIXES = (".bin", ".npy", ".pcd")


def _pinhole(rows: list[list[float]]) -> list[list[float]]:
    if not is_pinhole(np.array(rows)):
        raise ValueError(f"should be {PINHOLE}")
    return rows


def _pose(rows: list[list[float]]) -> list[list[float]]:
    matrix = np.array(rows)
    error = np.abs(matrix[:3, :3] @ matrix[:3, :3].T - np.eye(3)).max()
    if matrix[3].tolist() != [0, 0, 0, 1] or error > _ROTATION_ERROR or np.linalg.det(matrix[:3, :3]) < 0:
        raise ValueError("should be a pose, [R t; 0 0 0 1] with a rotation R")
    return rows


def _model(value: Any) -> Any:
    if value != "pinhole":
        raise ValueError(f"a camera of model {value} {_UNDISTORT}")
    return value


def _undistorted(coefficients: list[float]) -> list[float]:
    if any(coefficients):
        raise ValueError(f"distortion {_UNDISTORT}")
    return coefficients


def _scan_file(path: str) -> str:
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"should be a {', '.join(SUFFIXES)} file")
    return path


def _columns(names: list[str]) -> list[str]:
    lacking = [name for name in ("x", "y", "z") if name not in names]
    if lacking or len({*names}) < len(names):
        raise ValueError(
            f"should name each column once, x, y and z among them ({', '.join(lacking) or 'one is twice'})"
        )
    return names


def _split_name(name: str) -> str:
    if name == "all":
        raise ValueError('"all" stands for every frame: choose another name')
    return name


Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(min_length=1)]
Word = Annotated[str, StringConstraints(pattern=r"^\S+$")]
Matrix3 = Annotated[list[Annotated[list[Number], Field(min_length=3, max_length=3)]], Field(min_length=3, max_length=3)]
Matrix4 = Annotated[list[Annotated[list[Number], Field(min_length=4, max_length=4)]], Field(min_length=4, max_length=4)]
Intrinsics = Annotated[Matrix3, AfterValidator(_pinhole)]
Pose = Annotated[Matrix4, AfterValidator(_pose)]
Pixels = Annotated[int, Field(ge=1, lt=2**31)]
SplitName = Annotated[Word, AfterValidator(_split_name)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Calibration(_Part):
    """What is known of a camera; a frame may say any of it anew.

    Attributes:
        model: "pinhole"; there is no other.
        distortion: coefficients, all 0: images must be undistorted.
        width, height: pixels of its images.
        intrinsics: camera frame to pixels, [[fx, s, cx], [0, fy, cy], [0, 0, 1]]; the top left corner is 0, 0.
        cam2ego: camera frame (x right, y down, z ahead) to the ego frame (x ahead, y left, z up), 4 x 4, metres.
    """

    model: Annotated[Literal["pinhole"], BeforeValidator(_model)] = "pinhole"
    distortion: Annotated[list[Number], AfterValidator(_undistorted)] = []
    width: Pixels | None = None
    height: Pixels | None = None
    intrinsics: Intrinsics | None = None
    cam2ego: Pose | None = None


class FrameCamera(Calibration):
    """An image of a frame, and what of its calibration the index does not say for all frames.

    Attributes:
        path: of the image.
        ego2global: ego frame to the map when it was taken, 4 x 4; left out: that of the frame.
    """

    path: Text
    ego2global: Pose | None = None


class Lidar(_Part):
    """What stands in all scans.

    Attributes:
        lidar2ego: LiDAR frame to the ego frame, 4 x 4, metres.
        columns: names of the numbers of a point, x, y and z (metres) among them; intensity is used if it is there.
        intensity_max: the highest intensity there is.
    """

    lidar2ego: Pose
    columns: Annotated[list[Word], AfterValidator(_columns)] = [
        "x",
        "y",
        "z",
        "intensity",
    ]
    intensity_max: Annotated[Number, Field(gt=0)] = 255.0


class FrameLidar(_Part):
    """The scan of a frame.

    Attributes:
        path: .bin (rows of float32), .npy (an array of points and columns) or .pcd.
        lidar2ego: of this frame, where it differs.
    """

    path: Annotated[Text, AfterValidator(_scan_file)]
    lidar2ego: Pose | None = None


class RigFrame(_Part):
    """One frame.

    Attributes:
        token: its identity everywhere; no other frame has it.
        scene: name of the drive it is of.
        timestamp: microseconds.
        ego2global: ego frame to the map, 4 x 4, metres.
        cameras: by name; one that is left out is absent in this frame.
        lidar: its scan, if there is one.
        labels: its labels.npz, if there is one.
    """

    token: Annotated[str, StringConstraints(pattern=r"^[^/\s\x00][^/\x00]*$")]
    scene: Annotated[str, StringConstraints(pattern=r"^[^/\s\x00][^/\x00]*$")]
    timestamp: Annotated[int, Field(ge=0, lt=2**63)]
    ego2global: Pose
    cameras: Annotated[dict[Text, FrameCamera], Field(min_length=1)]
    lidar: FrameLidar | None = None
    labels: Text | None = None


class RigHeader(_Part):
    """What holds for all frames.

    Attributes:
        format: "occ-distill-rig".
        version: of this format.
        cameras: by name, in the order in which networks are shown them.
        lidar: of all scans.
        splits: name -> names of its scenes.
    """

    format: Literal["occ-distill-rig"]
    version: Literal[1]
    cameras: dict[Text, Calibration] = {}
    lidar: Lidar | None = None
    splits: dict[SplitName, list[Text]] = {}


class RigIndex(RigHeader):
    """Frames of a car with cameras of its own. Paths are relative to the folder of this file."""

    frames: Annotated[list[RigFrame], Field(min_length=1)]
