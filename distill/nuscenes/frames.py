"""Keyframes as frames to train on: images, calibration and, on request, LiDAR, depth, rays and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Dataset

from distill.augment import Augmentation, ImageTransform, Transform
from distill.errors import InputError
from distill.frame import Calibration, Frame, Mirror
from distill.nuscenes.images import read_images
from distill.nuscenes.index import Keyframes
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.labels import LabelSource
from distill.nuscenes.points import depth_maps, read_points
from distill.nuscenes.rays import RayDraw
from distill.rigid import inverse

F = TypeVar("F", bound=Frame)

_RAYS = 1  # random numbers beside those of the augmentation


class Draw(NamedTuple):
    """A frame that is drawn for training.

    Attributes:
        frame: index of the keyframe.
        turn: which of its augmentations.
    """

    frame: int
    turn: int


class FrameDataset(Dataset[Frame]):
    """One `Frame` per keyframe, by its index or by a `Draw`; an index alone stands for turn 0.

    Args:
        keyframes: what to load; with history, `Keyframes`, which know what came before.
        image_size: (H, W) of the network input.
        depth_stride: pixels per cell of the depth maps, None for no depth.
        lidar: whether frames carry points.
        labels: where they are read; None for frames without.
        augmentation: None for none.
        bicubic: without augmentation, images are those of `ImageTransform.cover` instead of `.fit`.
        seed: with turn and index it determines the augmentation.
        rays: draws them; None for frames without; with them, `Keyframes`, which know their neighbours.
        history: how many earlier keyframes of the scene a frame brings along (`Frame.past`).
        calibration: whether frames, those of the past too, carry theirs part by part (`Frame.calibration`).

    Raises:
        InputError: H or W is not a multiple of depth_stride.
    """

    def __init__(
        self,
        keyframes: Sequence[Keyframe],
        image_size: tuple[int, int],
        depth_stride: int | None,
        lidar: bool,
        labels: LabelSource | None,
        augmentation: Augmentation | None,
        seed: int,
        bicubic: bool = False,
        history: int = 0,
        rays: RayDraw | None = None,
        calibration: bool = False,
    ):
        if depth_stride is not None and any(side % depth_stride for side in image_size):
            raise InputError(f"image_size={list(image_size)} must be multiples of the depth stride {depth_stride}")
        self.keyframes = keyframes
        self.image_size = (image_size[0], image_size[1])
        self.depth_stride = depth_stride
        self.lidar = lidar
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed
        self.bicubic = bicubic
        self.history = history
        self.rays = rays
        self.calibration = calibration
        self._recent: dict[tuple[str, tuple[ImageTransform, ...]], tuple[Frame, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.keyframes)

    def __getitem__(self, drawn: int | Draw) -> Frame:
        frame, mirror = self.load(drawn)
        return frame.mirrored(mirror)

    def load(self, drawn: int | Draw) -> tuple[Frame, Mirror]:
        """A frame in the world as recorded (its images already transformed), and how the world is to be mirrored.

        Whoever adds something to it, such as a teacher, adds it in between.
        """
        index, turn = drawn if isinstance(drawn, Draw) else Draw(drawn, 0)
        keyframe = self.keyframes[index]
        transform = self._transform(keyframe, index, turn)
        frame, shown = self._seen(keyframe, transform)
        if self.lidar or self.depth_stride is not None:
            points = self._scan(keyframe)
            frame = replace(frame, points=points if self.lidar else None)
            if self.depth_stride is not None:
                cam2ego = self._ego2grid(keyframe) @ keyframe.cam2ego()
                depth = depth_maps(points, frame.intrinsics, cam2ego, shown, self.depth_stride)
                frame = replace(frame, depth=depth)
        if self.rays is not None:
            frame = replace(frame, rays=self._rays(self.rays, keyframe, index, turn))
        if self.history:
            frame = replace(frame, past=self._past(index, keyframe, transform))
        for forgotten in [*self._recent][: -1 - self.history]:
            del self._recent[forgotten]
        return (frame if self.labels is None else with_labels(frame, self.labels, keyframe)), transform.mirror

    def _seen(self, keyframe: Keyframe, transform: Transform) -> tuple[Frame, np.ndarray]:
        """Images and calibration, and where the images show anything; remembered for the next keyframe's past."""
        key = keyframe.token, transform.images
        if key not in self._recent:
            self._recent[key] = self._look(keyframe, transform)
        self._recent[key] = self._recent.pop(key)  # the latest is the last
        return self._recent[key]

    def _look(self, keyframe: Keyframe, transform: Transform) -> tuple[Frame, np.ndarray]:
        images, intrinsics, shown = read_images(keyframe, transform.images, self.image_size)
        ego2grid, lidar2ego = self._ego2grid(keyframe), keyframe.lidar2ego
        frame = Frame(
            token=keyframe.token,
            scene=keyframe.scene,
            channels=tuple(camera.channel for camera in keyframe.cameras),
            images=images,
            intrinsics=intrinsics,
            cam2ego=(ego2grid @ keyframe.cam2ego()).astype(np.float32),
            lidar2ego=None if lidar2ego is None else (ego2grid @ lidar2ego).astype(np.float32),
            calibration=self._calibration(keyframe, transform) if self.calibration else None,
        )
        return frame, shown

    def _calibration(self, keyframe: Keyframe, transform: Transform) -> Calibration:
        """That of the cameras as recorded, and what `transform` does to their images."""
        cameras = keyframe.cameras
        parts = {
            "intrinsics": [camera.intrinsics for camera in cameras],
            "source2image": [image.matrix(self.image_size) for image in transform.images],
            "cam2ego": [camera.cam2ego for camera in cameras],
            "ego2global": [camera.ego2global for camera in cameras],
            "world": np.eye(4),
        }
        return Calibration(**{name: np.asarray(matrices, np.float32) for name, matrices in parts.items()})

    def _scan(self, keyframe: Keyframe) -> np.ndarray:
        """LiDAR points in the frame of the grid."""
        points, ego2grid = read_points(keyframe), self._ego2grid(keyframe)
        points[:, :3] = points[:, :3] @ ego2grid[:3, :3].T + ego2grid[:3, 3]
        return points

    def _rays(self, draw: RayDraw, keyframe: Keyframe, index: int, turn: int) -> np.ndarray:
        """Some rays of a keyframe and its neighbours, others at each turn."""
        assert isinstance(self.keyframes, Keyframes)
        neighbours = self.keyframes.around(index, draw.neighbours)
        return draw.draw(keyframe, neighbours, np.random.default_rng((self.seed, turn, index, _RAYS)))

    def _past(self, index: int, keyframe: Keyframe, transform: Transform) -> tuple[Frame, ...]:
        """The last keyframes of the scene, the latest first; at its beginning the earliest stands in for those before.

        Their images are transformed as those of the present.
        """
        assert isinstance(self.keyframes, Keyframes)
        found = self.keyframes.before(index, self.history)
        found += [found[-1] if found else keyframe] * (self.history - len(found))
        global2present = self._ego2grid(keyframe) @ inverse(keyframe.ego2global)
        past = []
        for earlier in found:
            frame, _ = self._seen(earlier, transform)
            points = self._scan(earlier) if self.lidar else None
            ego2present = global2present @ earlier.ego2global @ inverse(self._ego2grid(earlier))
            past.append(replace(frame, points=points, ego2present=ego2present.astype(np.float32)))
        return tuple(past)

    def _ego2grid(self, keyframe: Keyframe) -> np.ndarray:
        """The keyframe's ego frame to the frame of the grid, float64 (4, 4)."""
        return np.eye(4) if self.labels is None else self.labels.grid.from_ego(keyframe.lidar2ego)

    def _transform(self, keyframe: Keyframe, index: int, turn: int) -> Transform:
        sizes = [(camera.height, camera.width) for camera in keyframe.cameras]
        if self.augmentation is None:
            return Transform.fit(sizes, self.image_size, self.bicubic)
        rng = np.random.default_rng((self.seed, turn, index))
        return self.augmentation.draw(rng, sizes, self.image_size)


def with_labels(frame: F, labels: LabelSource, keyframe: Keyframe) -> F:
    """The frame with what `labels` say about its keyframe; where they say nothing: all free, all unobserved."""
    found = labels.read(keyframe)
    arrays: dict[str, Any] = found or labels.unlabelled()
    return replace(frame, **arrays, labelled=found is not None)
