"""Frames, Gaussians and teachers made up for tests: a grid so small that everything on it can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES, ClassSet
from distill.frame import Frame, Told
from distill.gaussians import Gaussians
from distill.grids import SURROUNDOCC, VoxelGrid
from distill.losses.objective import Lesson
from distill.networks.prediction import DepthBins, Occupancy
from distill.signals import GaussianKind
from distill.signals.bev import Bev, BevProbs
from distill.signals.gaussians import GaussianSet, GaussiansTold
from distill.signals.seen import Seen
from distill.signals.voxels import VoxelCodes, Voxels
from distill.teaching.taught import Taught

B, X, Y, Z, C = 2, 4, 3, 2, 18
FREE = OCC3D_CLASSES.free
# its highest layer lies above what a Gaussian teacher has modelled
GRID = VoxelGrid("tiny", "ego", (-2.0, -1.5, 2.5), 0.5, (X, Y, Z))
KIND = GaussianKind(100, "probabilistic", 4.0, "stable", SURROUNDOCC)


def taught_frame() -> Frame:
    """A batch of two labelled frames of one camera, taught by the teacher "stored" in codes of a uniform table."""
    random = torch.Generator().manual_seed(0)
    codes_BXYZC = torch.randint(0, 256, (B, X, Y, Z, C), dtype=torch.uint8, generator=random)
    table_256 = torch.linspace(-4, 0, 256)
    voxel_BXYZC = table_256[codes_BXYZC.long()].log_softmax(-1)
    signals = {
        "voxels": VoxelCodes(codes=codes_BXYZC, table=table_256.repeat(B, 1)),
        "bev": BevProbs(probs=bev_log_probs(voxel_BXYZC, FREE).exp()),
    }
    semantics = torch.randint(0, C, (B, X, Y, Z), dtype=torch.uint8, generator=random)
    # a camera behind the grid, that looks along x
    cam2ego_44 = torch.tensor([[0.0, 0, 1, -2.6], [-1, 0, 0, -0.7], [0, -1, 0, 3.1], [0, 0, 0, 1]])
    intrinsics_33 = torch.tensor([[4.0, 0, 4], [0, 4, 3], [0, 0, 1]])
    return Frame(
        token=["a" * 32, "b" * 32],
        images=torch.zeros(B, 1, 3, 6, 8, dtype=torch.uint8),
        intrinsics=intrinsics_33.expand(B, 1, 3, 3),
        cam2ego=cam2ego_44.expand(B, 1, 4, 4),
        semantics=semantics,
        mask_camera=torch.rand(B, X, Y, Z, generator=random) < 0.5,
        mask_lidar=torch.rand(B, X, Y, Z, generator=random) < 0.5,
        labelled=torch.tensor([True, True]),
        teachers={
            "stored": Told(
                taught=torch.tensor([True, True]),
                covered=torch.ones(B, X, Y, Z, dtype=torch.bool),
                signals=signals,
            )
        },
    )


def told_by_gaussians(gaussians: list[Gaussians]) -> Told:
    """What a teacher says by its Gaussians alone."""
    taught = torch.ones(len(gaussians), dtype=torch.bool)
    return Told(taught=taught, signals={"gaussians": GaussiansTold(gaussians=gaussians)})


def taught(
    frame: Frame,
    name: str = "stored",
    weight: float = 1.0,
    grid: VoxelGrid = GRID,
    asked: Sequence[str] = ("voxels", "columns", "covered"),
) -> Taught:
    """A teacher of the frame, who answers by what he says."""
    told, classes = frame.teachers[name], OCC3D_CLASSES.names
    if "gaussians" in told.signals:
        answers = dict.fromkeys(asked, GaussianSet(grid, classes, KIND))
    else:
        answers = {"voxels": Voxels(grid, classes), "columns": Bev(grid, classes), "seen": Seen(grid, classes)}
    return Taught(name, weight, told, answers, frame, grid, FREE)


def listening(
    mask: str = "camera",
    weight: float = 1.0,
    unlabelled: str = "all",
    teachers: Sequence[str] | None = None,
    classes: ClassSet = OCC3D_CLASSES,
) -> dict[str, Any]:
    """The arguments of a `RegionTerm`."""
    return {"weight": weight, "teachers": teachers, "mask": mask, "unlabelled": unlabelled, "classes": classes}


def lesson(
    frame: Frame, logits_BXYZC: torch.Tensor, depth: DepthBins | None = None, step: int = 0, **weights: float
) -> Lesson:
    """The frame, a student's logits, and the frame's teachers; their weights by name, 1 unless given."""
    teachers = {name: taught(frame, name, weights.get(name, 1.0)) for name in frame.teachers or ()}
    return Lesson(frame, Occupancy(logits_BXYZC, depth=depth), teachers, step)


def gaussians(
    seed: int, count: int, spread: tuple[float, float, float], centre: tuple[float, float, float]
) -> Gaussians:
    """Gaussians of `KIND` with means in a box around a centre, metres."""
    random = torch.Generator().manual_seed(seed)
    return Gaussians(
        (torch.rand(count, 3, generator=random) - 0.5) * torch.tensor(spread) + torch.tensor(centre),
        torch.rand(count, 3, generator=random) * 0.3 + 0.1,
        F.normalize(torch.randn(count, 4, generator=random), dim=1),
        torch.rand(count, generator=random),
        F.pad(torch.randn(count, 17, generator=random).softmax(1), (0, 1)),
        KIND.form,
        KIND.reach,
        KIND.det,
        KIND.space,
    )
