"""Made-up results and pictures of an evaluation, and the page that is written from them."""

import numpy as np

from distill.classes import OCC3D_CLASSES
from distill.grids import VoxelGrid
from distill.nuscenes.layout import CAMERAS
from student.evaluation.page import KeyframePictures, write_page

GRID = VoxelGrid("small", "ego", (-8.0, -6.0, -1.0), 1.0, (16, 12, 4))
NAMES = OCC3D_CLASSES.names


def a_source(seed):
    rng = np.random.default_rng(seed)

    def percents(count):
        return rng.uniform(0, 100, count).tolist()

    def by_class(values):
        return dict(zip(NAMES, values, strict=True))

    def curve():
        voxels = rng.integers(1, 10**6, 5)
        return {"accuracy": percents(5), "confidence": percents(5), "voxels": voxels.tolist()}

    def bands(*labels):
        scores = {"mIoU": percents(len(labels)), "geometric IoU": percents(len(labels))}
        return {"labels": list(labels), "voxels": [1234567890 + place for place in range(len(labels))]} | scores

    metrics = ("Occ3D-17 mIoU", "MonoOcc-16 mIoU", "RayIoU", "F-score", "ECE", "ECE occupied", "flicker")
    return {
        "kind": "checkpoint",
        "path": f"runs/{seed}.pt",
        "facts": {"sha256": f"{seed:064x}", "weights": "EMA", "mask in training": ["camera", "lidar"]},
        "metrics": dict(zip(metrics, percents(7), strict=True))
        | {"flicker pairs": 4321, "Occ3D-17 geometric IoU": None},
        "per_class": {
            "Occ3D-17 IoU": by_class([None, *percents(17)]),
            **{name: by_class(percents(18)) for name in ("MonoOcc-16 IoU", "RayIoU@1", "RayIoU@2", "RayIoU@4")},
            **{name: by_class(percents(18)) for name in ("F-score", "ECE", "flicker")},
            "labelled voxels": by_class(rng.integers(1, 10**7, 18).tolist()),
        },
        "confusion": rng.integers(0, 10**6, (18, 18)).tolist(),
        "bands": {
            "distance": bands("0 to 10 m", "10 to 20 m"),
            "height": bands("below 0 m", "0 to 1 m", "2 m and above"),
        },
        "reliability": {"all": curve(), "occupied": curve()},
        "cost": {
            "parameters": 6432178,
            "gflop": 21.347,
            "latency_ms": {"median": 188.412, "p95": 203.966, "runs": 20},
            "peak_memory_mb": None,
            "device": "a processor",
            "precision": "float32",
            "image_size": [128, 352],
        },
        "robustness": [
            {"condition": "clean", "miou": 40.0, "geometric_iou": 50.0},
            {"condition": "dropped CAM_FRONT", "miou": 31.25, "geometric_iou": 44.5},
        ],
    }


def results_of(*names):
    scored = {
        "data": "demo",
        "dataroot": "data/demo/v1.0-demo",
        "split": "val",
        "keyframes": 1234,
        "unlabelled": 7,
        "grid": "small",
        "convention": "Occ3D-17",
        "classes": list(NAMES),
        "free": 17,
        "voxels": "voxels of mask_camera",
        "metric": "one confusion matrix",
        "code": "0.1.0 abc",
        "self_check": "ground truth scores 100",
        "command": "occ-eval checkpoint=a",
    }
    return {"scored": scored, "sources": {name: a_source(seed) for seed, name in enumerate(names)}}


def a_verdict():
    """A gain that is shown, a loss that is not, and one of a class that is."""

    def gain(value, *interval, **more):
        return {"gain": value, "interval": list(interval) or None, **more}

    return {
        "student": "student",
        "control": "control",
        "teacher": "teacher",
        "keyframes": 18,
        "resamples": 1000,
        "level": 0.95,
        "steps": [240, 240],
        "not trained alike": [],
        "gains": {
            "mIoU": gain(1.9, 0.8, 3.0, **{"share of the gap": 0.06}),
            "geometric IoU": gain(1.0, 0.5, 1.5, **{"share of the gap": 0.1}),
            "RayIoU": gain(-0.2, -1.0, 0.6, **{"share of the gap": -0.01}),
        },
        "worse": [
            {"class": "construction_vehicle", "keyframes": 18, **gain(-4.0, -6.0, -2.0)},
            {"class": "bus", "keyframes": 2, **gain(-1.0)},
        ],
        "unlearnt": ["construction_vehicle"],
    }


def a_keyframe(results, grid=GRID, voxel=(12, 8, 0)):
    """Every volume: one layer of cars at the bottom, one pedestrian above."""
    keys = ["ground truth", *results["sources"]]
    volume = np.full(grid.shape, 17, dtype=np.uint8)
    volume[:, :, 0] = 4
    volume[voxel] = 7
    mask = np.ones(grid.shape, dtype=bool)
    mask[:2] = False
    image = np.zeros((27, 48, 3), dtype=np.uint8)
    return KeyframePictures(
        title="best",
        token="token0",
        scene="scene-0001",
        miou=dict.fromkeys(results["sources"], 12.34),
        cameras=dict.fromkeys(CAMERAS, image),
        overlays={key: [image + 9] * 6 for key in keys},
        bev={key: np.zeros((8, 8, 3), dtype=np.uint8) for key in keys},
        volumes=dict.fromkeys(keys, volume),
        mask_XYZ=mask,
    )


def page_of(tmp_path, results, pictures=(), classes=OCC3D_CLASSES, grid=GRID):
    path = tmp_path / "report.html"
    write_page(path, results, classes, grid, list(pictures))
    return path.read_text(encoding="utf-8")
