"""Keyframes as training samples: images, calibration and, on request, LiDAR, depth and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distill.augment import Augmentation, Transform
from distill.errors import InputError
from distill.gaussians import Gaussians
from distill.nuscenes.images import read_images
from distill.nuscenes.index import Keyframe
from distill.nuscenes.labels import LabelSource
from distill.nuscenes.points import depth_maps, read_points


class FrameDataset(Dataset[dict[str, Any]]):
    """One sample per keyframe.

    "ego" in a sample is the frame of the grid its labels lie on: the keyframe's ego frame for Occ3D and without labels,
    the LIDAR_TOP frame for SurroundOcc, where `lidar2ego` is the identity. A sample is a dict of numpy arrays
    (H, W = `image_size`; X, Y, Z = the grid):
        token, scene: str
        images: uint8 (6, 3, H, W) RGB; a camera that the keyframe lacks is black and looks into the sky
        intrinsics: float32 (6, 3, 3) of these images; cam2ego: float32 (6, 4, 4), each camera at its own time
        lidar2ego: float32 (4, 4); a LIDAR_TOP point is seen at intrinsics @ (inv(cam2ego) @ lidar2ego)[:3]
        points: float32 (P, 4) x, y, z, intensity in the ego frame [lidar]
        depth: float32 (6, H / depth_stride, W / depth_stride) metres, 0 = none [depth_stride]
        semantics: uint8 (X, Y, Z); mask_camera, mask_lidar: bool (X, Y, Z); labelled: bool. Without a label file:
            all free, all unobserved, False [labels]

    Args:
        keyframes: what to load.
        image_size: (H, W) of the network input.
        depth_stride: pixels per cell of the depth maps, None for no depth.
        lidar: whether samples carry points.
        labels: where they are read; None for samples without.
        augmentation: None for none.
        bicubic: without augmentation, images are those of `ImageTransform.cover` instead of `.fit`.
        seed: with the epoch and the index it determines the augmentation.

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
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change

    def __len__(self) -> int:
        return len(self.keyframes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample, transform = self.load(index)
        return transform.apply(sample)

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentations of this epoch; they do not depend on what was loaded before."""
        self._epoch.fill_(epoch)

    def load(self, index: int) -> tuple[dict[str, Any], Transform]:
        """A sample in the world as recorded (its images already transformed), and the transform still to `apply`.

        Whoever adds signals of their own, such as a teacher, adds them in between.
        """
        keyframe = self.keyframes[index]
        transform = self._transform(keyframe, index)
        images, intrinsics, windows = read_images(keyframe, transform.images, self.image_size)
        ego2grid = self._ego2grid(keyframe)
        cam2ego = ego2grid @ keyframe.cam2ego()
        sample: dict[str, Any] = {
            "token": keyframe.token,
            "scene": keyframe.scene,
            "images": images,
            "intrinsics": intrinsics,
            "cam2ego": cam2ego.astype(np.float32),
            "lidar2ego": (ego2grid @ keyframe.lidar2ego).astype(np.float32),
        }
        if self.lidar or self.depth_stride is not None:
            points = read_points(keyframe)
            points[:, :3] = points[:, :3] @ ego2grid[:3, :3].T + ego2grid[:3, 3]
            if self.lidar:
                sample["points"] = points
            if self.depth_stride is not None:
                sample["depth"] = depth_maps(points, intrinsics, cam2ego, windows, self.image_size, self.depth_stride)
        if self.labels is not None:
            labels = self.labels.read(keyframe)
            sample |= labels or self.labels.unlabelled()
            sample["labelled"] = labels is not None
        return sample, transform

    def _ego2grid(self, keyframe: Keyframe) -> np.ndarray:
        """The keyframe's ego frame to the frame of the grid, float64 (4, 4)."""
        if self.labels is None or self.labels.grid.frame == "ego":
            return np.eye(4)
        return np.linalg.inv(keyframe.lidar2ego)

    def _transform(self, keyframe: Keyframe, index: int) -> Transform:
        sizes = [(camera.height, camera.width) for camera in keyframe.cameras]
        if self.augmentation is None:
            return Transform.fit(sizes, self.image_size, self.bicubic)
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        return self.augmentation.draw(rng, sizes, self.image_size)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: arrays stacked to tensors with a leading batch axis; text, points, Gaussians and dicts in lists."""
    return {key: _collated(key, [sample[key] for sample in samples]) for key in samples[0]}


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`; copies from pinned memory do not block."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(item) for item in value]
        if isinstance(value, Gaussians):
            return value.to(device)
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return {key: move(value) for key, value in batch.items()}


def _collated(key: str, values: list[Any]) -> Tensor | list[Any]:
    if isinstance(values[0], str | Gaussians | dict):
        return values
    if key == "points":  # scans differ in length
        return [torch.from_numpy(points) for points in values]
    return torch.from_numpy(np.stack(values))
