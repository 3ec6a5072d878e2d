"""Points with class scores, in steps of a grid and of an arc; the voxels of a student follow, whatever its grid.

A store keeps the points that count (`VoxelRule.kept`), in the order of their queries. Places are numbers of steps of a
sixteenth of a voxel of the teacher's grid and stand for the middle of a step, so that on that grid no point changes its
voxel. Scores s are kept as arcs, asin(sqrt(s)), in 255 steps: finest in the odds where a class is nearly sure or nearly
excluded, so that all scores add alike to a KL divergence.

Letters: Q queries, R points of each, P points that are kept, M rows of the array, S scores; B batch, X Y Z voxel axes,
D classes, V voxels and K columns of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override
from zarr.codecs import BloscCodec

from distill.bev import bev_log_probs
from distill.errors import InputError
from distill.frame import FACT, IN_SENSOR, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.point_sets import PointSet, VoxelRule, voxel_places
from distill.signals.arrays import StoredArray
from distill.signals.signal import Reading, Signal, TeacherPrediction
from distill.signals.voxels import voxels_of

# of a value as decoded; places of the grid's own voxels
MAX_ERRORS = {
    "place": "1/32 of a voxel along each axis, never into another voxel",
    "score": "2^-7 sqrt(s (1 - s)) + 2^-16",
}
# KL(teacher || voxels from the store), mean over the voxels of a keyframe, nats, at T = 1.
MAX_MEAN_KL = 1e-4

_STEPS = 16  # of a voxel
_ORIGIN = 1024  # voxels below the first that are still told apart
_ARCS = 255  # steps from score 0 to score 1


@dataclass(frozen=True)
class PointKind:
    """What the points of all keyframes have in common.

    Attributes:
        count: how many a keyframe has at most.
        rule: how they become voxels.
    """

    count: int
    rule: VoxelRule


def packed(points: PointSet) -> list[Tensor]:
    """A set for `TeacherPrediction.more["points"]`: x, y, z in metres and scores of each keyframe, (Q, R, 3 + S)."""
    assert points.logits_BQRC is not None
    return [*torch.cat([points.points_BQR3, points.logits_BQRC.sigmoid()], 3)]


@dataclass(frozen=True)
class PointsTold(Record):
    """What travels.

    Attributes:
        places: int32 (P, 3), steps.
        scores: uint8 (P, S), arcs.
        lidar2grid: float32 (4, 4), LIDAR_TOP to the frame of the teacher's grid.
    """

    places: Array = declared(IN_SENSOR)
    scores: Array = declared(IN_SENSOR)
    lidar2grid: Array = declared(FACT)


@dataclass(frozen=True)
class Points(Signal):
    """The points of each keyframe; its voxels follow.

    Attributes:
        kind: what they have in common.
    """

    name: ClassVar[str] = "points"
    answers: ClassVar[frozenset[str]] = frozenset({"voxels", "columns", "covered"})

    kind: PointKind

    @override
    @classmethod
    def of(cls, teacher: Any, grid: VoxelGrid, classes: tuple[str, ...]) -> Self:
        kind: PointKind | None = getattr(teacher, "points", None)
        if kind is None:
            raise InputError("predicts no set of points: leave points out of dump.signals")
        return cls(grid, classes, kind)

    @override
    def describe(self) -> dict[str, Any]:
        return {**asdict(self.kind), "max_errors": MAX_ERRORS, "max_mean_kl_nats": MAX_MEAN_KL}

    @override
    @classmethod
    def from_description(
        cls,
        description: Mapping[str, Any],
        grid: VoxelGrid,
        classes: tuple[str, ...],
        read_constant: Callable[[str], np.ndarray],
    ) -> Self:
        return cls(grid, classes, PointKind(description["count"], VoxelRule(**description["rule"])))

    @override
    def arrays(self) -> Sequence[StoredArray]:
        count, scores = self.kind.count, len(self.classes) - 1
        return (
            StoredArray("point_places", "uint16", (count, 3), (1, 0), _column_by_column(2, 2 * count)),
            StoredArray("point_scores", "uint8", (count, scores), (1, 0), _column_by_column(1, count)),
            StoredArray("point_lidar2grid", "float32", (4, 4), (0, 1), _column_by_column(4, 64)),
        )

    @override
    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The points that count, float32 (P, 3 + S), and LIDAR_TOP to the frame they lie in."""
        said = []
        for points_QRN, lidar2grid_44 in zip(super().say(prediction, frame, free), frame.lidar_pose(), strict=True):
            points_QRN = torch.from_numpy(points_QRN)
            kept_QR = self.kind.rule.kept(points_QRN[..., :3], points_QRN[..., 3:])
            said.append((points_QRN[kept_QR].numpy(), lidar2grid_44.cpu().numpy()))
        return said

    @override
    def check(
        self,
        said: tuple[np.ndarray, np.ndarray],
        frame: Frame,
        voxel_log_probs_XYZC: Tensor,
        covered_XYZ: Tensor | None,
    ) -> None:
        """Whether the points, as they come out of the store, say what the voxels say."""
        places_P3, arcs_PS = map(torch.from_numpy, encode_points(said[0], self.grid))
        points_P3, scores_PS = decode_points(places_P3, arcs_PS, self.grid)
        logits_XYZD = self.kind.rule.voxel_logits(points_P3, scores_PS, self.grid)
        stored_XYZD = logits_XYZD.log_softmax(-1).to(voxel_log_probs_XYZC.device)
        kl = float((voxel_log_probs_XYZC.exp() * (voxel_log_probs_XYZC - stored_XYZD)).sum(-1).mean())
        if not kl <= MAX_MEAN_KL:
            raise InputError(
                f"sample {frame.token[0]}: voxels of its stored points would miss the teacher's by {kl:.1e} nats in "
                f"the mean, the store promises {MAX_MEAN_KL:.0e}: check the teacher, or leave points out of "
                "dump.signals"
            )

    @override
    def encode(self, said: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        points_PN, lidar2grid_44 = said
        places_P3, arcs_PS = encode_points(points_PN, self.grid)
        if len(places_P3) > self.kind.count or points_PN.shape[1] != 3 + len(self.classes) - 1:
            raise ValueError(f"{points_PN.shape} points and columns are not {self.kind.count} of all classes but free")
        spare = (0, self.kind.count - len(places_P3)), (0, 0)
        return {
            "point_places": np.pad(places_P3, spare),
            "point_scores": np.pad(arcs_PS, spare),
            "point_lidar2grid": lidar2grid_44,
        }

    @override
    def decode(self, read: Reading) -> PointsTold:
        scores_MS = read("point_scores")
        kept_M = scores_MS.any(1)  # a point that counts has a score
        places_P3 = read("point_places")[kept_M].astype(np.int32)
        return PointsTold(places=places_P3, scores=scores_MS[kept_M], lidar2grid=read("point_lidar2grid"))

    @override
    def fits(self, grid: VoxelGrid) -> bool:
        """They lie somewhere on every grid."""
        return True

    @override
    def listen(self, record: PointsTold, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> PointVoxels:
        return PointVoxels(record, frame.lidar_pose(), self.grid, grid, self.kind.rule, free)


class PointVoxels:
    """Makes voxels of points, once.

    Args:
        record: of each keyframe.
        lidar2grid_B44: LIDAR_TOP to the frame of the student's grid, mirrored if that is.
        source: the teacher's grid.
        grid: the student's.
        rule: how points become voxels.
        free: id of the free class.
    """

    def __init__(
        self, record: PointsTold, lidar2grid_B44: Tensor, source: VoxelGrid, grid: VoxelGrid, rule: VoxelRule, free: int
    ) -> None:
        self.record, self.source, self.grid, self.rule, self.free = record, source, grid, rule, free
        # of a frame that nobody teaches there is no inverse, and nothing to move
        source2lidar_B44 = torch.linalg.inv_ex(record.lidar2grid.double()).inverse
        self.source2grid_B44 = lidar2grid_B44.double() @ source2lidar_B44

    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, float32 (V, D)."""
        return self._log_probs.flatten(0, 3)[index_V]

    def columns(self, index_K: Tensor) -> Tensor:
        """Log-probabilities of columns by the BEV rule over what is covered, float32 (K, D)."""
        index_KZ = voxels_of(index_K, self.grid.shape[2])
        log_probs_KZD = self.voxels(index_KZ.flatten()).view(*index_KZ.shape, -1)
        return bev_log_probs(log_probs_KZD, self.free, self.covered(index_KZ))

    def covered(self, index: Tensor) -> Tensor:
        """Whether the centres of voxels lie in the teacher's grid, bool in the shape of `index`."""
        return self._covered.flatten()[index]

    @cached_property
    def _log_probs(self) -> Tensor:
        frames = []
        for places_P3, arcs_PS, matrix_44 in zip(
            self.record.places, self.record.scores, self.source2grid_B44, strict=True
        ):
            points_P3, scores_PS = decode_points(places_P3, arcs_PS, self.source)
            moved_P3 = (points_P3.double() @ matrix_44[:3, :3].T + matrix_44[:3, 3]).float()
            frames.append(self.rule.voxel_logits(moved_P3, scores_PS, self.grid).log_softmax(-1))
        return torch.stack(frames)

    @cached_property
    def _covered(self) -> Tensor:
        centres_XYZ3 = torch.from_numpy(self.grid.centres()).to(self.source2grid_B44.device)
        frames = []
        for matrix_44 in torch.linalg.inv_ex(self.source2grid_B44).inverse:
            places_V3 = voxel_places(centres_XYZ3.flatten(0, 2) @ matrix_44[:3, :3].T + matrix_44[:3, 3], self.source)
            inside_V3 = (places_V3 >= 0) & (places_V3 < places_V3.new_tensor(self.source.shape))
            frames.append(inside_V3.all(1))
        return torch.stack(frames)


def encode_points(points_PN: np.ndarray, grid: VoxelGrid) -> tuple[np.ndarray, np.ndarray]:
    """Places, int32 (P, 3) below 2^16, and arcs of scores, uint8 (P, S), of points; those too far away are left out.

    Args:
        points_PN: x, y, z in metres in the frame of the grid, and scores, float32.
        grid: of whose voxels a sixteenth is a step.

    Raises:
        ValueError: not all are numbers, or a score is none.
    """
    if not np.isfinite(points_PN).all() or (abs(points_PN[:, 3:] - 0.5) > 0.5).any():
        raise ValueError("a point is not all numbers, or has a score that is no probability")
    places_P3 = voxel_places(torch.from_numpy(points_PN[:, :3]), grid).numpy()
    steps_P3 = np.floor(places_P3 * _STEPS) + _ORIGIN * _STEPS
    near_P = ((steps_P3 >= 0) & (steps_P3 < 1 << 16)).all(1)
    arcs_PS = np.rint(np.arcsin(np.sqrt(points_PN[near_P, 3:])) * (_ARCS / (math.pi / 2)))
    return steps_P3[near_P].astype(np.int32), arcs_PS.astype(np.uint8)


def decode_points(places_P3: Tensor, arcs_PS: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """Metres in the frame of the grid (P, 3) and scores (P, S), float32, of what `encode_points` returns."""
    voxels_P3 = (places_P3 + 0.5) / _STEPS - _ORIGIN
    points_P3 = voxels_P3 * grid.voxel_size + voxels_P3.new_tensor(grid.lower)
    return points_P3, (arcs_PS * (math.pi / 2 / _ARCS)).sin().square()


def _column_by_column(itemsize: int, blocksize: int) -> BloscCodec:
    return BloscCodec(typesize=itemsize, cname="zstd", clevel=5, shuffle="bitshuffle", blocksize=blocksize)
