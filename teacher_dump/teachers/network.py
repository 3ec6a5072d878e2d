"""A network trained by `occ-train-student` as a teacher."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate

from distill.checkpoint import load_checkpoint
from distill.frame import Frame
from distill.networks.network import streamed
from distill.signals.points import packed
from teacher_dump.teachers import TeacherPrediction


class NetworkTeacher:
    """Rebuilds a network from its checkpoint (strictly) and predicts with it; see `teacher_dump.teachers.Teacher`.

    Args:
        checkpoint: `.pt` or `.safetensors` file, or `pkg://package/file`.
        weights: "ema" or "raw".

    Raises:
        InputError: the file is missing, is no checkpoint, or does not fit its own description.
    """

    def __init__(self, checkpoint: str, weights: str) -> None:
        loaded = load_checkpoint(checkpoint, weights)
        self.network = loaded.network()
        self.answer = streamed(self.network, calls=1)
        self.grid = instantiate(loaded.config["grid"])
        self.inputs: dict[str, Any] = {**loaded.config["student"]["inputs"], "depth_stride": None}
        self.checkpoint_sha256 = loaded.sha256
        self.gaussians = None
        self.features = getattr(self.network, "bev_features", None)
        self.points = getattr(self.network, "point_kind", None)

    def to(self, device: torch.device) -> NetworkTeacher:
        """Move the network to a device and return itself."""
        self.network.to(device)
        return self

    @torch.inference_mode()
    def predict(self, frame: Frame) -> TeacherPrediction:
        """Log-probabilities of all voxels, and BEV features and points if it says what they are."""
        found = self.answer(frame)
        more: dict[str, Any] = {} if self.features is None else {"features": found.features["bev"].values}
        more |= {} if self.points is None else {"points": packed(found.points[-1])}
        return TeacherPrediction(found.voxel_logits_BXYZC.float().log_softmax(-1), more=more)
