"""A tiny store: 5 keyframes on an (8, 8, 4) grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill.classes import OCC3D_CLASSES
from distill.grids import VoxelGrid
from distill.store import StoreIdentity, StoreWriter

GRID = VoxelGrid("tiny", "ego", (-4.0, -4.0, -1.0), 1.0, (8, 8, 4))
TOKENS = [f"{number:032x}" for number in range(5)]
SCENES = ["scene-0001"] * 3 + ["scene-0002"] * 2
IDENTITY = StoreIdentity("fusion", "5f" * 32, {"width": 32, "views": ["front", "back"]}, GRID, OCC3D_CLASSES.names)


def teacher_output(token: str) -> tuple[np.ndarray, np.ndarray]:
    """What the teacher says about a keyframe: voxel log-probabilities (X, Y, Z, C), BEV probabilities (X, Y, C)."""
    logits = np.random.default_rng(int(token, 16)).normal(0, 4, (*GRID.shape, 18)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probs, np.exp(log_probs).mean(2)


def write(writer: StoreWriter, *tokens: str) -> None:
    for token in tokens:
        writer.write(token, *teacher_output(token))


def open_writer(path: Path) -> StoreWriter:
    return StoreWriter.open(path, IDENTITY, TOKENS, SCENES)


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
