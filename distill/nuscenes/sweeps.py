"""Sweeps: what cameras and the LiDAR recorded between keyframes.

nuScenes has millions of them, and few programs ask for any. So they are an array of their own, which is read, kept and
mapped when it is first asked for, and whose faults nobody else is told.
"""

from __future__ import annotations

import bisect
import itertools
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.nuscenes.layout import LIDAR
from distill.nuscenes.records import cameras_of, image_fields, longest
from distill.nuscenes.tables import Record, Tables


@dataclass(frozen=True)
class Sweep:
    """One image or scan between keyframes.

    Attributes:
        channel: of the camera, or LIDAR_TOP.
        timestamp: microseconds.
        path: the file; whether it is there has not been looked at.
        sensor2ego: sensor frame to the ego frame at that time, float64 (4, 4).
        ego2global: ego frame at that time to the map, float64 (4, 4).
        width, height: pixels of an image; 0 of a scan.
        intrinsics: of an image, camera frame to pixels, float64 (3, 3); None of a scan.
    """

    channel: str
    timestamp: int
    path: Path
    sensor2ego: np.ndarray
    ego2global: np.ndarray
    width: int
    height: int
    intrinsics: np.ndarray | None


def read_sweeps(tables: Tables, keyframes: np.ndarray) -> np.ndarray:
    """The record array of sweeps, ordered by channel, keyframe and time.

    A record says the row of the keyframe that follows, and its channel as the place among the cameras, LIDAR_TOP behind
    them. What a scene holds after its last keyframe, and radar, is left out. Poses are w, x, y, z of a quaternion and
    x, y, z of a translation: a third of the size of two matrices.

    Args:
        tables: of the dataroot.
        keyframes: see `distill.nuscenes.records.records_of`.

    Raises:
        InputError: a broken table, calibration or poses that are none.
    """
    cameras = cameras_of(keyframes.dtype)
    found, key_S3 = _between(tables, keyframes, {channel: place for place, channel in enumerate((*cameras, LIDAR))})
    numbers = [("channel", "<i2"), ("keyframe", "<i4"), ("timestamp", "<i8")]
    poses = [("sensor2ego", "<f8", (7,)), ("ego2global", "<f8", (7,))]
    path = longest([data.text("filename") for data in found])
    sweeps = np.zeros(len(found), np.dtype([*numbers, *image_fields(path), *poses]))
    order = np.lexsort(key_S3.T[::-1])
    sweeps["channel"], sweeps["keyframe"], sweeps["timestamp"] = key_S3[order].T
    for sweep, place in zip(sweeps, order.tolist(), strict=True):
        _fill(sweep, tables, found[place], sweep["channel"] < len(cameras))
    return sweeps


def rows_before(sweeps: np.ndarray, place: int, first: int, row: int, n: int) -> range:
    """Rows of up to n sweeps of a channel before a keyframe, the nearest first.

    Args:
        sweeps: see `read_sweeps`; a few of its pages are looked at.
        place: of the channel.
        first: row of the first keyframe of the scene.
        row: of the keyframe.
        n: at most so many.
    """

    def key(sweep: np.void) -> tuple[int, int]:
        return int(sweep["channel"]), int(sweep["keyframe"])

    end = bisect.bisect_right(sweeps, (place, row), key=key)
    start = max(bisect.bisect_left(sweeps, (place, first), hi=end, key=key), end - n)
    return range(end - 1, start - 1, -1)


def _between(tables: Tables, keyframes: np.ndarray, places: dict[str, int]) -> tuple[list[Record], np.ndarray]:
    """Records of sample_data between keyframes; place of the channel, row of the next keyframe and time, (S, 3)."""
    times: dict[str, list[int]] = {}
    for scene, time in zip(keyframes["scene"].tolist(), keyframes["timestamp"].tolist(), strict=True):
        times.setdefault(scene.decode(), []).append(time)
    first = dict(zip(times, itertools.accumulate(map(len, times.values()), initial=0), strict=False))
    found, keys = [], array("q")
    for data in tables.records("sample_data").values():
        if data.flag("is_key_frame"):
            continue
        place = places.get(tables.linked(tables.linked(data, "calibrated_sensor"), "sensor").text("channel"))
        if place is None:
            continue
        scene, time = tables.linked(tables.linked(data, "sample"), "scene").text("name"), data.whole("timestamp", 0)
        later = bisect.bisect_right(times[scene], time)
        if later < len(times[scene]):
            found.append(data)
            keys.extend((place, first[scene] + later, time))
    return found, np.array(keys, np.int64).reshape(-1, 3)


def _fill(sweep: np.void, tables: Tables, data: Record, is_image: bool) -> None:
    calibration = tables.linked(data, "calibrated_sensor")
    sweep["path"] = data.text("filename").encode()
    sweep["sensor2ego"] = calibration.quaternion_pose()
    sweep["ego2global"] = tables.linked(data, "ego_pose").quaternion_pose()
    if is_image:
        sweep["width"], sweep["height"] = data.whole("width", 1), data.whole("height", 1)
        sweep["intrinsics"] = calibration.intrinsics("camera_intrinsic")
