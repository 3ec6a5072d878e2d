"""Occupancy networks as teachers: those trained by `occ-train-student`, and those with their authors' weights."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from distill.checkpoint import load_checkpoint, resolve, sha256_of
from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.networks.network import streamed
from distill.signals.points import packed
from teacher_dump.teachers import TeacherPrediction


class OccupancyTeacher:
    """Predicts with a network (`distill.networks.network.OccupancyNetwork`); see `teacher_dump.teachers.Teacher`.

    Args:
        network: with its weights.
        grid: on which it predicts.
        inputs: what it is given, as `distill.nuscenes.frames.FrameDataset` takes it.
        checkpoint_sha256: of its weights.
    """

    def __init__(self, network: nn.Module, grid: VoxelGrid, inputs: dict[str, Any], checkpoint_sha256: str) -> None:
        self.network, self.grid, self.checkpoint_sha256 = network.eval(), grid, checkpoint_sha256
        self.inputs = {**inputs, "depth_stride": None}
        self.gaussians = None
        self.features = getattr(network, "bev_features", None)
        self.voxel_features = getattr(network, "voxel_features", None)
        self.points = getattr(network, "point_kind", None)
        self.answer = streamed(self.network, calls=1)

    def to(self, device: torch.device) -> OccupancyTeacher:
        """Move the network to a device and return itself."""
        self.network.to(device)
        return self

    @torch.inference_mode()
    def predict(self, frame: Frame) -> TeacherPrediction:
        """Log-probabilities of all voxels, and features and points if it says what they are."""
        found = self.answer(frame)
        more: dict[str, Any] = {} if self.features is None else {"features": found.features["bev"].values}
        more |= {} if self.voxel_features is None else {"voxel_features": found.features["voxels"].values}
        more |= {} if self.points is None else {"points": packed(found.points[-1])}
        return TeacherPrediction(found.voxel_logits_BXYZC.float().log_softmax(-1), more=more)


class NetworkTeacher(OccupancyTeacher):
    """A network rebuilt from its checkpoint, strictly.

    Args:
        checkpoint: `.pt` or `.safetensors` file, or `pkg://package/file`.
        weights: "ema" or "raw".

    Raises:
        InputError: the file is missing, is no checkpoint, or does not fit its own description.
    """

    def __init__(self, checkpoint: str, weights: str) -> None:
        loaded = load_checkpoint(checkpoint, weights)
        grid, inputs = instantiate(loaded.config["grid"]), loaded.config["student"]["inputs"]
        super().__init__(loaded.network(), grid, inputs, loaded.sha256)


class PublishedTeacher(OccupancyTeacher):
    """A network of other people's with the weights that they publish.

    Args:
        checkpoint: their file.
        network: theirs, without weights; see `distill.networks.network.OfOthers`.
        inputs: what it is given.
        grid: on which it predicts.

    Raises:
        InputError: the file is missing, or is not of this network.
    """

    def __init__(self, checkpoint: str, network: nn.Module, inputs: dict[str, Any], grid: VoxelGrid) -> None:
        file = resolve(checkpoint)
        network.published().load(network, file)  # type: ignore[operator]
        super().__init__(network, grid, inputs, sha256_of(file))
