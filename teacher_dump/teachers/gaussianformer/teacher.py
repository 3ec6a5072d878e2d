"""GaussianFormer as a teacher: its test-time image pipeline, its Gaussians, and what they say about any grid.

Letters: B batch, N cameras, H W image rows and columns, X Y Z voxel axes, V voxels, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distill.checkpoint import resolve, sha256_of
from distill.errors import InputError
from distill.frame import Frame
from distill.grids import SURROUNDOCC, VoxelGrid
from distill.nuscenes.layout import upstream_order
from distill.signals.gaussians import render
from distill.store import GaussianKind
from teacher_dump.teachers import TeacherPrediction
from teacher_dump.teachers.gaussianformer.draws import SeededDraws
from teacher_dump.teachers.gaussianformer.network import GaussianFormer, check_image_size
from teacher_dump.teachers.gaussianformer.weights import OFFICIAL

# of RGB images, 0..255
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class GaussianFormerTeacher:
    """Predicts with upstream's weights; see `teacher_dump.teachers.Teacher`.

    Gaussians are continuous: whatever the grid, they are evaluated at its voxel centres
    (`distill.signals.gaussians.render`).

    Args:
        checkpoint: upstream's `.pth` file.
        network: the network, without weights.
        image_size: [H, W] of its input, multiples of 32; [864, 1600] as upstream.
        grid: where to predict.
        seed: of the lifter's random numbers.

    Raises:
        InputError: the size is no such multiple; the file is missing or does not fit the network; a keyframe that
            lifts no pixel.

    Attributes:
        gaussians: what the Gaussians of all keyframes have in common, for the store.
    """

    def __init__(
        self, checkpoint: str, network: GaussianFormer, image_size: list[int], grid: VoxelGrid, seed: int
    ) -> None:
        check_image_size(*image_size)
        OFFICIAL.load(network, resolve(checkpoint))
        self.network = network.eval()
        self.grid = grid
        self.seed = seed
        self.inputs: dict[str, Any] = {"image_size": image_size, "lidar": False, "depth_stride": None, "bicubic": True}
        self.checkpoint_sha256 = sha256_of(resolve(checkpoint))
        head, count = network.head, len(network.lifter.instance_feature) + network.head.empty
        self.gaussians = GaussianKind(count, head.form, head.reach, head.det, SURROUNDOCC)

    def to(self, device: torch.device) -> GaussianFormerTeacher:
        """Move the network to a device and return itself."""
        self.network.to(device)
        return self

    @torch.inference_mode()
    def predict(self, frame: Frame) -> TeacherPrediction:
        """Log-probabilities, coverage and Gaussians of a batch, one keyframe after the other."""
        # the order of the cameras decides which point farthest point sampling starts from
        order, lidar2ego_B44 = upstream_order(frame.channels[0]), frame.lidar_pose()
        images_BN3HW = normalised(frame.images[:, order])
        lidar2img_BN44 = lidar2image(frame.intrinsics, frame.cam2ego, lidar2ego_B44)[:, order]
        index_V = torch.arange(math.prod(self.grid.shape), device=images_BN3HW.device)
        gaussians, rendered = [], []
        for token, images_N3HW, lidar2img_N44, lidar2ego_44 in zip(
            frame.token, images_BN3HW, lidar2img_BN44, lidar2ego_B44, strict=True
        ):
            try:
                gaussians.append(self.network(images_N3HW, lidar2img_N44, SeededDraws(self.seed, token)))
            except InputError as error:
                raise InputError(f"keyframe {token}: {error}") from error
            rendered.append(render(gaussians[-1], self.grid, lidar2ego_44, index_V))
        log_probs, covered = (
            torch.stack(frames).unflatten(1, self.grid.shape) for frames in zip(*rendered, strict=True)
        )
        return TeacherPrediction(log_probs, covered, gaussians)


def normalised(images_BN3HW: Tensor) -> Tensor:
    """uint8 RGB -> float32 as upstream normalises it (docs/formulas.md 8.1)."""
    mean_311, std_311 = (images_BN3HW.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (_MEAN, _STD))
    return (images_BN3HW - mean_311) / std_311


def lidar2image(intrinsics_BN33: Tensor, cam2ego_BN44: Tensor, lidar2ego_B44: Tensor) -> Tensor:
    """LIDAR_TOP metres -> (u d, v d, d, 1) of the images, float32 (B, N, 4, 4); in float64 until the last step."""
    lidar2cam_BN44 = torch.linalg.inv(cam2ego_BN44.double()) @ lidar2ego_B44.double().unsqueeze(1)
    intrinsics_BN44 = torch.eye(4, dtype=torch.float64, device=intrinsics_BN33.device).repeat(
        *intrinsics_BN33.shape[:2], 1, 1
    )
    intrinsics_BN44[..., :3, :3] = intrinsics_BN33
    return (intrinsics_BN44 @ lidar2cam_BN44).float()
