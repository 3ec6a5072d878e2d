"""What arrays of other people's mean, by what they declare of them; nothing is guessed.

A program in its own environment (`teacher_dump.bridge`) and a folder of files declare the same facts. What is declared
is checked when a teacher is opened, and every array against it.

Letters: X Y Z voxel axes, D classes as declared, C our classes, N occupied voxels, Q queries, R points of each, P
points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES, ClassSet
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.point_sets import VoxelRule
from distill.signals import PointKind, TeacherPrediction

# the arrays of an answer of each kind; beside them, `covered` says which voxels are modelled
KINDS: dict[str, tuple[str, ...]] = {
    "log_probs": ("voxels",),
    "probs": ("voxels",),
    "logits": ("voxels",),
    "classes": ("voxels",),
    "sparse": ("places", "classes"),
    "points": ("points",),
}
_DENSE = ("log_probs", "probs", "logits")
_OF_CLASSES = ("classes", "sparse")
_WORLDS: dict[str, tuple[VoxelGrid, ClassSet]] = {
    "occ3d": (OCC3D, OCC3D_CLASSES),
    "surroundocc": (SURROUNDOCC, SURROUNDOCC_CLASSES),
}
_MISSED_SUM = 0.02  # by which probabilities may miss 1, as at the border to any teacher


@dataclass(frozen=True)
class Declared:
    """What is declared of the answers about a keyframe.

    Attributes:
        kind: one of `KINDS`: log-probabilities, probabilities or logits of all voxels; class ids of all voxels; places
            and class ids of the occupied ones, all others being free; points with a score for each class but free.
        axes: the order of the axes: of X, Y, Z and C; of X, Y and Z where there is no axis of classes.
        grid: "occ3d" or "surroundocc".
        classes: names in the order of channels or ids; a class of ours that is not among them has the probability 0.
        confidence: the probability of the class that is named, of class ids.
        points: of points, how many there are at most and how they become voxels.
    """

    kind: str
    axes: str
    grid: str
    classes: tuple[str, ...]
    confidence: float | None = None
    points: PointKind | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any], where: str) -> Declared:
        """Of what somebody says.

        Args:
            facts: `kind`, `axes`, `grid`, `classes` ("occ3d", "surroundocc" or names) and, where the kind has them,
                `confidence` and `points` (count, reach, threshold, most, power; `distill.point_sets.VoxelRule`);
                `frame` is compared with that of the grid. None stands for what is not said.
            where: begins messages.

        Raises:
            InputError: something lacks, is not possible, or contradicts something else.
        """
        kind, grid = _one_of(facts, "kind", KINDS, where), _one_of(facts, "grid", _WORLDS, where)
        frame, world = facts.get("frame"), _WORLDS[grid]
        if frame is not None and frame != world[0].frame:
            raise InputError(f"{where}: frame={frame!r}, but {grid} lies in the {world[0].frame} frame of the keyframe")
        axes, letters = facts.get("axes"), "XYZC" if kind in _DENSE else "XYZ"
        if not isinstance(axes, str) or sorted(axes) != sorted(letters):
            raise InputError(
                f"{where}: axes={axes!r}: name the axes of {kind} in their order, {letters} or any other order of these"
            )
        return cls(
            kind,
            axes,
            grid,
            _names(facts.get("classes"), world[1], where),
            _confidence(facts.get("confidence"), kind, len(world[1]), where),
            _points(facts.get("points"), kind, where),
        )

    @property
    def voxel_grid(self) -> VoxelGrid:
        """Where the voxels lie."""
        return _WORLDS[self.grid][0]

    @property
    def class_set(self) -> ClassSet:
        """The classes of the grid, ours."""
        return _WORLDS[self.grid][1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for the identity of a store."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def prediction(self, arrays: Mapping[str, Any], device: torch.device) -> TeacherPrediction:
        """What an answer about one keyframe says.

        Args:
            arrays: by the names of `KINDS`, and perhaps `covered`, bool, with the axes of voxels; NumPy or tensors.
            device: where it is worked out.

        Returns:
            A batch of one.

        Raises:
            InputError: an array lacks, or is not what was declared.
        """
        lacking = [name for name in KINDS[self.kind] if name not in arrays]
        if lacking:
            raise InputError(f"an answer of {self.kind} without {', '.join(lacking)}")
        tensors = {name: torch.as_tensor(values).to(device) for name, values in arrays.items()}
        more = {}
        if self.kind == "points":
            points_QRN = _points_checked(tensors["points"], len(self.classes) - 1)
            points_QRN = torch.cat([self._in_xyz(points_QRN[..., :3]), self._ours(points_QRN[..., 3:], 0.0)], -1)
            voxel_XYZC, more = self._of_points(points_QRN), {"points": [points_QRN]}
        elif self.kind in _OF_CLASSES:
            voxel_XYZC = self._of_classes(self._ids(tensors))
        else:
            voxel_XYZC = self._dense(tensors["voxels"])
        covered = tensors.get("covered")
        covered_XYZ = None if covered is None else self._laid_out(covered, "covered", self._spatial)
        return TeacherPrediction(voxel_XYZC[None], None if covered_XYZ is None else covered_XYZ[None], more=more)

    @property
    def _spatial(self) -> str:
        return self.axes.replace("C", "")

    @property
    def _order(self) -> list[int]:
        """Of each class of ours its position as declared, -1: it is not among them."""
        return [self.classes.index(name) if name in self.classes else -1 for name in self.class_set.names]

    def _laid_out(self, values: Tensor, what: str, axes: str) -> Tensor:
        """An array with its axes in the order X, Y, Z, C."""
        sizes = {**dict(zip("XYZ", self.voxel_grid.shape, strict=True)), "C": len(self.classes)}
        expected = tuple(sizes[axis] for axis in axes)
        if tuple(values.shape) == (1, *expected):
            values = values[0]
        if tuple(values.shape) != expected:
            raise InputError(f"{what} has the shape {tuple(values.shape)}: declared are the axes {axes}, {expected}")
        return values.permute([axes.index(axis) for axis in "XYZC" if axis in axes])

    def _dense(self, values: Tensor) -> Tensor:
        voxel_XYZD = self._laid_out(values, self.kind, self.axes)
        if not voxel_XYZD.is_floating_point():
            raise InputError(
                f"{self.kind} are {_dtype(voxel_XYZD)}: floating-point numbers are expected, or kind=classes"
            )
        voxel_XYZD = voxel_XYZD.float()
        if not (voxel_XYZD < torch.inf).all():  # nor is NaN
            raise InputError(f"{self.kind} hold NaN or infinity: check the checkpoint and what the teacher is given")
        if self.kind == "logits":
            voxel_XYZD = voxel_XYZD.log_softmax(-1)
        if self.kind == "probs":
            _check_probabilities(voxel_XYZD)
            voxel_XYZD = voxel_XYZD.log()
        return self._ours(voxel_XYZD, -torch.inf)

    def _ours(self, values_D: Tensor, absent: float) -> Tensor:
        """Values of classes in the order of ours; of points, which have none of free, in that order without it."""
        order = self._order
        if self.kind == "points":
            free = order.pop(self.class_set.free)
            order = [index - (index > free) for index in order]
        if order == list(range(values_D.shape[-1])):
            return values_D
        values_C = values_D[..., order]
        values_C[..., [index < 0 for index in order]] = absent
        return values_C

    def _ids(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Class ids of ours of all voxels, int64 (X, Y, Z)."""
        ids = tensors["classes" if self.kind == "sparse" else "voxels"]
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise InputError(f"class ids are {_dtype(ids)}: give integers, as .argmax() returns them")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.classes):
            raise InputError(f"class ids from {int(ids.min())} to {int(ids.max())}, {len(self.classes)} are declared")
        ours_D = torch.tensor([self.class_set.names.index(name) for name in self.classes], device=ids.device)
        ids = ours_D[ids.long()]
        if self.kind == "classes":
            return self._laid_out(ids, "class ids", self.axes)
        return self._scattered(tensors["places"], ids)

    def _scattered(self, places: Tensor, ids_N: Tensor) -> Tensor:
        if ids_N.ndim != 1 or tuple(places.shape) != (len(ids_N), 3) or places.is_floating_point():
            raise InputError(
                f"places are {_dtype(places)} {tuple(places.shape)}, classes {tuple(ids_N.shape)}: give integers "
                "(N, 3), the voxel of each, and (N,), its class"
            )
        shape, places_N3 = self.voxel_grid.shape, self._in_xyz(places.long())
        if not ((places_N3 >= 0) & (places_N3 < places_N3.new_tensor(shape))).all():
            raise InputError(
                f"a place lies outside of the grid of {shape} voxels: places are numbers of voxels, not metres, in the "
                f"order of axes={self.axes}"
            )
        ids_XYZ = ids_N.new_full(shape, self.class_set.free)
        ids_XYZ[tuple(places_N3.T)] = ids_N
        return ids_XYZ

    def _of_classes(self, ids_XYZ: Tensor) -> Tensor:
        """Log-probabilities of which one class has the confidence, and the others share the rest."""
        assert self.confidence is not None
        count = len(self.class_set)
        others = (1 - self.confidence) / (count - 1)
        probs_CC = torch.full((count, count), others).fill_diagonal_(self.confidence)
        return probs_CC.log().to(ids_XYZ.device)[ids_XYZ]

    def _of_points(self, points_QRN: Tensor) -> Tensor:
        assert self.points is not None
        rule = self.points.rule
        kept_QR = rule.kept(points_QRN[..., :3], points_QRN[..., 3:])
        points_PN = points_QRN[kept_QR]
        return rule.voxel_logits(points_PN[:, :3], points_PN[:, 3:], self.voxel_grid).log_softmax(-1)

    def _in_xyz(self, columns: Tensor) -> Tensor:
        """Columns that are declared in the order of `axes`, in the order x, y, z."""
        return columns[..., [self.axes.index(axis) for axis in "XYZ"]]


def joined(answers: Sequence[TeacherPrediction]) -> TeacherPrediction:
    """A batch of batches of one; one that says nothing of coverage covers all."""
    if len(answers) == 1:
        return answers[0]
    voxel_BXYZC = torch.cat([answer.voxel_log_probs_BXYZC for answer in answers])
    covered = [
        torch.ones_like(answer.voxel_log_probs_BXYZC[..., 0], dtype=torch.bool)
        if answer.covered_BXYZ is None
        else answer.covered_BXYZ
        for answer in answers
    ]
    more = {name: [answer.more[name][0] for answer in answers] for name in answers[0].more}
    return TeacherPrediction(voxel_BXYZC, torch.cat(covered), more=more)


def _one_of(facts: Mapping[str, Any], name: str, possible: Mapping[str, Any], where: str) -> str:
    value = facts.get(name)
    if not isinstance(value, str) or value not in possible:
        raise InputError(f"{where}: {name}={value!r}: choose one of {', '.join(possible)}")
    return value


def _names(declared: Any, ours: ClassSet, where: str) -> tuple[str, ...]:
    if declared == ours.name:
        return ours.names
    names = declared if isinstance(declared, list | tuple) else [declared]
    unknown = [name for name in names if name not in ours.names]
    if unknown or len(set(names)) < len(names) or ours.names[ours.free] not in names:
        told = f"{unknown[0]!r} is none of them" if unknown else "each once, and free space among them"
        raise InputError(
            f"{where}: classes={declared!r}: {told}: give {ours.name} or, in the order of channels or ids, names of "
            f"{', '.join(ours.names)}"
        )
    return tuple(names)


def _confidence(declared: Any, kind: str, count: int, where: str) -> float | None:
    if (declared is not None) != (kind in _OF_CLASSES):
        told = "class ids say nothing of it: state one, such as 0.9" if declared is None else f"{kind} have their own"
        raise InputError(f"{where}: confidence={declared!r}: {told}")
    if declared is None:
        return None
    if isinstance(declared, bool) or not isinstance(declared, int | float) or not 1 / count < declared <= 1:
        raise InputError(f"{where}: confidence={declared!r}: should be a probability above 1/{count}, such as 0.9")
    return float(declared)


def _points(declared: Any, kind: str, where: str) -> PointKind | None:
    if (declared is not None) != (kind == "points"):
        told = "say how many there are and how they become voxels" if declared is None else f"{kind} have none"
        raise InputError(f"{where}: points={declared!r}: {told}")
    if declared is None:
        return None
    try:
        rule = dict(declared)
        return PointKind(int(rule.pop("count")), VoxelRule(**rule))
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{where}: points={declared!r}: give count, reach, threshold, most, power, as in conf/student/opus_t.yaml"
        ) from error


def _points_checked(points: Tensor, scores: int) -> Tensor:
    """Points and their scores, float32 (Q, R, 3 + S); a list of points is one of queries of a single point."""
    if points.ndim == 2:
        points = points[:, None]
    if points.ndim != 3 or points.shape[2] != 3 + scores or not points.is_floating_point():
        raise InputError(
            f"points are {_dtype(points)} {tuple(points.shape)}: give floating-point numbers (Q, R, {3 + scores}), "
            "metres and a score for each class but free"
        )
    points = points.float()
    if not points.isfinite().all() or ((points[..., 3:] - 0.5).abs() > 0.5).any():
        raise InputError(
            "a point holds NaN or infinity, or a score outside of 0 to 1: are they logits? Give .sigmoid()"
        )
    return points


def _check_probabilities(probs_XYZD: Tensor) -> None:
    sum_XYZ = probs_XYZD.sum(-1)
    if (probs_XYZD < 0).any() or ((sum_XYZ - 1).abs() > _MISSED_SUM).any():
        raise InputError(
            f"declared are probabilities, but the least of them is {float(probs_XYZD.min()):.3g} and those of a voxel "
            f"sum to {float(sum_XYZ.min()):.3g} .. {float(sum_XYZ.max()):.3g}: are they logits or log-probabilities?"
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
