"""A teacher of a user's own, for `teacher=callable`: a road and some trees, as Gaussians."""

from __future__ import annotations

import math

import torch

from distill.frame import Frame
from distill.gaussians import Gaussians
from distill.grids import SURROUNDOCC, VoxelGrid
from distill.signals import GaussianKind
from distill.signals.gaussians import render
from teacher_dump.teachers import TeacherPrediction

ROAD, VEGETATION = 11, 16


class RoadTeacher:
    """Knows nothing about images; every keyframe has trees of its own."""

    checkpoint_sha256 = ""

    def __init__(self, name: str, grid: VoxelGrid, det: str) -> None:
        self.name = name
        self.grid = grid
        self.inputs = {"image_size": [64, 160], "lidar": False, "depth_stride": None}
        self.gaussians = GaussianKind(200, "probabilistic", 4.0, det, SURROUNDOCC)
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> RoadTeacher:
        self.device = device
        return self

    def predict(self, batch: Frame) -> TeacherPrediction:
        gaussians = [self._look(token).to(self.device) for token in batch["token"]]
        everywhere_V = torch.arange(math.prod(self.grid.shape), device=self.device)
        told = [
            render(frame, self.grid, pose_44, everywhere_V)
            for frame, pose_44 in zip(gaussians, batch["lidar2ego"], strict=True)
        ]
        log_probs, covered = (torch.stack(parts).unflatten(1, self.grid.shape) for parts in zip(*told, strict=True))
        return TeacherPrediction(log_probs, covered, gaussians)

    def _look(self, token: str) -> Gaussians:
        random = torch.Generator().manual_seed(int(token[:8], 16))
        count = 150
        means = torch.rand(count, 3, generator=random) * torch.tensor([60.0, 60.0, 0.5]) - torch.tensor([30.0, 30.0, 2])
        scales = torch.tensor([3.0, 3.0, 0.15]).repeat(count, 1)
        means[100:, 2] += 3.0
        scales[100:] = 0.8
        semantics = torch.full((count, 18), 0.01)
        semantics[:100, ROAD] = semantics[100:, VEGETATION] = 1.0
        semantics[:, 17] = 0
        kind = self.gaussians
        return Gaussians(
            means,
            scales,
            torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
            torch.full((count,), 0.9),
            semantics / semantics.sum(1, keepdim=True),
            kind.form,
            kind.reach,
            kind.det,
            kind.space,
        )
