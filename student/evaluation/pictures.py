"""The keyframes that are shown: which ones, and their pictures.

Letters: X Y Z voxel axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from distill.errors import InputError
from distill.nuscenes.images import open_image
from distill.nuscenes.index import Keyframes
from distill.nuscenes.keyframe import Camera, Keyframe
from distill.pictures.cameras import keyframe_overlays
from distill.pictures.panel import draw_panel
from distill.pictures.voxels import Painter
from student.evaluation.page import KeyframePictures

BY_MIOU = ("best", "median", "worst")
CAMERA_PIXELS = 600  # width of a camera picture
BEV_SCALE = 2  # pixels per voxel


class Volumes(NamedTuple):
    """What is drawn of one keyframe.

    Attributes:
        semantics: "ground truth" and each source -> class ids, uint8 (X, Y, Z).
        mask_XYZ: bool, the voxels that are scored.
    """

    semantics: dict[str, np.ndarray]
    mask_XYZ: np.ndarray


def check_wanted(wanted: Sequence[str], labelled: Keyframes) -> None:
    """Raise InputError unless `wanted` are words of `BY_MIOU` and sample tokens of labelled keyframes."""
    unknown = [name for name in wanted if name not in {*BY_MIOU, *labelled.tokens}]
    if unknown:
        raise InputError(
            f"pictures={list(wanted)}: {unknown[0]} is neither best, median, worst nor the sample token of a keyframe "
            "that is scored"
        )


def choose(wanted: Sequence[str], miou: dict[str, float]) -> dict[str, str]:
    """Sample token -> why it is shown, by the mIoU of the keyframes; those without a number come last."""
    ranking = sorted(miou, key=lambda token: -math.inf if math.isnan(miou[token]) else miou[token], reverse=True)
    by_miou = {"best": ranking[0], "median": ranking[len(ranking) // 2], "worst": ranking[-1]}
    titles: dict[str, str] = {}
    for name in wanted:
        token, title = (by_miou[name], name) if name in by_miou else (name, "by token")
        titles[token] = f"{titles[token]}, {title}" if token in titles else title
    return titles


def draw(
    painter: Painter, keyframe: Keyframe, volumes: Volumes, title: str, miou: dict[str, float]
) -> KeyframePictures:
    """Everything that the page shows of one keyframe.

    Args:
        painter: of the grid and class set of the volumes.
        keyframe: whose cameras.
        volumes: what is drawn.
        title: why it is shown.
        miou: source -> mIoU of this keyframe.
    """
    grid, classes, mask_XYZ = painter.grid, painter.classes, volumes.mask_XYZ
    cameras = {camera.channel: _thumbnail(camera, keyframe.token) for camera in keyframe.cameras}
    return KeyframePictures(
        title=title,
        token=keyframe.token,
        scene=keyframe.scene,
        miou=miou,
        cameras=cameras,
        overlays={
            name: keyframe_overlays(keyframe, list(cameras.values()), semantics_XYZ, mask_XYZ, grid, classes)
            for name, semantics_XYZ in volumes.semantics.items()
        },
        bev={
            name: painter.bev_image(semantics_XYZ, mask_XYZ, BEV_SCALE)
            for name, semantics_XYZ in volumes.semantics.items()
        },
        volumes=volumes.semantics,
        mask_XYZ=mask_XYZ,
    )


def save_panel(folder: Path, painter: Painter, pictures: KeyframePictures) -> None:
    """Write a panel of a keyframe as `<folder>/<scene>_<sample token>.png`.

    Raises:
        InputError: it cannot be written.
    """
    path = folder / f"{pictures.scene}_{pictures.token}.png"
    panel = draw_panel(painter, pictures.cameras, pictures.volumes, pictures.mask_XYZ)
    try:
        folder.mkdir(exist_ok=True)
        Image.fromarray(panel).save(path)
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error}): choose another output=") from error


def _thumbnail(camera: Camera, token: str) -> np.ndarray:
    """A camera picture, RGB uint8, CAMERA_PIXELS wide."""
    image = open_image(camera, token, CAMERA_PIXELS / camera.width)
    return np.asarray(image.resize((CAMERA_PIXELS, round(CAMERA_PIXELS * camera.height / camera.width))))
