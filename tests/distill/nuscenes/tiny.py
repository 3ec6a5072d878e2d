"""A nuScenes dataroot of three keyframes with known calibration, written table by table."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pyquaternion import Quaternion

from distill.nuscenes.layout import CAMERAS, LIDAR

VERSION = "v1.0-tiny"
WIDTH, HEIGHT = 250, 141  # not multiples of 8: JPEG decoding at a reduced scale rounds up
FOCAL = 120.0
# Listed out of order; scene-0002 has two keyframes half a second apart.
SAMPLES = (("late", "scene-0002", 1_500_000), ("alone", "scene-0001", 9_000_000), ("early", "scene-0002", 1_000_000))


def gradient() -> Image.Image:
    """An image whose red channel is the column and whose green channel is the row."""
    red, green = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 100)], axis=-1).astype(np.uint8))


def write_dataroot(root: Path, version: str = VERSION, cameras: Sequence[str] = CAMERAS) -> Path:
    """Cameras look outwards, 60 degrees apart; the car drives along global x at 10 m/s, turned by 30 degrees."""
    tables = _calibration_tables(cameras)
    tables |= {name: [] for name in ("sample", "sample_data", "ego_pose", "sample_annotation")}
    scenes = sorted({scene for _, scene, _ in SAMPLES}, reverse=True)
    tables["scene"] = [{"token": f"{name}-token", "name": name, "log_token": "log"} for name in scenes]
    for token, scene, time in SAMPLES:
        # The links are wrong on purpose: neighbours come from the time.
        tables["sample"].append(
            {"token": token, "timestamp": time, "prev": "", "next": "", "scene_token": f"{scene}-token"}
        )
        for i, channel in enumerate((LIDAR, *cameras)):
            _add_sample_data(tables, root, token, channel, time - 10_000 * i)
    tables["sample_annotation"].append(
        {
            "token": "box",
            "sample_token": "alone",
            "instance_token": "car-1",
            "attribute_tokens": [],
            "visibility_token": "1",
            "translation": list(ego_pose(9_000_000)[0] + Quaternion(axis=(0, 0, 1), degrees=30).rotate([12, 0, 1])),
            "rotation": [1, 0, 0, 0],
            "size": [2.0, 4.0, 2.0],
        }
    )
    (root / version).mkdir(parents=True)
    for name, rows in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows))
    (root / version / "splits.json").write_text(json.dumps({"train": ["scene-0002"], "val": ["scene-0001"]}))
    (root / "maps").mkdir()
    Image.new("L", (8, 8)).save(root / "maps/map.png")
    return root


def ego_pose(time: int) -> tuple[np.ndarray, Quaternion]:
    return np.array([1000 + 10 * time / 1e6, 500, 0.0]), Quaternion(axis=(0, 0, 1), degrees=30)


def _calibration_tables(cameras: Sequence[str]) -> dict[str, list]:
    tables: dict[str, list] = {"sensor": [], "calibrated_sensor": []}
    forward = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))  # camera z along ego x
    for i, channel in enumerate((LIDAR, *cameras)):
        camera = channel != LIDAR
        rotation = Quaternion(axis=(0, 0, 1), degrees=60 - 60 * (i - 1)) * forward if camera else Quaternion()
        tables["sensor"].append({"token": channel, "channel": channel, "modality": "camera" if camera else "lidar"})
        tables["calibrated_sensor"].append(
            {
                "token": f"calibrated-{channel}",
                "sensor_token": channel,
                "translation": [1.0, 0.1 * i, 1.5],
                "rotation": list(rotation),
                "camera_intrinsic": [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]] if camera else [],
            }
        )
    tables["log"] = [{"token": "log", "logfile": "log"}]
    tables["map"] = [{"token": "map", "log_tokens": ["log"], "filename": "maps/map.png"}]
    tables["category"] = [{"token": "car", "name": "vehicle.car", "index": 1}]
    tables["instance"] = [{"token": "car-1", "category_token": "car"}]
    return tables | {"attribute": [], "visibility": [{"token": "1", "level": "v0-40"}]}


def _add_sample_data(tables: dict[str, list], root: Path, sample: str, channel: str, time: int) -> None:
    filename = f"samples/{channel}/{sample}{'.pcd.bin' if channel == LIDAR else '.jpg'}"
    path = root / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    if channel == LIDAR:
        rng = np.random.default_rng(time)
        scan = np.column_stack([rng.uniform(-30, 30, (400, 2)), rng.uniform(-1.5, 3, 400), np.full((400, 2), 51.0)])
        scan.astype(np.float32).tofile(path)
    else:
        gradient().save(path, quality=100, subsampling=0)
    translation, rotation = ego_pose(time)
    tables["ego_pose"].append(
        {
            "token": f"{sample}-{channel}",
            "timestamp": time,
            "translation": list(translation),
            "rotation": list(rotation),
        }
    )
    tables["sample_data"].append(
        {
            "token": f"{sample}-{channel}",
            "sample_token": sample,
            "ego_pose_token": f"{sample}-{channel}",
            "calibrated_sensor_token": f"calibrated-{channel}",
            "timestamp": time,
            "is_key_frame": True,
            "width": 0 if channel == LIDAR else WIDTH,
            "height": 0 if channel == LIDAR else HEIGHT,
            "filename": filename,
        }
    )
