"""The records of an index from nuScenes tables.

nuscenes-devkit opens maps, annotations and lidarseg labels, too, which nothing here needs, and what it says of a faulty
table names neither record nor field; so the six tables that are needed are read here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill import rigid
from distill.errors import InputError
from distill.nuscenes.layout import CAMERAS, LIDAR, check_version, rig_order
from distill.nuscenes.records import (
    PINHOLE,
    CameraEntry,
    KeyframeEntry,
    camera2keyframe,
    fits_image,
    is_pinhole,
    misplaced,
    records_of,
    same_times,
)

# The devkit's split lists are about these versions; scene-0061 of v1.0-mini is not "the train split".
_VERSION_SPLITS = {
    "v1.0-trainval": ("train", "val", "train_detect", "train_track"),
    "v1.0-test": ("test",),
    "v1.0-mini": ("mini_train", "mini_val"),
}
_HIGHEST = {"width": 2**31 - 1, "height": 2**31 - 1, "timestamp": 2**63 - 1}  # what a record of the index holds
_NORM_ERROR = 1e-3  # of a quaternion that was rounded; others are no rotations


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a table. What is asked of it is checked.

    Attributes:
        table: its file.
        fields: as in the file.
        use: what it is read for, for messages: "CAM_FRONT of keyframe ...", or "".
    """

    table: Path
    fields: dict[str, Any]
    use: str = ""

    def __getitem__(self, field: str) -> Any:
        """The value of a field.

        Raises:
            InputError: it is missing or null. So do the other methods, for values of another kind.
        """
        value = self.fields.get(field)
        if value is None:
            raise self.fault(field, "null" if field in self.fields else "missing")
        return value

    def text(self, field: str) -> str:
        """A text that is not empty."""
        value = self[field]
        if not isinstance(value, str) or not value:
            raise self.fault(field, f"{value!r}, not a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.fault(field, f"{value!r}, not a text in UTF-8") from error
        return value

    def flag(self, field: str) -> bool:
        """True or false."""
        value = self[field]
        if value not in (True, False):
            raise self.fault(field, f"{value!r}, not true or false")
        return bool(value)

    def whole(self, field: str, lowest: int) -> int:
        """A whole number from `lowest` on."""
        value = self[field]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and lowest <= value <= _HIGHEST[field] and value == math.floor(value)):
            raise self.fault(field, f"{value!r}, not a whole number from {lowest} on")
        return int(value)

    def numbers(self, field: str, shape: tuple[int, ...]) -> np.ndarray:
        """Finite numbers, float64 of this shape."""
        value = self[field]
        try:
            array = np.array(value)
        except ValueError:  # rows of unequal lengths
            array = np.array(None)
        fits = array.shape == shape and array.dtype.kind in "iuf" and np.isfinite(array.astype(np.float64)).all()
        if not fits:
            raise self.fault(field, f"{value!r}, not {' x '.join(map(str, shape))} finite numbers")
        return array.astype(np.float64)

    def pose(self) -> np.ndarray:
        """`rotation` and `translation` as a float64 (4, 4) matrix."""
        pose = self.quaternion_pose()
        return rigid.from_quaternion(pose[:4], pose[4:])

    def quaternion_pose(self) -> np.ndarray:
        """`rotation`, a unit quaternion w, x, y, z, and `translation`, metres: float64 (7,)."""
        quaternion = self.numbers("rotation", (4,))
        if abs(np.linalg.norm(quaternion) - 1) > _NORM_ERROR:
            raise self.fault("rotation", f"{self['rotation']!r}, no rotation (a quaternion w, x, y, z of norm 1)")
        return np.concatenate((quaternion, self.numbers("translation", (3,))))

    def intrinsics(self, field: str) -> np.ndarray:
        """Intrinsics of a pinhole camera, camera frame to pixels, float64 (3, 3)."""
        matrix = self.numbers(field, (3, 3))
        if not is_pinhole(matrix):
            raise self.fault(field, f"{matrix.tolist()}, no pinhole camera {PINHOLE}")
        return matrix

    def check_image(self, field: str, intrinsics: np.ndarray, size: tuple[int, int]) -> None:
        """Raise InputError unless intrinsics can be of an image of so many columns and rows."""
        if not fits_image(intrinsics, size):
            raise self.fault(field, f"{intrinsics.tolist()}, not of an image of {size[0]}x{size[1]} pixels")

    def fault(self, field: str, found: str) -> InputError:
        """The error that a field is not as it must be."""
        if len(found) > 200:
            found = f"{found[:80]} ... {found[-110:]}"
        used = f", {self.use}," if self.use else ""
        return InputError(f"{self.table}: {field} of record {self.fields.get('token')!r}{used} is {found}: correct it")


class Tables:
    """The tables of one version of a dataroot, each read when it is first asked for.

    Args:
        root: dataroot.
        version: the folder with the tables.

    Raises:
        InputError: a missing dataroot or version.
    """

    def __init__(self, root: Path, version: str) -> None:
        check_version(root, version)
        self.folder = root / version
        self._tables: dict[str, dict[str, Record]] = {}

    def file(self, table: str) -> Path:
        """Where a table is."""
        return self.folder / f"{table}.json"

    def records(self, table: str) -> dict[str, Record]:
        """The records of a table by their tokens.

        Raises:
            InputError: it is missing, or no list of records with distinct tokens.
        """
        if table not in self._tables:
            self._tables[table] = _by_token(self.file(table))
        return self._tables[table]

    def linked(self, record: Record, table: str) -> Record:
        """The record of another table that `record` names in its field `<table>_token`, for the same use.

        Raises:
            InputError: there is none.
        """
        token = record.text(f"{table}_token")
        found = self.records(table).get(token)
        if found is None:
            raise record.fault(f"{table}_token", f"{token!r}, and {self.file(table)} does not have such a record")
        return Record(found.table, found.fields, record.use)


def read_tables(tables: Tables) -> np.ndarray:
    """The record array of an index, see `distill.nuscenes.records.records_of`; its cameras are those of `_rig`.

    Raises:
        InputError: a keyframe without LIDAR_TOP or without any camera, a broken table or splits.json, calibration or
            poses that are none, keyframes of one scene and time.
    """
    splits, sensors, channels = _splits(tables.folder), _sensors(tables), _rig(tables)
    samples = sorted(
        tables.records("sample").values(),
        key=lambda sample: (
            tables.linked(sample, "scene").text("name"),
            sample.whole("timestamp", 0),
        ),  # faults in order
    )
    entries = [_entry(tables, sample, sensors[sample.text("token")], channels) for sample in samples]
    if not entries:
        raise InputError(f"{tables.file('sample')}: no keyframe is in it: download the nuScenes metadata again")
    for one, other in same_times(entries):
        raise InputError(
            f"{tables.file('sample')}: keyframes {one.token} and {other.token} of {one.scene} have the same timestamp, "
            f"{one.timestamp}: give each its own (microseconds), or leave one of them out"
        )
    return records_of(entries, channels, splits)


def parse_json(path: Path) -> Any:
    """What a JSON file says, in whichever UTF encoding, with or without a byte order mark.

    Raises:
        InputError: it is missing, cannot be read, or is not valid JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: download the nuScenes metadata again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8 ({error.reason}): save it as UTF-8") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}): download the nuScenes metadata again") from error


def _by_token(path: Path) -> dict[str, Record]:
    rows = parse_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: not a list of records [{{...}}, ...]: download the nuScenes metadata again")
    table = {record.text("token"): record for record in (Record(path, row) for row in rows)}
    if len(table) < len(rows):
        token = Counter(row["token"] for row in rows).most_common(1)[0][0]
        raise InputError(
            f"{path}: {len(rows) - len(table)} of {len(rows)} records share their token with another one "
            f"(first {token}): leave one of them in"
        )
    return table


def _sensors(tables: Tables) -> dict[str, dict[str, Record]]:
    """Sample token -> channel -> the record of its sample_data."""
    of_sample: dict[str, dict[str, Record]] = {token: {} for token in tables.records("sample")}
    for data in tables.records("sample_data").values():
        if not data.flag("is_key_frame"):
            continue
        token = tables.linked(data, "sample").text("token")
        channel = tables.linked(tables.linked(data, "calibrated_sensor"), "sensor").text("channel")
        if channel in of_sample[token]:
            raise InputError(f"{data.table}: two records are {channel} of keyframe {token}: is_key_frame holds for one")
        of_sample[token][channel] = Record(data.table, data.fields, f"{channel} of keyframe {token}")
    return of_sample


def _rig(tables: Tables) -> tuple[str, ...]:
    """The cameras of a dataroot: sensors of modality "camera", and those that have the names of nuScenes' cameras."""
    sensors = tables.records("sensor").values()
    cameras = {sensor.text("channel") for sensor in sensors if sensor.fields.get("modality") == "camera"}
    cameras |= {channel for channel in CAMERAS if any(sensor.fields.get("channel") == channel for sensor in sensors)}
    return rig_order(cameras)


def _entry(tables: Tables, sample: Record, sensors: dict[str, Record], channels: Sequence[str]) -> KeyframeEntry:
    token = sample.text("token")
    _check_sensors(tables, token, sensors, channels)
    lidar = sensors[LIDAR]
    lidar2ego = tables.linked(lidar, "calibrated_sensor").pose()
    ego2global = tables.linked(lidar, "ego_pose").pose()
    _check_near(lidar, lidar2ego)
    return KeyframeEntry(
        token=token,
        scene=tables.linked(sample, "scene").text("name"),
        timestamp=sample.whole("timestamp", 0),
        ego2global=ego2global,
        cameras={channel: _camera(tables, sensors[channel], ego2global) for channel in channels if channel in sensors},
        lidar_path=lidar.text("filename"),
        lidar2ego=lidar2ego,
    )


def _camera(tables: Tables, data: Record, ego2global: np.ndarray) -> CameraEntry:
    """Of a keyframe, whose ego pose is `ego2global`."""
    calibration = tables.linked(data, "calibrated_sensor")
    camera = CameraEntry(
        path=data.text("filename"),
        width=data.whole("width", 1),
        height=data.whole("height", 1),
        intrinsics=calibration.intrinsics("camera_intrinsic"),
        cam2ego=calibration.pose(),
        ego2global=tables.linked(data, "ego_pose").pose(),
    )
    _check_near(data, camera2keyframe(camera, ego2global))
    calibration.check_image("camera_intrinsic", camera.intrinsics, (camera.width, camera.height))
    return camera


def _check_near(data: Record, sensor2ego: np.ndarray) -> None:
    if (where := misplaced(sensor2ego)) is not None:
        raise InputError(
            f"{data.table}: {data.use} is {where} by its calibrated_sensor and ego_pose: "
            "correct them (metres; the ego_pose of the same moment)"
        )


def _check_sensors(tables: Tables, token: str, sensors: dict[str, Record], cameras: Sequence[str]) -> None:
    has = f"(it has {', '.join(sorted(sensors)) or 'no sensor at all'})"
    if LIDAR not in sensors:
        raise InputError(
            f"keyframe {token} has no {LIDAR} in {tables.file('sample_data')} {has}, whose pose is that of the "
            "keyframe: download the nuScenes metadata again, or add its record (the scan itself may be absent)"
        )
    if not any(channel in sensors for channel in cameras):
        raise InputError(
            f"keyframe {token} has none of {', '.join(cameras)} in {tables.file('sample_data')} {has}: name its "
            "cameras so, or leave this keyframe out of sample.json"
        )


def _splits(folder: Path) -> dict[str, list[str]]:
    """Names of splits -> names of their scenes."""
    custom = folder / "splits.json"
    return _read_splits(custom) if custom.exists() else _devkit_splits(folder.name)


def _devkit_splits(version: str) -> dict[str, list[str]]:
    if version not in _VERSION_SPLITS:
        return {}
    from nuscenes.utils.splits import create_splits_scenes  # importing the devkit takes seconds

    return {name: create_splits_scenes()[name] for name in _VERSION_SPLITS[version]}


def _read_splits(path: Path) -> dict[str, list[str]]:
    splits = parse_json(path)
    well_formed = isinstance(splits, dict) and all(
        name.split() == [name] and isinstance(scenes, list) and all(isinstance(scene, str) for scene in scenes)
        for name, scenes in splits.items()
    )
    if not well_formed:
        raise InputError(f'{path}: must map one-word split names to lists of scene names: {{"train": ["scene-0001"]}}')
    if "all" in splits:
        raise InputError(f'{path}: "all" stands for every keyframe and is no split of one\'s own: choose another name')
    return splits
