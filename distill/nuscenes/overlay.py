"""A picture that tells whether calibration, poses and loader agree: LiDAR points and boxes drawn on the images.

    python -m distill.nuscenes.overlay DATAROOT VERSION TOKEN OUT.png

Points must lie on the poles, kerbs and cars they came from, boxes around their objects. Everything is projected
through the very arrays the network is given.
"""

from __future__ import annotations

import argparse
from math import ceil
from pathlib import Path

import numpy as np
from nuscenes.utils.data_classes import Box
from PIL import Image, ImageDraw
from pyquaternion import Quaternion

from distill import rigid
from distill.command import script
from distill.errors import InputError
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import NuScenesIndex
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.points import project
from distill.nuscenes.tables import Record, Tables, read_tables

IMAGE_SIZE = (450, 800)
COLUMNS = 3
FARTHEST = 60.0  # metres; the colours go from red (near) to blue here
NEAREST_EDGE = 0.1  # metres in front of the camera where box edges are cut
_BOX_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


def draw_overlay(keyframe: Keyframe, boxes: np.ndarray) -> Image.Image:
    """The images of a keyframe with its LiDAR points, coloured by depth, and boxes.

    Args:
        keyframe: whose images and LiDAR.
        boxes: corners in the keyframe's ego frame, metres (B, 8, 3); corners 0-3 are one face, 4-7 the opposite one.
    """
    frames = FrameDataset([keyframe], IMAGE_SIZE, depth_stride=None, lidar=True, labels=None, augmentation=None, seed=0)
    sample = frames[0]
    u_NP, v_NP, depth_NP = project(sample["points"], sample["intrinsics"], sample["cam2ego"])
    height, width = IMAGE_SIZE
    sheet = Image.new("RGB", (COLUMNS * width, ceil(len(keyframe.cameras) / COLUMNS) * height))
    for i, camera in enumerate(keyframe.cameras):
        image = Image.fromarray(sample["images"][i].transpose(1, 2, 0))
        draw = ImageDraw.Draw(image)
        _draw_points(draw, u_NP[i], v_NP[i], depth_NP[i])
        _draw_boxes(draw, boxes, sample["intrinsics"][i], sample["cam2ego"][i])
        draw.text((8, 8), camera.channel, fill="white", stroke_width=2, stroke_fill="black")
        sheet.paste(image, (i % COLUMNS * width, i // COLUMNS * height))
    return sheet


def boxes_of(tables: Tables, keyframe: Keyframe) -> np.ndarray:
    """Corners of the annotated boxes in the keyframe's ego frame, float64 (B, 8, 3); none without such a table."""
    if not tables.file("sample_annotation").exists():
        return np.empty((0, 8, 3))
    annotations = tables.records("sample_annotation").values()
    boxes = [_box(record) for record in annotations if record.text("sample_token") == keyframe.token]
    corners = np.array([box.corners().T for box in boxes]).reshape(-1, 8, 3)
    global2ego = rigid.inverse(keyframe.ego2global)
    return corners @ global2ego[:3, :3].T + global2ego[:3, 3]


def _box(annotation: Record) -> Box:
    pose = annotation.pose()
    return Box(pose[:3, 3], annotation.numbers("size", (3,)), Quaternion(matrix=pose))


def _draw_points(draw: ImageDraw.ImageDraw, u: np.ndarray, v: np.ndarray, depth: np.ndarray) -> None:
    seen = np.flatnonzero((depth > 0) & (u >= 0) & (u < IMAGE_SIZE[1]) & (v >= 0) & (v < IMAGE_SIZE[0]))
    for point in seen[np.argsort(-depth[seen])]:  # nearest last, on top
        hue = int(240 * min(depth[point] / FARTHEST, 1.0))
        column, row = int(u[point]), int(v[point])
        draw.rectangle((column - 1, row - 1, column, row), fill=f"hsv({hue}, 100%, 100%)")


def _draw_boxes(draw: ImageDraw.ImageDraw, boxes: np.ndarray, intrinsics: np.ndarray, cam2ego: np.ndarray) -> None:
    ego2cam = rigid.inverse(cam2ego)
    corners = boxes @ ego2cam[:3, :3].T + ego2cam[:3, 3]
    for box in corners:
        for a, b in _BOX_EDGES:
            edge = _cut_behind(box[a], box[b])
            if edge is not None:
                image = edge @ intrinsics.T
                draw.line([tuple(point) for point in (image[:, :2] / image[:, 2:]).tolist()], fill="white", width=1)


def _cut_behind(start: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """The part of an edge (camera frame) in front of the camera, (2, 3), or None."""
    if max(start[2], end[2]) <= NEAREST_EDGE:
        return None
    behind, front = (start, end) if start[2] < end[2] else (end, start)
    if behind[2] < NEAREST_EDGE:
        behind = behind + (front - behind) * (NEAREST_EDGE - behind[2]) / (front[2] - behind[2])
    return np.stack([behind, front])


@script
def main() -> None:
    """Draw one keyframe from the command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.nuscenes.overlay", description=__doc__)
    parser.add_argument("root", type=Path, help="nuScenes dataroot")
    parser.add_argument("version", help="for example v1.0-mini")
    parser.add_argument("token", help="sample token of the keyframe")
    parser.add_argument("out", type=Path, help="picture to write, .png or .jpg")
    args = parser.parse_args()
    tables = Tables(args.root, args.version)  # the boxes are not in the cached index
    keyframe = NuScenesIndex(args.root, args.version, read_tables(tables)).keyframe(args.token)
    sheet = draw_overlay(keyframe, boxes_of(tables, keyframe))
    try:
        sheet.save(args.out)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{args.out}: cannot write it ({error}): give a .png or .jpg in a folder that exists"
        ) from error


if __name__ == "__main__":
    main()
