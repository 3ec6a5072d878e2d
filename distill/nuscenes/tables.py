"""The records of an index from nuScenes tables.

nuscenes-devkit opens maps, annotations and lidarseg labels, too, which nothing here needs, and what it says of a faulty
table names neither record nor field; so the six tables that are needed are read here.
"""

from __future__ import annotations

import itertools
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
from distill.nuscenes.layout import CAMERAS, LIDAR, check_version

# The devkit's split lists are about these versions; scene-0061 of v1.0-mini is not "the train split".
_VERSION_SPLITS = {
    "v1.0-trainval": ("train", "val", "train_detect", "train_track"),
    "v1.0-test": ("test",),
    "v1.0-mini": ("mini_train", "mini_val"),
}
_HIGHEST = {"width": 2**31 - 1, "height": 2**31 - 1, "timestamp": 2**63 - 1}  # what a record of the index holds
_FARTHEST = 50.0  # metres from the ego frame; no sensor of a car is so far from it
_NARROWEST = 0.04  # focal length per side of an image that it fits: 170 degrees, beyond any pinhole
_NORM_ERROR = 1e-3  # of a quaternion that was rounded; others are no rotations
# Stands in for a camera that a keyframe lacks: 100 m above the ego frame, looking up. No LiDAR point is in front of it
# and no ray from it meets a grid.
_SKYWARDS = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 100], [0, 0, 0, 1]])


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

    def intrinsics(self) -> np.ndarray:
        """`camera_intrinsic` of a pinhole camera, camera frame to pixels, float64 (3, 3)."""
        matrix = self.numbers("camera_intrinsic", (3, 3))
        if min(matrix[0, 0], matrix[1, 1]) <= 0 or matrix[1, 0] != 0 or matrix[2].tolist() != [0, 0, 1]:
            raise self.fault(
                "camera_intrinsic",
                f"{matrix.tolist()}, no pinhole camera [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx > 0, fy > 0",
            )
        return matrix

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
    """The record array of an index, one record per keyframe, ordered by scene name and time.

    Text is UTF-8. The cameras are the fields of `cameras`, in the order of `_rig`. One that a keyframe lacks has no
    path, the size of one that it has, and looks into the sky.

    Raises:
        InputError: a keyframe without LIDAR_TOP or without any camera, a broken table or splits.json, calibration or
            poses that are none, keyframes of one scene and time.
    """
    splits = _splits_of_scenes(tables.folder)
    sensors = _sensors(tables)
    keyframes = sorted(
        (tables.linked(sample, "scene").text("name"), sample.whole("timestamp", 0), token)
        for token, sample in tables.records("sample").items()
    )
    if not keyframes:
        raise InputError(f"{tables.file('sample')}: no keyframe is in it: download the nuScenes metadata again")
    paths = [data.text("filename") for of_keyframe in sensors.values() for data in of_keyframe.values()]
    _check_times(tables, keyframes)
    scene_names, _, tokens = zip(*keyframes, strict=True)
    split_lists = [" ".join(names) for names in splits.values()]
    widths = map(longest, (tokens, scene_names, split_lists, paths))
    records = np.zeros(len(keyframes), _record_dtype(_rig(tables), *widths))
    for record, (scene, timestamp, token) in zip(records, keyframes, strict=True):
        record["token"], record["scene"], record["timestamp"] = token.encode(), scene.encode(), timestamp
        record["splits"] = " ".join(splits.get(scene, [])).encode()
        _fill_sensors(record, tables, token, sensors[token])
    return records


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


def _check_times(tables: Tables, keyframes: list[tuple[str, int, str]]) -> None:
    """Raise InputError where the order of keyframes (scene, time, token) is not known."""
    for (scene, time, token), (other_scene, other_time, other) in itertools.pairwise(keyframes):
        if (scene, time) == (other_scene, other_time):
            raise InputError(
                f"{tables.file('sample')}: keyframes {token} and {other} of {scene} have the same timestamp, {time}: "
                "give each its own (microseconds), or leave one of them out"
            )


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
    """The cameras of a dataroot: sensors of modality "camera", and those that have the names of nuScenes' cameras.

    `CAMERAS`, if there are no others, whether or not all of these are here; otherwise those that are here: first those
    in `CAMERAS`, in that order, then the others by name.
    """
    sensors = tables.records("sensor").values()
    cameras = {sensor.text("channel") for sensor in sensors if sensor.fields.get("modality") == "camera"}
    cameras |= {channel for channel in CAMERAS if any(sensor.fields.get("channel") == channel for sensor in sensors)}
    own = sorted(cameras - {*CAMERAS})
    return (*(channel for channel in CAMERAS if channel in cameras), *own) if own else CAMERAS


def _fill_sensors(record: np.void, tables: Tables, token: str, sensors: dict[str, Record]) -> None:
    channels = cameras_of(record.dtype)
    _check_sensors(tables, token, sensors, channels)
    lidar = sensors[LIDAR]
    record["lidar_path"] = lidar.text("filename").encode()
    record["lidar2ego"] = tables.linked(lidar, "calibrated_sensor").pose()
    record["ego2global"] = tables.linked(lidar, "ego_pose").pose()
    _check_near(lidar, record["lidar2ego"])
    global2ego = rigid.inverse(record["ego2global"])
    for channel in channels:
        if channel in sensors:
            data, camera = sensors[channel], record["cameras"][channel]
            calibration = tables.linked(data, "calibrated_sensor")
            camera["path"] = data.text("filename").encode()
            camera["width"], camera["height"] = data.whole("width", 1), data.whole("height", 1)
            camera["intrinsics"], camera["cam2ego"] = calibration.intrinsics(), calibration.pose()
            camera["ego2global"] = tables.linked(data, "ego_pose").pose()
            _check_near(data, global2ego @ camera["ego2global"] @ camera["cam2ego"])
            _check_image(calibration, camera["intrinsics"], (int(camera["width"]), int(camera["height"])))
    _fill_absent(record)


def _check_near(data: Record, sensor2ego: np.ndarray) -> None:
    distance = float(np.linalg.norm(sensor2ego[:3, 3]))
    if distance > _FARTHEST:
        raise InputError(
            f"{data.table}: {data.use} is {distance:.0f} m from the vehicle by its calibrated_sensor and ego_pose: "
            "correct them (metres; the ego_pose of the same moment)"
        )


def _check_image(calibration: Record, intrinsics: np.ndarray, size: tuple[int, int]) -> None:
    centre, focal = intrinsics[:2, 2], np.diag(intrinsics)[:2]
    if not ((centre >= 0) & (centre <= size)).all() or (focal < _NARROWEST * np.array(size)).any():
        raise calibration.fault(
            "camera_intrinsic", f"{intrinsics.tolist()}, not of an image of {size[0]}x{size[1]} pixels"
        )


def _fill_absent(record: np.void) -> None:
    """Let the cameras that a keyframe lacks look into the sky, with a right angle of view."""
    cameras = [record["cameras"][channel] for channel in cameras_of(record.dtype)]
    present = next(camera for camera in cameras if camera["path"])
    width, height = present["width"], present["height"]
    for camera in cameras:
        if not camera["path"]:
            camera["width"], camera["height"] = width, height
            camera["intrinsics"] = [[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]]
            camera["cam2ego"], camera["ego2global"] = _SKYWARDS, record["ego2global"]


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


def longest(texts: Sequence[str]) -> int:
    """Bytes of the longest text."""
    return max((len(text.encode()) for text in texts), default=1)


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
            ("cameras", [(channel, camera) for channel in channels]),
        ]
    )


def cameras_of(records: np.dtype) -> tuple[str, ...]:
    """Names of the cameras of records of keyframes, in order."""
    return records["cameras"].names or ()


def image_fields(path: int) -> list[tuple]:
    """Of a record that says what an image is; `path`: bytes of the longest one."""
    return [("path", f"S{path}"), ("width", "<i4"), ("height", "<i4"), ("intrinsics", "<f8", (3, 3))]


def _splits_of_scenes(folder: Path) -> dict[str, list[str]]:
    """Scene name -> names of the splits it belongs to."""
    custom = folder / "splits.json"
    splits = _read_splits(custom) if custom.exists() else _devkit_splits(folder.name)
    of_scene: dict[str, list[str]] = {}
    for name, scenes in splits.items():
        for scene in scenes:
            of_scene.setdefault(scene, []).append(name)
    return of_scene


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
