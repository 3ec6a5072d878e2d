"""Keyframes as the records of an index: one NumPy record array, whichever layout they were read from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill import rigid

PINHOLE = "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx > 0, fy > 0"
_FARTHEST = 50.0  # metres from the ego frame; no sensor of a car is so far from it
_NARROWEST = 0.04  # focal length per side of an image that it fits: 170 degrees, beyond any pinhole
# Stands in for a camera that a keyframe lacks: 100 m above the ego frame, looking up. No LiDAR point is in front of it
# and no ray from it meets a grid.
_SKYWARDS = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 100], [0, 0, 0, 1]])


@dataclass(frozen=True, slots=True)
class CameraEntry:
    """One image of a keyframe; see `distill.nuscenes.index.Camera`. `path` is relative to the root of the data."""

    path: str
    width: int
    height: int
    intrinsics: np.ndarray
    cam2ego: np.ndarray
    ego2global: np.ndarray


@dataclass(frozen=True, slots=True)
class KeyframeEntry:
    """One keyframe; see `distill.nuscenes.index.Keyframe`. Paths are relative to the root of the data.

    Attributes:
        token, scene, timestamp, ego2global: as there.
        cameras: by channel, one or more.
        lidar_path: of the scan; "": there is none.
        lidar2ego: None: there is no LiDAR.
        labels: file of its labels; "": the layout does not name it.
    """

    token: str
    scene: str
    timestamp: int
    ego2global: np.ndarray
    cameras: Mapping[str, CameraEntry]
    lidar_path: str = ""
    lidar2ego: np.ndarray | None = None
    labels: str = ""


def records_of(
    entries: Sequence[KeyframeEntry], channels: Sequence[str], splits: Mapping[str, Sequence[str]]
) -> np.ndarray:
    """The record array of an index, one record per keyframe, ordered by scene name and time.

    Text is UTF-8. A camera that a keyframe lacks has no path, the size of one that it has, and looks into the sky. The
    pose of a LiDAR that there is not is not a number.

    Args:
        entries: in any order, one or more.
        channels: names of the cameras, in order.
        splits: names of splits -> names of their scenes.
    """
    of_scene: dict[str, list[str]] = {}
    for name, scenes in splits.items():
        for scene in scenes:
            of_scene.setdefault(scene, []).append(name)
    ordered = sorted(entries, key=_place)
    images = [camera.path for entry in entries for camera in entry.cameras.values()]
    paths = [*images, *(path for entry in entries for path in (entry.lidar_path, entry.labels))]
    texts = ([entry.token for entry in entries], [entry.scene for entry in entries])
    widths = map(longest, (*texts, [" ".join(names) for names in of_scene.values()], paths))
    records = np.zeros(len(ordered), _record_dtype(channels, *widths))
    for record, entry in zip(records, ordered, strict=True):
        record["token"], record["scene"], record["timestamp"] = (
            entry.token.encode(),
            entry.scene.encode(),
            entry.timestamp,
        )
        record["splits"] = " ".join(of_scene.get(entry.scene, [])).encode()
        record["lidar_path"], record["labels"] = entry.lidar_path.encode(), entry.labels.encode()
        record["lidar2ego"] = np.nan if entry.lidar2ego is None else entry.lidar2ego
        record["ego2global"] = entry.ego2global
        for channel in channels:
            _fill_camera(record["cameras"][channel], entry, channel)
    return records


def _place(entry: KeyframeEntry) -> tuple[str, int, str]:
    return entry.scene, entry.timestamp, entry.token


def _fill_camera(record: np.void, entry: KeyframeEntry, channel: str) -> None:
    camera = entry.cameras.get(channel)
    if camera is None:  # a right angle of view into the sky
        like = next(iter(entry.cameras.values()))
        width, height = like.width, like.height
        intrinsics = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]])
        camera = CameraEntry("", width, height, intrinsics, _SKYWARDS, entry.ego2global)
    record["path"], record["width"], record["height"] = camera.path.encode(), camera.width, camera.height
    record["intrinsics"], record["cam2ego"] = camera.intrinsics, camera.cam2ego
    record["ego2global"] = camera.ego2global


def same_times(entries: Sequence[KeyframeEntry]) -> list[tuple[KeyframeEntry, KeyframeEntry]]:
    """Pairs of one scene and time, whose order is not known."""
    ordered = sorted(entries, key=_place)
    return [
        (one, other)
        for one, other in itertools.pairwise(ordered)
        if (one.scene, one.timestamp) == (other.scene, other.timestamp)
    ]


def misplaced(sensor2ego: np.ndarray) -> str | None:
    """Why a sensor cannot be where it is said to be, in words."""
    distance = float(np.linalg.norm(sensor2ego[:3, 3]))
    return f"{distance:.0f} m from the vehicle" if distance > _FARTHEST else None


def camera2keyframe(camera: CameraEntry, ego2global: np.ndarray) -> np.ndarray:
    """The camera to the ego frame of its keyframe, float64 (4, 4)."""
    return rigid.inverse(ego2global) @ camera.ego2global @ camera.cam2ego


def is_pinhole(matrix: np.ndarray) -> bool:
    """Whether intrinsics (3, 3) are of a pinhole camera, see `PINHOLE`."""
    return bool(min(matrix[0, 0], matrix[1, 1]) > 0 and matrix[1, 0] == 0 and matrix[2].tolist() == [0, 0, 1])


def fits_image(matrix: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether intrinsics (3, 3) of a pinhole camera can be of an image of so many columns and rows."""
    centre, focal = matrix[:2, 2], np.diag(matrix)[:2]
    return bool(((centre >= 0) & (centre <= size)).all() and (focal >= _NARROWEST * np.array(size)).all())


def longest(texts: Sequence[str]) -> int:
    """Bytes of the longest text, 1 or more."""
    return max((len(text.encode()) for text in texts), default=0) or 1


def _record_dtype(channels: Sequence[str], token: int, scene: int, splits: int, path: int) -> np.dtype:
    matrix = ("<f8", (4, 4))
    camera = [*image_fields(path), ("cam2ego", *matrix), ("ego2global", *matrix)]
    return np.dtype(
        [
            ("token", f"S{token}"),
            ("scene", f"S{scene}"),
            ("splits", f"S{splits}"),
            ("timestamp", "<i8"),
            ("lidar_path", f"S{path}"),
            ("lidar2ego", *matrix),
            ("ego2global", *matrix),
            ("labels", f"S{path}"),
            ("cameras", [(channel, camera) for channel in channels]),
        ]
    )


def cameras_of(records: np.dtype) -> tuple[str, ...]:
    """Names of the cameras of records of keyframes, in order."""
    return records["cameras"].names or ()


def image_fields(path: int) -> list[tuple]:
    """Of a record that says what an image is; `path`: bytes of the longest one."""
    return [("path", f"S{path}"), ("width", "<i4"), ("height", "<i4"), ("intrinsics", "<f8", (3, 3))]
