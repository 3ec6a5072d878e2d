"""The demo world as somebody's own rig: an index (docs/own_data.md) of five cameras, without LiDAR and without labels.

    python -m distill.demo.rig data/demo data/rig.jsonl

A world that is not there yet is made, that of data=demo.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from distill.command import script
from distill.demo.generate import MANIFEST, ensure_world
from distill.demo.keyframe import VERSION as WORLD
from distill.files import write_durably
from distill.nuscenes.index import KeyframeIndex, load_index
from distill.nuscenes.keyframe import Camera, Keyframe
from distill.nuscenes.rig_format import FORMAT, VERSION

# what this rig calls the cameras that it has; nobody looks back
CAMERAS = {
    "CAM_FRONT": "front",
    "CAM_FRONT_LEFT": "front_left",
    "CAM_FRONT_RIGHT": "front_right",
    "CAM_BACK_LEFT": "back_left",
    "CAM_BACK_RIGHT": "back_right",
}


def rig_of(index: KeyframeIndex, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and frames of an index of one's own, JSON-ready.

    Args:
        index: of a demo world.
        folder: what paths are to be relative to.
    """
    keyframes = list(index.keyframes("all"))
    cameras = {CAMERAS[each.channel]: _calibration(each) for each in keyframes[0].cameras if each.channel in CAMERAS}
    splits = {split: list(dict.fromkeys(index.keyframes(split).scenes)) for split in index.splits}
    header = {"format": FORMAT, "version": VERSION, "cameras": cameras, "splits": splits}
    return header, [_frame(keyframe, folder) for keyframe in keyframes]


def _calibration(camera: Camera) -> dict[str, Any]:
    size = {"width": camera.width, "height": camera.height}
    return {**size, "intrinsics": camera.intrinsics.tolist(), "cam2ego": camera.cam2ego.tolist()}


def _frame(keyframe: Keyframe, folder: Path) -> dict[str, Any]:
    return {
        "token": keyframe.token,
        "scene": keyframe.scene,
        "timestamp": keyframe.timestamp,
        "ego2global": keyframe.ego2global.tolist(),
        "cameras": {
            CAMERAS[camera.channel]: {
                "path": os.path.relpath(camera.path, folder),
                "ego2global": camera.ego2global.tolist(),
            }
            for camera in keyframe.cameras
            if camera.path is not None and camera.channel in CAMERAS
        },
    }


@script
def main() -> None:
    """Write the index from the command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.demo.rig", description=__doc__)
    parser.add_argument("root", type=Path, help="a demo world")
    parser.add_argument("index", type=Path, help="file to write, .jsonl")
    args = parser.parse_args()
    root = args.root.absolute()
    if not (root / MANIFEST).is_file():
        world = OmegaConf.load(str(files("conf") / "data/demo.yaml")).world
        ensure_world(root, instantiate(world), workers=os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as cache:
        header, frames = rig_of(load_index(root, WORLD, Path(cache)), args.index.absolute().parent)
    args.index.parent.mkdir(parents=True, exist_ok=True)
    write_durably(args.index, "".join(json.dumps(part) + "\n" for part in (header, *frames)).encode())
    print(f"{args.index}: {len(frames)} frames of {', '.join(header['cameras'])}")


if __name__ == "__main__":
    main()
