"""OPUS as a teacher: upstream's weights, and images of the past looked at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.checkpoint import resolve, sha256_of
from distill.frame import Frame
from distill.networks.opus import OPUS
from distill.networks.opus.weights import OFFICIAL
from distill.signals.points import packed
from teacher_dump.teachers import TeacherPrediction


class OpusTeacher:
    """Predicts with upstream's weights; see `teacher_dump.teachers.Teacher`.

    Image features are kept until no keyframe that comes next in its scene can look back to them. Those of a frame are
    worked out by themselves, so that they are the same whoever asks for them first.

    Args:
        checkpoint: upstream's `.pth` file.
        network: the network, without weights.
        inputs: what it is given, as of a student.

    Raises:
        InputError: the file is missing or does not fit the network.

    Attributes:
        points: what the points of all keyframes have in common, for the store.
    """

    def __init__(self, checkpoint: str, network: OPUS, inputs: dict[str, Any]) -> None:
        OFFICIAL.load(network, resolve(checkpoint))
        self.network = network.eval()
        self.grid, self.points = network.grid, network.point_kind
        self.inputs: dict[str, Any] = {**inputs, "depth_stride": None}
        self.checkpoint_sha256 = sha256_of(resolve(checkpoint))
        self._recent: dict[str, list[Tensor]] = {}

    def to(self, device: torch.device) -> OpusTeacher:
        """Move the network to a device and return itself."""
        self.network.to(device)
        self._recent.clear()
        return self

    @torch.inference_mode()
    def predict(self, frame: Frame) -> TeacherPrediction:
        """Log-probabilities of all voxels, and the points that they were made of."""
        features_T = [self._features(seen, frame.channels[0]) for seen in self.network.frames(frame)]
        for forgotten in [*self._recent][: -len(features_T) * len(frame.token)]:
            del self._recent[forgotten]
        found = self.network.predict(frame, features_T)
        return TeacherPrediction(found.voxel_logits_BXYZC.log_softmax(-1), more={"points": packed(found.points[-1])})

    def _features(self, seen: Frame, channels: tuple[str, ...]) -> list[Tensor]:
        """Image features of a batch, (B, N, H, W, C) of each level."""
        for token, images_N3HW in zip(seen.token, seen.images, strict=True):
            if token not in self._recent:
                self._recent[token] = self.network.image_features(images_N3HW.unsqueeze(0), channels)
            self._recent[token] = self._recent.pop(token)  # the latest is the last
        return [torch.cat(level) for level in zip(*(self._recent[token] for token in seen.token), strict=True)]
