"""The keyframes that are shown: which ones, and their pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.errors import InputError
from distill.nuscenes.images import open_image
from distill.nuscenes.index import Camera, Keyframe, Keyframes
from distill.pictures.cameras import keyframe_overlays
from distill.pictures.panel import draw_panel
from distill.pictures.voxels import Painter
from student.evaluation.opening import Subject
from student.evaluation.page import KeyframePictures
from student.evaluation.sources import Prediction, Source

BY_MIOU = ("best", "median", "worst")
CAMERA_PIXELS = 600  # width of a camera picture
BEV_SCALE = 2  # pixels per voxel

Run = Callable[[Source, Keyframes], list[tuple[Keyframe, Prediction, dict[str, Any]]]]


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


def draw_pictures(
    wanted: Sequence[str], subject: Subject, miou: dict[str, dict[str, float]], run: Run, output: Path
) -> list[KeyframePictures]:
    """Predict the chosen keyframes once more, draw them, and save a panel of each as PNG.

    Args:
        wanted: as in `check_wanted`.
        subject: what was scored.
        miou: source -> sample token -> mIoU; the first source decides.
        run: predicts some keyframes.
        output: panels are written to `<output>/panels`.
    """
    if not wanted:
        return []
    titles = choose(wanted, miou[subject.sources[0].name])
    keyframes = subject.index.select(list(titles))
    volumes: list[dict[str, np.ndarray]] = [{} for _ in keyframes]
    masks: list[np.ndarray] = []
    for source in subject.sources:
        predicted = run(source, keyframes)
        masks = [sample["mask_camera"].numpy() for _, _, sample in predicted]
        for volume, (_, prediction, sample) in zip(volumes, predicted, strict=True):
            volume["ground truth"] = sample["semantics"].numpy()
            volume[source.name] = prediction.semantics_XYZ.cpu().numpy()
    painter = Painter(subject.grid, subject.classes)
    pictures = []
    for keyframe, volume, mask_XYZ in zip(keyframes, volumes, masks, strict=True):
        cameras = [_thumbnail(camera, keyframe.token) for camera in keyframe.cameras]
        _save(
            draw_panel(painter, cameras, volume, mask_XYZ), output / "panels" / f"{keyframe.scene}_{keyframe.token}.png"
        )
        shown = {
            name: keyframe_overlays(keyframe, cameras, semantics_XYZ, mask_XYZ, subject.grid, subject.classes)
            for name, semantics_XYZ in volume.items()
        }
        pictures.append(
            KeyframePictures(
                title=titles[keyframe.token],
                token=keyframe.token,
                scene=keyframe.scene,
                miou={name: of[keyframe.token] for name, of in miou.items()},
                cameras=cameras,
                overlays=shown,
                bev={name: painter.bev_image(semantics, mask_XYZ, BEV_SCALE) for name, semantics in volume.items()},
                volumes=volume,
                mask_XYZ=mask_XYZ,
            )
        )
    return pictures


def _save(panel: np.ndarray, path: Path) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(panel).save(path)
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error}): choose another output=") from error


def _thumbnail(camera: Camera, token: str) -> np.ndarray:
    """A camera picture, RGB uint8, CAMERA_PIXELS wide."""
    image = open_image(camera, token, CAMERA_PIXELS / camera.width)
    return np.asarray(image.resize((CAMERA_PIXELS, round(CAMERA_PIXELS * camera.height / camera.width))))
