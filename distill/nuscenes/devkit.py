"""The records of an index from nuScenes tables, read with nuscenes-devkit.

Importing this module imports the devkit, which takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes import NuScenes
from nuscenes.utils.geometry_utils import transform_matrix
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

from distill.errors import InputError
from distill.nuscenes.layout import CAMERAS, LIDAR, check_version

# The devkit's split lists are about these versions; scene-0061 of v1.0-mini is not "the train split".
_VERSION_SPLITS = {
    "v1.0-trainval": ("train", "val", "train_detect", "train_track"),
    "v1.0-test": ("test",),
    "v1.0-mini": ("mini_train", "mini_val"),
}


def open_devkit(root: Path, version: str) -> NuScenes:
    """The devkit's `NuScenes`, with its complaints about the dataroot turned into one line.

    Raises:
        InputError: a missing dataroot or version, a missing or broken table.
    """
    check_version(root, version)
    with _faults_named(root / version):
        return NuScenes(version=version, dataroot=str(root), verbose=False)


def read_tables(nusc: NuScenes) -> np.ndarray:
    """The record array of an index, from the devkit's tables.

    Raises:
        InputError: a keyframe without all six cameras and LIDAR_TOP, a broken table or splits.json.
    """
    tables = Path(nusc.dataroot) / nusc.version
    splits = _splits_of_scenes(tables)
    with _faults_named(tables):
        scenes = {scene["token"]: scene["name"] for scene in nusc.scene}
        samples = sorted(nusc.sample, key=lambda sample: (scenes[sample["scene_token"]], sample["timestamp"]))
        records = np.zeros(len(samples), dtype=_record_dtype(nusc, splits))
        for record, sample in zip(records, samples, strict=True):
            scene = scenes[sample["scene_token"]]
            record["token"], record["scene"], record["timestamp"] = sample["token"], scene, sample["timestamp"]
            record["splits"] = " ".join(splits.get(scene, []))
            _fill_sensors(record, nusc, sample)
    return records


def _fill_sensors(record: np.void, nusc: NuScenes, sample: dict[str, Any]) -> None:
    missing = [channel for channel in (*CAMERAS, LIDAR) if channel not in sample["data"]]
    if missing:
        raise InputError(
            f"keyframe {sample['token']} has no {', '.join(missing)} in {nusc.table_root}/sample_data.json: "
            "download the nuScenes metadata again"
        )
    lidar = nusc.get("sample_data", sample["data"][LIDAR])
    record["lidar_path"] = lidar["filename"]
    record["lidar2ego"] = _pose(nusc, "calibrated_sensor", lidar)
    record["ego2global"] = _pose(nusc, "ego_pose", lidar)
    for camera, channel in zip(record["cameras"], CAMERAS, strict=True):
        image = nusc.get("sample_data", sample["data"][channel])
        calibration = nusc.get("calibrated_sensor", image["calibrated_sensor_token"])
        camera["path"], camera["width"], camera["height"] = image["filename"], image["width"], image["height"]
        camera["intrinsics"] = calibration["camera_intrinsic"]
        camera["cam2ego"] = _pose(nusc, "calibrated_sensor", image)
        camera["ego2global"] = _pose(nusc, "ego_pose", image)


def _record_dtype(nusc: NuScenes, splits: dict[str, list[str]]) -> np.dtype:
    def text(values: list[str]) -> str:
        return f"S{max(map(len, values), default=1)}"

    path = text([data["filename"] for data in nusc.sample_data])
    matrix = ("<f8", (4, 4))
    camera = [
        ("path", path),
        ("width", "<i4"),
        ("height", "<i4"),
        ("intrinsics", "<f8", (3, 3)),
        ("cam2ego", *matrix),
        ("ego2global", *matrix),
    ]
    return np.dtype(
        [
            ("token", text([sample["token"] for sample in nusc.sample])),
            ("scene", text([scene["name"] for scene in nusc.scene])),
            ("splits", text([" ".join(names) for names in splits.values()])),
            ("timestamp", "<i8"),
            ("lidar_path", path),
            ("lidar2ego", *matrix),
            ("ego2global", *matrix),
            ("cameras", camera, (len(CAMERAS),)),
        ]
    )


def _pose(nusc: NuScenes, table: str, sample_data: dict[str, Any]) -> np.ndarray:
    """Sensor to ego ("calibrated_sensor") or ego to global ("ego_pose"), float64 (4, 4)."""
    pose = nusc.get(table, sample_data[f"{table}_token"])
    return transform_matrix(pose["translation"], Quaternion(pose["rotation"]))


def _splits_of_scenes(tables: Path) -> dict[str, list[str]]:
    """Scene name -> names of the splits it belongs to."""
    custom = tables / "splits.json"
    if custom.exists():
        splits = _read_splits(custom)
    else:
        splits = {name: create_splits_scenes()[name] for name in _VERSION_SPLITS.get(tables.name, ())}
    of_scene: dict[str, list[str]] = {}
    for name, scenes in splits.items():
        for scene in scenes:
            of_scene.setdefault(scene, []).append(name)
    return of_scene


def _read_splits(path: Path) -> dict[str, list[str]]:
    try:
        splits = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    well_formed = isinstance(splits, dict) and all(
        name.split() == [name] and isinstance(scenes, list) and all(isinstance(scene, str) for scene in scenes)
        for name, scenes in splits.items()
    )
    if not well_formed:
        raise InputError(f'{path}: must map one-word split names to lists of scene names: {{"train": ["scene-0001"]}}')
    return splits


@contextmanager
def _faults_named(tables: Path) -> Iterator[None]:
    """Turn what goes wrong while tables are read into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing: download the nuScenes metadata again") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{_broken_table(tables)}: not valid JSON: download the nuScenes metadata again") from error
    except KeyError as error:
        raise InputError(f"{tables}: the tables do not fit together, {error} is not in them: replace them") from error
    except AssertionError as error:
        raise InputError(f"{tables}: the nuScenes devkit refuses this dataroot: {error}") from error


def _broken_table(tables: Path) -> Path:
    for table in sorted(tables.glob("*.json")):
        try:
            json.loads(table.read_bytes())
        except json.JSONDecodeError:
            return table
    raise AssertionError(f"the devkit met invalid JSON in {tables}, but every table parses")
