"""Terms of OPUS: sets of points against the occupied voxels of the labels (docs/formulas.md 10.7).

Each point belongs to the nearest occupied voxel, and each of these to the nearest point; all voxels count, seen or not.
Sums are divided by the points, and by the voxels, of the batch of all ranks.

Letters: P points and T targets, the centres of occupied voxels, of one frame; S sets, C classes but free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import ranks
from distill.classes import ClassSet
from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.losses.objective import Lesson, Term
from distill.networks.prediction import Occupancy

_APART, _VISIBLE, _RARE = 0.2, 5.0, 10.0  # metres; weights of visible targets that are further, and of rare ones
_SMOOTH = 0.2  # metres, up to which the distance is squared
_ALPHA, _GAMMA = 0.25, 2.0  # of the focal loss
_AT_ONCE = 1 << 25  # distances


class Targets(NamedTuple):
    """The occupied voxels of a frame.

    Attributes:
        centres_T3: metres.
        labels_T: int64.
        visible_T: bool, whether cameras see them.
    """

    centres_T3: Tensor
    labels_T: Tensor
    visible_T: Tensor


class Match(NamedTuple):
    """A set of points of a frame beside its targets.

    Attributes:
        points_P3: metres.
        logits_PC: of their scores; None: they have none.
        targets: of the frame.
        nearest_P: of each point the nearest target.
        nearest_T: of each target the nearest point.
    """

    points_P3: Tensor
    logits_PC: Tensor | None
    targets: Targets
    nearest_P: Tensor
    nearest_T: Tensor


class PointPlaces(Term):
    """How far points and targets are apart, over all sets, those included that layers begin with.

    Args:
        weight: of the term.
        rare: ids of classes whose visible targets count more.
        grid: of the labels.
        classes: of the labels.
    """

    def __init__(self, weight: float, rare: Sequence[int], grid: VoxelGrid, classes: ClassSet) -> None:
        super().__init__(weight)
        self.rare, self.grid, self.classes = tuple(rare), grid, classes

    def forward(self, lesson: Lesson) -> Tensor:
        """Sum over the sets of the means over targets and over points."""
        matches, frames, targets = _matched(lesson, self.grid, self.classes)
        total = _nothing(lesson)
        for match in matches:
            to_target_P = _smooth(match.points_P3 - match.targets.centres_T3[match.nearest_P])
            to_point_T = _smooth(match.points_P3[match.nearest_T] - match.targets.centres_T3)
            of_targets = (self.weights(match) * to_point_T).sum() / targets
            total = total + of_targets + to_target_P.sum() / (frames * len(match.points_P3))
        return total

    def weights(self, match: Match) -> Tensor:
        """Of the targets (T,): visible ones count more that no point is near, and those of rare classes."""
        centres_T3, labels_T, visible_T = match.targets
        apart_T = (match.points_P3.detach()[match.nearest_T] - centres_T3).norm(dim=1)
        weights_T = torch.where(visible_T & (apart_T > _APART), _VISIBLE, 1.0)
        rare_T = visible_T & torch.isin(labels_T, labels_T.new_tensor(self.rare))
        return torch.where(rare_T, weights_T.clamp_min(_RARE), weights_T)


class PointClasses(Term):
    """Focal loss of the scores of points: that of the class of their target should be 1, the others 0.

    Args:
        weight: of the term.
        class_weights: of the scores, whatever they should be.
        grid: of the labels.
        classes: of the labels.

    Raises:
        InputError: there are more or less scores than weights.
    """

    weights_C: Tensor

    def __init__(self, weight: float, class_weights: Sequence[float], grid: VoxelGrid, classes: ClassSet) -> None:
        super().__init__(weight)
        if len(class_weights) != classes.free:
            raise InputError(
                f"class_weights of point_classes: {len(class_weights)} for {classes.free} classes: give one for each"
            )
        self.grid, self.classes = grid, classes
        self.register_buffer("weights_C", torch.tensor(class_weights, dtype=torch.float32), persistent=False)
        self.diagonal = sum((grid.voxel_size * count) ** 2 for count in grid.shape[:2]) ** 0.5

    def forward(self, lesson: Lesson) -> Tensor:
        """Sum over the sets of the means over points."""
        matches, frames, _ = _matched(lesson, self.grid, self.classes)
        total = _nothing(lesson)
        for match in matches:
            if match.logits_PC is None:
                continue
            wanted_PC = F.one_hot(match.targets.labels_T[match.nearest_P], len(self.weights_C)).to(match.logits_PC)
            away_P1 = match.targets.centres_T3[match.nearest_P, :2].norm(dim=1, keepdim=True) / self.diagonal
            weights_PC = self.weights_C.to(match.logits_PC) * (1 + away_P1)
            focal_PC = sigmoid_focal(match.logits_PC, wanted_PC)
            total = total + (weights_PC * focal_PC).sum() / (frames * len(match.points_P3))
        return total


def sigmoid_focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """-a (1 - p)^2 ln p of each score, p being what is wanted of it (Lin et al. 2017); a = 0.25 for 1, 0.75 for 0."""
    off = torch.where(wanted > 0, -logits, logits).sigmoid()
    balance = torch.where(wanted > 0, _ALPHA, 1 - _ALPHA)
    return balance * off**_GAMMA * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def nearest(points_P3: Tensor, targets_T3: Tensor) -> tuple[Tensor, Tensor]:
    """Of each point the nearest target (P,), and the reverse (T,); of equally near ones the first. There are some."""
    nearest_P, nearest_T = [], torch.zeros(len(targets_T3), dtype=torch.int64, device=points_P3.device)
    least_T = torch.full_like(targets_T3[:, 0], torch.inf)
    begin = 0
    for some_K3 in points_P3.split(max(1, _AT_ONCE // len(targets_T3))):
        apart_KT = torch.cdist(some_K3, targets_T3, compute_mode="donot_use_mm_for_euclid_dist")
        nearest_P.append(apart_KT.argmin(1))
        some_T, index_T = apart_KT.min(0)
        nearest_T = torch.where(some_T < least_T, index_T + begin, nearest_T)
        least_T, begin = torch.minimum(some_T, least_T), begin + len(some_K3)
    return torch.cat(nearest_P), nearest_T


def _matched(lesson: Lesson, grid: VoxelGrid, classes: ClassSet) -> tuple[list[Match], Tensor, Tensor]:
    """The sets of all frames that have targets, and how many frames and targets a rank has in the mean."""
    return lesson.once("matched point sets", lambda: _match(lesson, grid, classes))


@torch.no_grad()
def _indices(points_P3: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    return nearest(points_P3, targets.centres_T3)


def _match(lesson: Lesson, grid: VoxelGrid, classes: ClassSet) -> tuple[list[Match], Tensor, Tensor]:
    sets = _sets(lesson.prediction)
    matches, counts = [], torch.zeros(2, device=lesson.frame.semantics.device)
    for index, labelled in enumerate(lesson.frame.labelled.tolist()):
        targets = _targets(lesson.frame.semantics[index], lesson.frame.mask_camera[index], grid, classes)
        if not labelled or not len(targets.labels_T):
            continue
        counts += counts.new_tensor([1, len(targets.labels_T)])
        for points_BQR3, logits_BQRC in sets:
            points_P3 = points_BQR3[index].flatten(0, 1)
            logits_PC = None if logits_BQRC is None else logits_BQRC[index].flatten(0, 1)
            matches.append(Match(points_P3, logits_PC, targets, *_indices(points_P3, targets)))
    frames, voxels = ranks.mean(counts).clamp_min(torch.finfo(torch.float32).eps).unbind()
    return matches, frames, voxels


def _sets(prediction: Occupancy) -> tuple[tuple[Tensor, Tensor | None], ...]:
    if not prediction.points:
        raise InputError("objective=opus is about sets of points, which this network does not predict: choose another")
    return prediction.points


def _targets(semantics_XYZ: Tensor, mask_XYZ: Tensor, grid: VoxelGrid, classes: ClassSet) -> Targets:
    occupied_XYZ = (semantics_XYZ != classes.free) & (semantics_XYZ != classes.ignored)
    place_T3 = occupied_XYZ.nonzero()
    centres_T3 = (place_T3 + 0.5) * grid.voxel_size + torch.tensor(grid.lower, device=place_T3.device)
    return Targets(centres_T3, semantics_XYZ[occupied_XYZ].long(), mask_XYZ[occupied_XYZ])


def _smooth(apart_3: Tensor) -> Tensor:
    return F.smooth_l1_loss(apart_3, torch.zeros_like(apart_3), beta=_SMOOTH, reduction="none").sum(-1)


def _nothing(lesson: Lesson) -> Tensor:
    """0, with the gradient 0 of everything that a term of sets looks at."""
    return sum((0 * part.sum() for points in lesson.prediction.points for part in points if part is not None), 0.0)  # type: ignore[return-value]
