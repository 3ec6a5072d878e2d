"""Deformable attention of Gaussians to the cameras' feature maps (docs/formulas.md 6.7; Lin et al. 2023, Sparse4D).

Letters: G Gaussians, K anchor columns, C channels, P key points, N cameras, L levels, A groups of channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.gaussians import rotation_matrices
from kernels.deformable_aggregation import deformable_aggregation
from teacher_dump.teachers.gaussianformer import anchors
from teacher_dump.teachers.gaussianformer.perceptrons import perceptron

_GROUPS, _LEVELS = 4, 4
_NEAREST = 1e-5  # metres in front of a camera; what is nearer is not seen
_FIXED = 0.45  # standard deviations from the centre to the fixed key points


class View(NamedTuple):
    """What the cameras see of one keyframe.

    Attributes:
        maps: float32 (N, C, H, W) of each level.
        lidar2img_N44: float32, from the LIDAR_TOP frame, metres, to pixels times depth.
        image_size: rows and columns of the images those pixels belong to.
    """

    maps: list[Tensor]
    lidar2img_N44: Tensor
    image_size: tuple[int, int]


class DeformableAttention(nn.Module):
    """Features sampled around the key points of each Gaussian, weighted by what the Gaussian and the camera are.

    Args:
        channels: C.
        scale_range: smallest and largest scale of a Gaussian, metres.
        learned_points: key points that depend on the features, besides the 7 fixed ones.
        spread: their range, in standard deviations of the Gaussian.
        joined: whether the input is appended to the output's channels.
        legacy: whether samples that no camera sees take their share of the weights (docs/formulas.md 6.10).
    """

    def __init__(
        self,
        channels: int,
        scale_range: tuple[float, float],
        learned_points: int,
        spread: float,
        joined: bool,
        legacy: bool,
    ) -> None:
        super().__init__()
        self.kps_generator = KeyPoints(channels, scale_range, learned_points, spread)
        self.output_proj = nn.Linear(channels, channels)
        self.camera_encoder = nn.Sequential(*perceptron(12, channels, 1, 2))
        self.weights_fc = nn.Linear(channels, _LEVELS * self.kps_generator.points * _GROUPS)
        self.joined, self.legacy = joined, legacy

    def forward(self, x_GC: Tensor, embedding_GC: Tensor, anchor_GK: Tensor, view: View) -> Tensor:
        """Features, embedded anchors and anchors -> (G, C), or (G, 2 * C) if joined."""
        uv_GPN2, seen_GPN = project(self.kps_generator(x_GC, anchor_GK), view)
        weights_GPNLA = self._weights(x_GC + embedding_GC, view.lidar2img_N44, seen_GPN)
        sampled_GC = self.output_proj(deformable_aggregation(view.maps, uv_GPN2, weights_GPNLA))
        return torch.cat([sampled_GC, x_GC], 1) if self.joined else sampled_GC

    def _weights(self, x_GC: Tensor, lidar2img_N44: Tensor, seen_GPN: Tensor) -> Tensor:
        """Softmax over all samples of a group; what no camera sees has weight 0."""
        camera_NC = self.camera_encoder(lidar2img_N44[:, :3].flatten(1))
        logits_GNX = self.weights_fc(x_GC.unsqueeze(1) + camera_NC)
        logits_GNLPA = logits_GNX.unflatten(2, (_LEVELS, -1, _GROUPS))
        unseen_GN1P1 = ~seen_GPN.transpose(1, 2)[:, :, None, :, None]
        if not self.legacy:
            logits_GNLPA = logits_GNLPA.masked_fill_(unseen_GN1P1, -torch.inf)
        weights_GNLPA = logits_GNLPA.flatten(1, 3).softmax(1).view_as(logits_GNLPA)
        # also repairs the softmax of a Gaussian that no camera sees
        return weights_GNLPA.masked_fill_(unseen_GN1P1, 0).permute(0, 3, 1, 2, 4)


class KeyPoints(nn.Module):
    """Points in and around a Gaussian where features are sampled; arguments as in `DeformableAttention`."""

    offsets_P3: Tensor

    def __init__(self, channels: int, scale_range: tuple[float, float], learned_points: int, spread: float) -> None:
        super().__init__()
        self.scale_range, self.spread = scale_range, spread
        axes_33 = _FIXED * torch.eye(3)
        signed_63 = torch.stack([axes_33, -axes_33], 1).flatten(0, 1)
        self.register_buffer("offsets_P3", torch.cat([torch.zeros(1, 3), signed_63]), persistent=False)
        self.learnable_fc = nn.Linear(channels, 3 * learned_points)
        self.points = len(self.offsets_P3) + learned_points

    def forward(self, x_GC: Tensor, anchor_GK: Tensor) -> Tensor:
        """Points in metres, LIDAR_TOP frame, (G, P, 3)."""
        learned_GP3 = (anchors.safe_sigmoid(self.learnable_fc(x_GC)) - 0.5).unflatten(1, (-1, 3)) * self.spread
        local_GP3 = torch.cat([self.offsets_P3.expand(len(x_GC), -1, -1), learned_GP3], 1)
        local_GP3 = local_GP3 * anchors.scales(anchor_GK, self.scale_range).unsqueeze(1)
        rotations_G33 = rotation_matrices(F.normalize(anchor_GK[:, 6:10], dim=1))
        # R^T p for points in rows; the transposed rotation of the covariance
        return local_GP3 @ rotations_G33 + anchors.means(anchor_GK).unsqueeze(1)


def project(points_GP3: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Where points appear in each image, fractions of width and height (G, P, N, 2), and which are seen (G, P, N)."""
    matrix_N34 = view.lidar2img_N44[:, :3]
    pixels_GPN3 = torch.einsum("nij,gpj->gpni", matrix_N34[:, :, :3], points_GP3) + matrix_N34[:, :, 3]
    depth_GPN = pixels_GPN3[..., 2]
    height, width = view.image_size
    uv_GPN2 = pixels_GPN3[..., :2] / depth_GPN.clamp(min=_NEAREST).unsqueeze(3)
    uv_GPN2 = uv_GPN2 / uv_GPN2.new_tensor([width, height])
    return uv_GPN2, (depth_GPN > _NEAREST) & ((uv_GPN2 > 0) & (uv_GPN2 < 1)).all(3)
