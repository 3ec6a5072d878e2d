"""Teachers: whatever turns a batch of frames into voxel log-probabilities on a declared grid."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.networks.prediction import FeatureKind
from distill.signals import GaussianKind, PointKind, TeacherPrediction

__all__ = ["Teacher", "TeacherPrediction"]


class Teacher(Protocol):
    """What `occ-dump` asks of a teacher; any importable class with these members will do (`teacher=callable`).

    Its constructor is given the values of the `teacher` node by name, but `name`, by which the store knows the teacher,
    only if it has a parameter of that name.

    Attributes:
        grid: the grid the log-probabilities live on.
        inputs: what a sample must hold, as `distill.nuscenes.frames.FrameDataset` takes it: `image_size` [H, W] pixels,
            `lidar` true or false, `depth_stride` pixels or None and, if wanted, `bicubic` and `calibration`, true or
            false, and `history`, a number of earlier keyframes.
        checkpoint_sha256: hex digest of the weights, recorded in the store; "" for a teacher without weights.
        gaussians: what Gaussians it predicts; None, or no such member, for a teacher without.
        features: of the maps of BEV features, (C, X, Y) of each keyframe, that it gives in
            `TeacherPrediction.more["features"]`; None, or no such member, for a teacher without.
        voxel_features: alike of maps of voxel features, (C, X, Y, Z).
        points: of the sets of points that it gives in `TeacherPrediction.more["points"]`, see
            `distill.signals.points.packed`; None, or no such member, for a teacher without.
        identity: what tells it from others, JSON-ready, recorded in the store, which another one is refused; no such
            member: the values of the `teacher` node.

    A teacher may also have these methods:

        read(keyframes, index): whatever else it wants to know of a keyframe (`distill.nuscenes.index.Keyframes`);
            called in the loader's workers, and given to `predict` as `frame["given"]`, an item per keyframe.
        file(keyframe): the file without which it cannot answer about a keyframe, which is then left out or stops the
            dump (`data.missing`). The store knows its digest as that of the images.
    """

    grid: VoxelGrid
    inputs: dict[str, Any]
    checkpoint_sha256: str
    gaussians: GaussianKind | None
    features: FeatureKind | None
    voxel_features: FeatureKind | None
    points: PointKind | None

    def to(self, device: torch.device) -> Teacher:
        """Move to a device and return itself."""
        ...

    def predict(self, frame: Frame) -> TeacherPrediction:
        """Predict from a batch of frames; what it may ask of them by name, `frame["token"]`, too."""
        ...
