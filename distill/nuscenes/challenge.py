"""The CVPR-2023 occupancy challenge's own layout of nuScenes: `annotations.json`, `imgs/` and `gts/`, without LiDAR.

`annotations.json` holds `train_split` and `val_split`, lists of scene names, and `scene_infos[scene][sample token]`:
`timestamp`, `ego_pose`, `gt_path`, and `camera_sensor`, per camera `img_path`, `intrinsic`, `extrinsic` (camera to ego
frame) and the `ego_pose` at its time. Its links `prev` and `next` are not read: it documents them in the wrong
direction. The keyframes of a scene are ordered by their timestamps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import InputError
from distill.nuscenes.cache import cached, file_cache
from distill.nuscenes.index import KeyframeIndex
from distill.nuscenes.layout import nuscenes_scans, rig_order
from distill.nuscenes.records import (
    CameraEntry,
    KeyframeEntry,
    camera2keyframe,
    misplaced,
    records_of,
    same_times,
)
from distill.nuscenes.tables import Record, parse_json

ANNOTATIONS = "annotations.json"


def load_challenge(root: Path, image_size: tuple[int, int], cache_dir: Path) -> KeyframeIndex:
    """Open data in the challenge's layout; the first time, the annotations are read and the result is cached.

    Args:
        root: the folder with `annotations.json`: `mini`, `trainval` or `test`.
        image_size: (width, height) of its images, pixels, which the annotations do not say.
        cache_dir: folder for the index, made if absent.

    Raises:
        InputError: the annotations are missing or broken, or hold what is no calibration or pose.
    """
    file = root / ANNOTATIONS
    if not file.is_file():
        raise InputError(
            f"no {ANNOTATIONS} in {root}: say with data.root= which folder of the challenge's data it is in"
        )
    cache = file_cache(file, cache_dir, image_size)
    records = cached(cache, lambda: read_annotations(file, image_size), f"reading {file}, once")
    return KeyframeIndex(root, file, records, nuscenes_scans(5), ANNOTATIONS)


def read_annotations(file: Path, image_size: tuple[int, int]) -> np.ndarray:
    """The record array of an index, see `distill.nuscenes.records.records_of`.

    Raises:
        InputError: see `load_challenge`.
    """
    annotations = Record(file, _mapping(file, "annotations", parse_json(file)))
    splits = {name: _scenes(annotations, f"{name}_split") for name in ("train", "val")}
    scenes = _mapping(file, "scene_infos", annotations["scene_infos"])
    entries = [
        _entry(Record(file, {**_mapping(file, token, info), "token": token}), scene, image_size)
        for scene, infos in scenes.items()
        for token, info in _mapping(file, scene, infos).items()
    ]
    if not entries:
        raise InputError(f"{file}: no keyframe is in scene_infos: download it again")
    for one, other in same_times(entries):
        raise InputError(f"{file}: keyframes {one.token} and {other.token} of {one.scene} have the same timestamp")
    return records_of(entries, rig_order({channel for entry in entries for channel in entry.cameras}), splits)


def _entry(info: Record, scene: str, image_size: tuple[int, int]) -> KeyframeEntry:
    token = info.text("token")
    ego2global = _below(info, "ego_pose", f"keyframe {token}").pose()
    cameras: dict[str, CameraEntry] = {}
    for channel, camera in _cameras(info, ego2global, image_size):
        if channel in cameras:
            raise info.fault("camera_sensor", f"of two images in the folder {channel}")
        cameras[channel] = camera
    if not cameras:
        raise info.fault("camera_sensor", "empty")
    labels = info.text("gt_path") if info.fields.get("gt_path") else ""
    return KeyframeEntry(
        token=token,
        scene=scene,
        timestamp=_microseconds(info),
        ego2global=ego2global,
        cameras=cameras,
        labels=_within("gts", labels) if labels else "",
    )


def _cameras(info: Record, ego2global: np.ndarray, image_size: tuple[int, int]) -> Iterator[tuple[str, CameraEntry]]:
    """By channel, which is the folder of the image: sensors have tokens of their own here."""
    for sensor in _mapping(info.table, "camera_sensor", info["camera_sensor"]):
        data = _below(Record(info.table, info["camera_sensor"]), sensor, f"keyframe {info.text('token')}")
        path = _within("imgs", data.text("img_path"))
        channel = Path(path).parent.name
        use = f"{channel} of keyframe {info.text('token')}"
        intrinsics = data.intrinsics("intrinsic")
        data.check_image("intrinsic", intrinsics, image_size)
        poses = (_below(data, name, use).pose() for name in ("extrinsic", "ego_pose"))
        camera = CameraEntry(path, *image_size, intrinsics, *poses)
        if (where := misplaced(camera2keyframe(camera, ego2global))) is not None:
            raise InputError(f"{info.table}: {use} is {where} by its extrinsic and ego_pose: correct them (metres)")
        yield channel, camera


def _within(folder: str, path: str) -> str:
    """A path relative to the root, which the annotations give with or without the folder in which it lies."""
    return path if path.startswith(f"{folder}/") else f"{folder}/{path}"


def _microseconds(info: Record) -> int:
    """Of a timestamp that is a number, or the text of one."""
    text = info.fields.get("timestamp")
    if isinstance(text, str) and text.isdecimal():
        return int(text)
    return info.whole("timestamp", 0)


def _below(record: Record, field: str, use: str) -> Record:
    """The mapping in a field, as a record of its own."""
    token = record.fields.get("token")
    return Record(record.table, {**_mapping(record.table, field, record[field]), "token": token}, use)


def _scenes(annotations: Record, field: str) -> list[str]:
    scenes = annotations.fields.get(field, [])  # "test" has no split
    if not isinstance(scenes, list) or not all(isinstance(scene, str) for scene in scenes):
        raise annotations.fault(field, f"{scenes!r}, not a list of scene names")
    return scenes


def _mapping(file: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{file}: {name} is no mapping {{...}}: download it again")
    return value
