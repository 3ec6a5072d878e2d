"""Where the rays of cameras end (docs/formulas.md 4.17).

Letters: B batch, N cameras, M rays of the whole batch, V voxels of the region, E voxels on rays: those of one ray after
the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.losses.objective import Lesson, Needs
from distill.losses.regions import RegionTerm, rows
from distill.teaching.taught import Taught
from kernels.observe import follow

EPSILON = 1e-6  # within the logarithms, as published


class RayTerminationKL(RegionTerm):
    """KL of what teacher and student say of where rays from the cameras of a frame end, mean over the rays.

    A ray ends in one of the voxels of the region that it crosses, or behind them.

    Args:
        columns: rays per image row; as many rows of them as make cells that are as good as square.
    """

    needs = Needs(answers=frozenset({"voxels"}))

    def __init__(self, columns: int, **region: Any) -> None:
        super().__init__(**region)
        self.columns = columns

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """One teacher's part."""
        index_V = self.region(lesson, teacher)
        place_E, count_M = camera_rays(lesson.frame, teacher.grid, index_V, self.columns)
        student_VC = rows(lesson.prediction.voxel_logits_BXYZC, index_V, axes=1)
        student_E, teacher_E = (
            values_VC.log_softmax(-1)[:, self.classes.free][place_E]
            for values_VC in (student_VC, teacher.voxels(index_V))
        )
        return termination_kl(student_E, teacher_E, count_M)


def camera_rays(frame: Frame, grid: VoxelGrid, index_V: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """The voxels of a region on the rays of all cameras.

    Args:
        frame: the batch.
        grid: of the student.
        index_V: flat positions in (B, X, Y, Z), rising.
        columns: rays per image row.

    Returns:
        place_E: where in `index_V` those of one ray after the other are, int64.
        count_M: how many each ray has, one or more, int64.
    """
    region_BV = torch.zeros_like(frame.mask_camera).flatten().index_fill(0, index_V, True).view(len(frame.token), -1)
    place_BV = region_BV.flatten().cumsum(0).view(region_BV.shape) - 1
    cam2voxel_BN44 = torch.from_numpy(grid.to_voxels()).to(frame.cam2ego.device) @ frame.cam2ego.double()
    height, width = frame.images.shape[-2:]
    places, counts = [], []
    frames = zip(region_BV, place_BV, frame.intrinsics, cam2voxel_BN44, strict=True)
    for region_V, place_V, intrinsics_N33, cam2voxel_N44 in frames:
        index_E, count_M = follow(region_V.view(grid.shape), intrinsics_N33, cam2voxel_N44, (height, width), columns)
        places.append(place_V[index_E])
        counts.append(count_M[count_M > 0])
    return torch.cat(places), torch.cat(counts)


def termination_kl(student_E: Tensor, teacher_E: Tensor, count_M: Tensor) -> Tensor:
    """sum_i p_t(i) (ln(p_t(i) + eps) - ln(p_s(i) + eps)), p(i) of a ray ending in its i-th voxel, mean over rays.

    Args:
        student_E: log-probabilities that the voxels of one ray after the other are free.
        teacher_E: the same of the teacher; gets no gradient.
        count_M: how many each ray has, one or more.

    Returns:
        A scalar; 0 without rays.
    """
    said, told = (torch.cat(terminations(each_E, count_M)) for each_E in (student_E, teacher_E.detach()))
    return (told * ((told + EPSILON).log() - (said + EPSILON).log())).sum() / max(len(count_M), 1)


def terminations(log_free_E: Tensor, count_M: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities that rays end in each of their voxels (E,), and that they do in none of them (M,).

    Args:
        log_free_E: log-probabilities that the voxels of one ray after the other are free.
        count_M: how many each ray has, one or more.
    """
    passed_E = log_free_E.double().cumsum(0)  # of all rays: float32 would lose the last ones
    last_M = count_M.cumsum(0) - 1
    passed_M = passed_E[last_M]
    before_M = passed_M.roll(1).index_fill(0, last_M.new_zeros(min(1, len(last_M))), 0)
    reached_E = (passed_E - log_free_E - before_M.repeat_interleave(count_M)).exp().to(log_free_E.dtype)
    return reached_E * -torch.expm1(log_free_E), (passed_M - before_M).exp().to(log_free_E.dtype)
