"""A tiny store: 5 keyframes on an (8, 8, 4) grid, with voxels and Gaussians."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.classes import OCC3D_CLASSES
from distill.gaussians import Gaussians
from distill.grids import SURROUNDOCC, VoxelGrid
from distill.signals import GaussianKind, described
from distill.signals.bev import Bev, Columns
from distill.signals.gaussians import GaussianSet
from distill.signals.voxels import Voxels
from distill.store import StoreIdentity, StoreWriter, TeacherStore
from distill.store.place import Place

GRID = VoxelGrid("tiny", "ego", (-4.0, -4.0, -1.0), 1.0, (8, 8, 4))
TOKENS = [f"{number:032x}" for number in range(5)]
SCENES = ["scene-0001"] * 3 + ["scene-0002"] * 2
KIND = GaussianKind(count=12, form="probabilistic", reach=4.0, det="stable", space=SURROUNDOCC)
VOXELS, BEV = Voxels(GRID, OCC3D_CLASSES.names), Bev(GRID, OCC3D_CLASSES.names)
GAUSSIANS = GaussianSet(GRID, OCC3D_CLASSES.names, KIND)
IDENTITY = StoreIdentity(
    "fusion",
    "5f" * 32,
    {"width": 32, "views": ["front", "back"]},
    GRID,
    OCC3D_CLASSES.names,
    described([VOXELS, BEV, GAUSSIANS]),
)


def teacher_output(token: str) -> tuple[np.ndarray, np.ndarray]:
    """What the teacher says about a keyframe: voxel log-probabilities (X, Y, Z, C), BEV probabilities (X, Y, C)."""
    logits = np.random.default_rng(int(token, 16)).normal(0, 4, (*GRID.shape, 18)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probs, np.exp(log_probs).mean(2)


def coverage(token: str) -> np.ndarray:
    """Which voxels it has modelled, bool (X, Y, Z): nine of ten, and nothing in column (1, 2)."""
    covered = np.random.default_rng(int(token, 16)).random(GRID.shape) < 0.9
    covered[1, 2] = False
    return covered


def teacher_gaussians(token: str) -> Gaussians:
    """Its Gaussians; how many differs from keyframe to keyframe."""
    random = torch.Generator().manual_seed(int(token, 16))
    count = 8 + int(token, 16) % 5
    semantics = torch.rand(count, 18, generator=random)
    semantics[:, 17] = 0
    rotations = torch.randn(count, 4, generator=random)
    return Gaussians(
        torch.rand(count, 3, generator=random) * 8 - 4,
        torch.rand(count, 3, generator=random) + 0.3,
        rotations / rotations.norm(dim=1, keepdim=True),
        torch.rand(count, generator=random),
        semantics / semantics.sum(1, keepdim=True),
        KIND.form,
        KIND.reach,
        KIND.det,
        KIND.space,
    )


def digests(token: str) -> np.ndarray:
    """Of what it was given, uint32 (8,); there was no second camera."""
    random = np.random.default_rng(int(token, 16)).integers(1, 1 << 32, 8, np.uint32)
    random[1] = 0
    return random


def everything(token: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]:
    """What `StoreWriter.write` takes beside the token."""
    (log_probs, bev), covered = teacher_output(token), coverage(token)
    said = {"voxels": log_probs, "bev": Columns(bev, covered.any(2)), "gaussians": teacher_gaussians(token)}
    return said, log_probs.argmax(-1).astype(np.uint8), covered, digests(token)


def write(writer: StoreWriter, *tokens: str) -> None:
    for token in tokens:
        writer.write(token, *everything(token))


def open_writer(place: Path | Place, identity: StoreIdentity = IDENTITY) -> StoreWriter:
    return StoreWriter.open(place, identity, TOKENS, SCENES)


def codes(store: TeacherStore, token: str) -> np.ndarray:
    return store.told(token, ["voxels"], coverage=False).signals["voxels"].codes


def log_probs(store: TeacherStore, token: str) -> np.ndarray:
    """As any reader of the array finds them, (X, Y, Z, C)."""
    told = store.told(token, ["voxels"], coverage=False).signals["voxels"]
    return told.table[told.codes]


def bev_probs(store: TeacherStore, token: str) -> np.ndarray:
    return store.told(token, ["bev"], coverage=False).signals["bev"].probs


def gaussians(store: TeacherStore, token: str) -> Gaussians:
    return store.told(token, ["gaussians"], coverage=False).signals["gaussians"].gaussians


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
