"""Teachers: whatever turns a batch of frames into voxel log-probabilities on a declared grid."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from distill.grids import VoxelGrid


class Teacher(Protocol):
    """What `occ-dump` asks of a teacher; any importable class with these members will do (`teacher=callable`).

    Attributes:
        grid: the grid the log-probabilities live on.
        inputs: what a sample must hold: `image_size` [H, W] pixels, `lidar` true or false, `depth_stride` or None.
        checkpoint_sha256: hex digest of the weights, recorded in the store; "" for a teacher without weights.
    """

    grid: VoxelGrid
    inputs: dict[str, Any]
    checkpoint_sha256: str

    def to(self, device: torch.device) -> Teacher:
        """Move to a device and return itself."""
        ...

    def predict(self, batch: dict[str, Any]) -> torch.Tensor:
        """Natural log-probabilities, float32 (B, X, Y, Z, C), for a batch made by `distill.nuscenes.frames.collate`."""
        ...
