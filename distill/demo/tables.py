"""The JSON tables of a nuScenes dataroot, as the official devkit reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from pyquaternion import Quaternion

from distill.demo import sensors
from distill.demo.keyframe import VERSION, Annotation, KeyframeFacts, SceneId, make_token
from distill.demo.models import CATEGORIES

Row = dict[str, Any]
Tables = dict[str, list[Row]]

_ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.moving", "pedestrian.standing",
)  # fmt: skip
_VISIBILITY = ((0.4, "v0-40"), (0.6, "v40-60"), (0.8, "v60-80"), (math.inf, "v80-100"))
_PER_SCENE = (
    "calibrated_sensor", "ego_pose", "instance", "lidarseg", "log", "map", "sample", "sample_annotation",
    "sample_data", "scene",
)  # fmt: skip


def shared_tables() -> Tables:
    """The tables that do not depend on what was recorded."""
    return {
        "attribute": [_named("attribute", name) for name in _ATTRIBUTES],
        "category": [_named("category", name) | {"index": n} for n, name in enumerate(CATEGORIES)],
        "visibility": [
            {"token": str(n), "level": level, "description": f"visibility of a box in the six images, {level} percent"}
            for n, (_, level) in enumerate(_VISIBILITY, start=1)
        ],
        "sensor": [
            {"token": make_token("sensor", channel), "channel": channel, "modality": modality}
            for channel, modality in [*((c.channel, "camera") for c in sensors.CAMERAS), ("LIDAR_TOP", "lidar")]
        ],
    } | {table: [] for table in _PER_SCENE}


def _named(table: str, name: str) -> Row:
    return {"token": make_token(table, name), "name": name, "description": ""}


def add_scene(tables: Tables, identity: SceneId, facts: list[KeyframeFacts], image_size: tuple[int, int]) -> None:
    """Append the rows of one recorded scene."""
    token = identity.token
    samples = [token("sample", k) for k in range(len(facts))]
    tables["log"].append(
        {
            "token": token("log"),
            "logfile": identity.name,
            "vehicle": "demo",
            "date_captured": "2023-11-14",
            "location": f"{identity.name}-town",
        }
    )
    tables["map"].append(
        {
            "token": token("map"),
            "log_tokens": [token("log")],
            "category": "semantic_prior",
            "filename": identity.map_file,
        }
    )
    tables["scene"].append(
        {
            "token": token("scene"),
            "log_token": token("log"),
            "nbr_samples": len(samples),
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": identity.name,
            "description": f"Procedural town, {facts[0].weather}",
        }
    )
    for k, sample in enumerate(samples):
        row = {"token": sample, "timestamp": identity.timestamp(k), "scene_token": token("scene")}
        tables["sample"].append(row | _links(samples, k))
    tables["calibrated_sensor"] += _calibration(identity, image_size)
    _add_sensor_frames(tables, identity, facts, samples, image_size)
    _add_annotations(tables, identity, facts, samples)


def _links(tokens: list[str], k: int) -> Row:
    return {"prev": tokens[k - 1] if k > 0 else "", "next": tokens[k + 1] if k + 1 < len(tokens) else ""}


def _calibration(identity: SceneId, image_size: tuple[int, int]) -> list[Row]:
    mounts = [(c.channel, c.camera2ego(), c.intrinsics(image_size).tolist()) for c in sensors.CAMERAS]
    return [
        {
            "token": identity.token("calibrated_sensor", channel),
            "sensor_token": make_token("sensor", channel),
            "camera_intrinsic": intrinsics,
            **_pose(sensor2ego),
        }
        for channel, sensor2ego, intrinsics in [*mounts, ("LIDAR_TOP", sensors.lidar2ego(), [])]
    ]


def _add_sensor_frames(
    tables: Tables,
    identity: SceneId,
    facts: list[KeyframeFacts],
    samples: list[str],
    image_size: tuple[int, int],
) -> None:
    for number in range(len(facts[0].sensors)):
        channel = facts[0].sensors[number].channel
        tokens = [identity.token("sample_data", channel, k) for k in range(len(facts))]
        for k, fact in enumerate(facts):
            frame, pose = fact.sensors[number], identity.token("ego_pose", channel, k)
            tables["ego_pose"].append({"token": pose, "timestamp": frame.timestamp, **_pose(frame.ego)})
            picture = channel != "LIDAR_TOP"
            tables["sample_data"].append(
                {
                    "token": tokens[k],
                    "sample_token": samples[k],
                    "ego_pose_token": pose,
                    "calibrated_sensor_token": identity.token("calibrated_sensor", channel),
                    "timestamp": frame.timestamp,
                    "fileformat": "jpg" if picture else "pcd",
                    "is_key_frame": True,
                    "height": image_size[1] if picture else 0,
                    "width": image_size[0] if picture else 0,
                    "filename": frame.file,
                    **_links(tokens, k),
                }
            )
            if not picture:
                row = {"token": tokens[k], "sample_data_token": tokens[k], "filename": identity.lidarseg_file(k)}
                tables["lidarseg"].append(row)


def _add_annotations(tables: Tables, identity: SceneId, facts: list[KeyframeFacts], samples: list[str]) -> None:
    chains: dict[int, list[Row]] = {}
    categories: dict[int, str] = {}
    for k, fact in enumerate(facts):
        for box in fact.annotations:
            chains.setdefault(box.instance, []).append(_annotation(identity, box, samples[k], k))
            categories[box.instance] = box.category
    for instance, chain in chains.items():
        tokens = [row["token"] for row in chain]
        tables["instance"].append(
            {
                "token": identity.token("instance", instance),
                "category_token": make_token("category", categories[instance]),
                "nbr_annotations": len(tokens),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        tables["sample_annotation"] += [row | _links(tokens, n) for n, row in enumerate(chain)]


def _annotation(identity: SceneId, box: Annotation, sample: str, keyframe: int) -> Row:
    """One box, without the links to the boxes before and after it."""
    pose = box.pose.copy()
    pose[2, 3] += 0.5 * box.size[2]
    return {
        "token": identity.token("sample_annotation", box.instance, keyframe),
        "sample_token": sample,
        "instance_token": identity.token("instance", box.instance),
        "visibility_token": str(next(n for n, (limit, _) in enumerate(_VISIBILITY, start=1) if box.visible <= limit)),
        "attribute_tokens": [make_token("attribute", box.attribute)] if box.attribute else [],
        "size": list(box.size),
        "num_lidar_pts": box.points,
        "num_radar_pts": 0,
        **_pose(pose),
    }


def _pose(pose: np.ndarray) -> Row:
    """Translation and quaternion (w, x, y, z) of a rigid transform."""
    return {
        "translation": pose[:3, 3].tolist(),
        "rotation": Quaternion(matrix=pose[:3, :3], rtol=1e-6, atol=1e-6).elements.tolist(),
    }


def write_tables(root: Path, tables: Tables, splits: dict[str, list[str]]) -> None:
    """Write all tables and the split file."""
    folder = root / VERSION
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    (folder / "splits.json").write_text(json.dumps(splits, indent=1))
