"""How far the student's features are from the teacher's, cell by cell (docs/formulas.md 4.23 and 4.24).

Letters: B batch, N cameras, C channels, X Y cells of the teacher's BEV, H W cells of the student's images, V voxels and
K cells of the whole batch; in distances, N anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import InputError
from distill.losses.confidence import frames_of
from distill.losses.objective import Lesson, ListeningTerm, Needs
from distill.losses.regions import RegionTerm, wide
from distill.networks.prediction import FeatureMap
from distill.teaching.taught import Taught


class FeatureDistillation(RegionTerm):
    """The mean over foreground cells and the mean over background cells, each with its share, of one distance.

    A cell is foreground where a voxel of the region in it is occupied, background where there are only free ones: by
    the label or, on frames without, by what the teacher finds. The student's features go through a 1 x 1 convolution
    that is trained along: the term owns it, and no export holds it.

    Args:
        kind: "mfd", "cosine" or "kl": the distance of a cell, see `mean_square`, `cosine_distance`, `channel_kl`.
        published: of "kl": `published_kl` in its place.
        foreground_share: of the foreground, in [0, 1]; the rest is of the background.
        student_channels: of the student's map.
        teacher_channels: of the teacher's.
    """

    needs = Needs(answers=frozenset({"features"}), answers_unlabelled=frozenset({"voxels"}))
    map, axes = "bev", 2  # of the student, of the grid

    def __init__(
        self,
        kind: str,
        published: bool,
        foreground_share: float,
        student_channels: int,
        teacher_channels: int,
        **region: Any,
    ) -> None:
        super().__init__(**region)
        self.distance = published_kl if published else DISTANCES[kind]
        self.foreground_share = foreground_share
        self.adapter = (nn.Conv2d if self.axes == 2 else nn.Conv3d)(student_channels, teacher_channels, 1)

    def forward(self, lesson: Lesson) -> Tensor:
        """Of its only teacher."""
        _check_alone(self, lesson)
        return super().forward(lesson)

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """The teacher's part; 0 with zero gradient without cells."""
        taught = _checked(self.told(teacher), "teacher", self.adapter.out_channels, 1)
        distance = self.distance(self.adapted(lesson, taught), taught.values.detach())
        shares = self.foreground_share, 1 - self.foreground_share
        parts = zip(shares, self.cells(lesson, teacher, taught.stride), strict=True)
        return torch.stack([share * _mean(distance[cells]) for share, cells in parts]).sum()

    def told(self, teacher: Taught) -> FeatureMap:
        """The teacher's map."""
        return teacher.features()

    def adapted(self, lesson: Lesson, taught: FeatureMap) -> Tensor:
        """The student's map as the teacher's would be, (B, C, X, Y) or (B, C, X, Y, Z).

        Raises:
            InputError: it has other channels than the term, or does not cover the grid.
        """
        found = _checked(lesson.prediction.features.get(self.map), "student", self.adapter.in_channels, 1)
        cells, grid = found.values.shape[2:], lesson.prediction.voxel_logits_BXYZC.shape[1 : 1 + self.axes]
        if any(side * found.stride != all_of for side, all_of in zip(cells, grid, strict=True)):
            sides, whole = (" x ".join(map(str, each)) for each in (cells, grid))
            raise InputError(
                f"the student's map of features has {sides} cells of stride {found.stride}, the grid {whole}: a term "
                "compares maps that cover the grid"
            )
        student = self.adapter(wide(found.values))
        if found.stride == taught.stride:
            return student
        mode = "area" if found.stride < taught.stride else "bilinear" if self.axes == 2 else "trilinear"
        return F.interpolate(student, taught.values.shape[2:], mode=mode)

    def cells(self, lesson: Lesson, teacher: Taught, stride: int) -> tuple[Tensor, Tensor]:
        """Foreground and background, bool in the shape of the map without channels."""
        index_V, shape = self.region(lesson, teacher), lesson.frame.semantics.shape
        occupied_V = _occupied(lesson, teacher, index_V, self.classes.free)
        foreground = self.holding(index_V[occupied_V], shape, stride)
        return foreground, self.holding(index_V, shape, stride) & ~foreground

    def holding(self, index_V: Tensor, shape_BXYZ: torch.Size, stride: int) -> Tensor:
        """The cells in which any of these voxels lies; see `cells_with`."""
        return cells_with(index_V, shape_BXYZ, stride)


class VoxelFeatureDistillation(FeatureDistillation):
    """The same of the map "voxels", whose cells are blocks of voxels; what MonoOcc's privileged branch teaches.

    With `kind` "kl" and all weight on the foreground it is the well-posed form of MonoOcc's.
    """

    needs = Needs(answers=frozenset({"voxel_features"}), answers_unlabelled=frozenset({"voxels"}))
    map, axes = "voxels", 3

    def told(self, teacher: Taught) -> FeatureMap:
        """The teacher's map."""
        return teacher.voxel_features()

    def holding(self, index_V: Tensor, shape_BXYZ: torch.Size, stride: int) -> Tensor:
        """The blocks of stride^3 voxels in which any of these lies, bool (B, X / stride, Y / stride, Z / stride)."""
        voxels_N = torch.zeros(shape_BXYZ.numel(), dtype=torch.bool, device=index_V.device)
        voxels_N[index_V] = True
        batch, *sides = shape_BXYZ
        blocks = [part for side in sides for part in (side // stride, stride)]
        return voxels_N.view(batch, *blocks).any(6).any(4).any(2)


class ImageFeatureCosine(ListeningTerm):
    """1 - cosine of image features, mean over the cells of the student's map: MonoOcc's, for a larger backbone.

    The student's features go through two layers that are trained along and in no export. The second is rectified, too,
    as upstream's: no student can follow a teacher below 0. The teacher answers "image_features" with a `FeatureMap` of
    the very images that the student is given, in any resolution. No signal of the project does: what lies in a store is
    of images before their augmentation. One of a user's own may.

    Args:
        weight: of the term.
        teachers: the name of the one that it listens to; None: there is only one.
        student_channels: of the student's map "image".
        hidden_channels: between the two layers.
        teacher_channels: of the teacher's map.
    """

    needs = Needs(answers=frozenset({"image_features"}))

    def __init__(
        self,
        weight: float,
        teachers: Sequence[str] | None,
        student_channels: int,
        hidden_channels: int,
        teacher_channels: int,
    ) -> None:
        super().__init__(weight, teachers)
        self.channels = student_channels, teacher_channels
        first, second = nn.Linear(student_channels, hidden_channels), nn.Linear(hidden_channels, teacher_channels)
        self.projection = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, lesson: Lesson) -> Tensor:
        """Of its only teacher."""
        _check_alone(self, lesson)
        return super().forward(lesson)

    def listen(self, lesson: Lesson, teacher: Taught) -> Tensor:
        """The teacher's part over the frames that it teaches; 0 with zero gradient without any."""
        found = _checked(lesson.prediction.features.get("image"), "student", self.channels[0], 2)
        taught = _checked(teacher.ask("image_features")(), "teacher", self.channels[1], 2)
        student_NHWC = wide(found.values[teacher.taught_B]).flatten(0, 1).movedim(1, -1)
        teacher_NCHW = taught.values[teacher.taught_B].flatten(0, 1).detach()
        resized_NCHW = F.interpolate(teacher_NCHW, student_NHWC.shape[1:3], mode="bilinear", align_corners=True)
        return _mean(cosine_distance(self.projection(student_NHWC).movedim(-1, 1), resized_NCHW).flatten())


def _check_alone(term: ListeningTerm, lesson: Lesson) -> None:
    """Raise InputError where a term about features, which owns a learner for one teacher, listens to several."""
    heard = [name for name in lesson.teachers if term.listens_to(name)]
    if len(heard) > 1:
        raise InputError(
            f"a term about features listens to {', '.join(heard)}, whose features have nothing in common: give each "
            "teacher a term of its own (kd.terms.NAME.teachers=[TEACHER])"
        )


def _checked(found: FeatureMap | None, whose: str, channels: int, axis: int) -> FeatureMap:
    """The map, if there is one of so many channels along this axis."""
    if found is None:
        raise InputError(f"the {whose}'s network has no map of the features that a term is about: take another kd")
    if found.values.shape[axis] != channels:
        raise InputError(
            f"the {whose}'s map of features has {found.values.shape[axis]} channels, the term expects {channels}: set "
            f"{whose}_channels={found.values.shape[axis]} (kd.terms.NAME.{whose}_channels)"
        )
    return found


def _occupied(lesson: Lesson, teacher: Taught, index_V: Tensor, free: int) -> Tensor:
    """Which voxels are occupied by their label, or by the teacher's argmax where there is none, bool (V,)."""
    occupied_V = lesson.frame.semantics.flatten()[index_V] != free
    told_V = ~lesson.frame.labelled[frames_of(index_V, lesson)]
    if told_V.any():  # a teacher of labelled frames alone is not asked
        occupied_V[told_V] = teacher.called(index_V[told_V]) != free
    return occupied_V


def _mean(distance_K: Tensor) -> Tensor:
    return distance_K.sum() / max(len(distance_K), 1)


def cells_with(index_V: Tensor, shape_BXYZ: torch.Size, stride: int) -> Tensor:
    """The cells of `stride` x `stride` columns in which any of these voxels lies, bool (B, X / stride, Y / stride).

    Args:
        index_V: flat positions in (B, X, Y, Z).
        shape_BXYZ: of the voxels.
        stride: divides X and Y.
    """
    batch, x, y, height = shape_BXYZ
    columns_K = torch.zeros(batch * x * y, dtype=torch.bool, device=index_V.device)
    columns_K[index_V // height] = True
    return columns_K.view(batch, x // stride, stride, y // stride, stride).any(4).any(2)


def mean_square(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Mean over the channels of squared differences, as masked feature distillation has it.

    Args:
        student_NC: (N, C, ...), as in all distances.
        teacher_NC: alike.

    Returns:
        (N, ...).
    """
    return (student_NC - teacher_NC).square().mean(1)


def cosine_distance(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """1 - cosine over the channels, (N, ...); 1 where one of the two is 0."""
    return 1 - F.cosine_similarity(student_NC, teacher_NC, dim=1, eps=1e-8)


def channel_kl(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """KL(teacher || student) of softmax over the channels, a sum over them, (N, ...)."""
    log_probs = student_NC.log_softmax(1), teacher_NC.log_softmax(1)
    return F.kl_div(*log_probs, reduction="none", log_target=True).sum(1)


def published_kl(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Mean over the channels of e^t (t - s), (N, ...): MonoOcc's code, to reproduce it.

    That is no divergence: it falls without end as the student's features grow.
    """
    return F.kl_div(student_NC, teacher_NC, reduction="none", log_target=True).mean(1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mfd": mean_square,
    "cosine": cosine_distance,
    "kl": channel_kl,
}
