"""Gaussians as rows of rounded numbers, from which a student's voxels are rendered, whatever its grid.

A row holds mean (m), scales (m), quaternion (w, x, y, z), opacity and 18 semantics as `distill.gaussians.Gaussians` has
them, for any zarr reader to see. They are rounded as far as the voxels rendered from them permit, and what was rounded
compresses; `MAX_ERRORS` bounds what is lost.

KL(teacher || rendered from the store) stays below `MAX_MEAN_KL`, in the mean over the voxels of a keyframe. That is no
theorem but measured, on the flattest Gaussians a teacher can make, and `occ-dump` checks it. It cannot hold for those
that are so flat that det="upstream" divides by rounding errors (docs/formulas.md 7.4).

Letters: G Gaussians, N = 29 numbers of a row, S = 18 semantic channels; B batch, X Y Z voxel axes, C classes, V voxels
and K columns of the whole batch, R rendered voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override
from zarr.codecs import BloscCodec

from distill.bev import bev_log_probs
from distill.errors import InputError
from distill.frame import IN_SENSOR, Frame, Record, declared
from distill.gaussians import EMPTY, Gaussians
from distill.grids import VoxelGrid
from distill.signals.arrays import StoredArray, round_bits
from distill.signals.signal import Reading, Signal, TeacherPrediction
from distill.signals.voxels import voxels_of

COLUMNS = (
    *("mean_x", "mean_y", "mean_z", "scale_1", "scale_2", "scale_3"),
    *("rotation_w", "rotation_x", "rotation_y", "rotation_z", "opacity"),
    *(f"semantics_{channel}" for channel in range(18)),
)
_MEAN, _SCALE, _ROTATION, _OPACITY, _SEMANTICS = slice(0, 3), slice(3, 6), slice(6, 10), 10, slice(11, 29)

# of a value v as decoded
MAX_ERRORS = {
    "mean": "2^-12 m along each axis",
    "scale": "2^-8 v",
    "rotation": "2.5e-4 rad",
    "opacity": "2^-7 v",
    "semantics, probabilistic": "2^-7.5 sqrt(v) or 2^-23, before they are normalised",
    "semantics, additive": "2^-6",
}
# KL(teacher || rendered from the store), mean over the voxels of a keyframe, nats, at T = 1.
MAX_MEAN_KL = 1e-4

_MEAN_STEP, _ROTATION_STEP, _SCORE_STEP = 2.0**-11, 2.0**-13, 2.0**-5
_SCALE_BITS, _OPACITY_BITS = 8, 7
_LOWEST = -100.0  # stands for the logarithm of 0 where a probability of 0 is multiplied with it


@dataclass(frozen=True)
class GaussianKind:
    """What the Gaussians of all keyframes have in common.

    Attributes:
        count: how many a keyframe has at most.
        form, reach, det, space: see `Gaussians`.
    """

    count: int
    form: Literal["probabilistic", "additive"]
    reach: float
    det: Literal["upstream", "stable"]
    space: VoxelGrid


@dataclass(frozen=True)
class GaussiansTold(Record):
    """What travels.

    Attributes:
        gaussians: `Gaussians` in the LIDAR_TOP frame; a list of them in a batch.
    """

    gaussians: Any = declared(IN_SENSOR)


@dataclass(frozen=True)
class GaussianSet(Signal):
    """The Gaussians of each keyframe; its voxels follow.

    Attributes:
        kind: what they have in common.
    """

    name: ClassVar[str] = "gaussians"
    answers: ClassVar[frozenset[str]] = frozenset({"voxels", "columns", "covered"})
    class_ids: ClassVar[slice] = slice(1, EMPTY)  # neither noise nor empty, which have other names on other grids

    kind: GaussianKind

    @override
    @classmethod
    def of(cls, teacher: Any, grid: VoxelGrid, classes: tuple[str, ...]) -> Self:
        kind: GaussianKind | None = getattr(teacher, "gaussians", None)
        if kind is None:
            raise InputError("predicts no Gaussians: leave gaussians out of dump.signals")
        return cls(grid, classes, kind)

    @override
    def describe(self) -> dict[str, Any]:
        bounds = {"max_errors": MAX_ERRORS, "max_mean_kl_nats": MAX_MEAN_KL}
        return {**asdict(self.kind), "space": self.kind.space.to_dict(), "columns": list(COLUMNS), **bounds}

    @override
    @classmethod
    def from_description(
        cls,
        description: Mapping[str, Any],
        grid: VoxelGrid,
        classes: tuple[str, ...],
        read_constant: Callable[[str], np.ndarray],
    ) -> Self:
        kind = {each.name: description[each.name] for each in fields(GaussianKind)}
        return cls(grid, classes, GaussianKind(**kind | {"space": VoxelGrid.from_dict(kind["space"])}))

    @override
    def arrays(self) -> Sequence[StoredArray]:
        count = self.kind.count
        column_by_column = BloscCodec(typesize=4, cname="zstd", clevel=9, shuffle="shuffle", blocksize=4 * count)
        return (StoredArray("gaussians", "float32", (count, len(COLUMNS)), (1, 0), column_by_column),)

    @override
    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[Gaussians]:
        if prediction.gaussians is None:
            raise InputError("the teacher's prediction has no Gaussians, which this store holds: check the teacher")
        return [gaussians.to("cpu") for gaussians in prediction.gaussians]

    @override
    def check(self, said: Gaussians, frame: Frame, voxel_log_probs_XYZC: Tensor, covered_XYZ: Tensor | None) -> None:
        """Whether the Gaussians, as they come out of the store, say what the voxels say."""
        stored = decode_gaussians(encode_gaussians(said, self.kind), self.kind).to(voxel_log_probs_XYZC.device)
        covered_XYZ = torch.ones_like(voxel_log_probs_XYZC[..., 0]) if covered_XYZ is None else covered_XYZ
        index_V = covered_XYZ.flatten().nonzero().squeeze(1)
        teacher_VC = voxel_log_probs_XYZC.flatten(0, -2)[index_V]
        rendered_VC, _ = render(stored, self.grid, frame.lidar_pose()[0], index_V)
        difference_VC = teacher_VC.clamp_min(_LOWEST) - rendered_VC
        kl = float((teacher_VC.exp() * difference_VC).sum(1).mean())
        if not kl <= MAX_MEAN_KL:
            raise InputError(
                f"sample {frame.token[0]}: voxels rendered from its stored Gaussians would miss the teacher's by "
                f"{kl:.1e} nats in the mean, the store promises {MAX_MEAN_KL:.0e}: check the teacher, set "
                "teacher.network.head.det=stable, or leave gaussians out of dump.signals"
            )

    @override
    def encode(self, said: Gaussians) -> dict[str, np.ndarray]:
        return {"gaussians": encode_gaussians(said, self.kind)}

    @override
    def decode(self, read: Reading) -> GaussiansTold:
        return GaussiansTold(gaussians=decode_gaussians(read("gaussians"), self.kind))

    @override
    def absent(self) -> GaussiansTold:
        return GaussiansTold(gaussians=decode_gaussians(np.empty((0, len(COLUMNS)), np.float32), self.kind))

    @override
    def fits(self, grid: VoxelGrid) -> bool:
        """They are defined at every point."""
        return True

    @override
    def listen(
        self, record: GaussiansTold, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]
    ) -> RenderedVoxels:
        return RenderedVoxels(record.gaussians, frame.lidar_pose(), grid, free, whole_columns="columns" in asked)


class RenderedVoxels:
    """Renders the voxels that are asked for, each once.

    Args:
        gaussians: of each keyframe, in the LIDAR_TOP frame.
        lidar2ego_B44: LIDAR_TOP to the frame of the grid, mirrored if that is.
        grid: the voxels.
        free: id of the free class.
        whole_columns: render the other voxels of a column along with the first, as they will be asked for, too.
    """

    def __init__(
        self,
        gaussians: Sequence[Gaussians],
        lidar2ego_B44: Tensor,
        grid: VoxelGrid,
        free: int,
        whole_columns: bool,
    ) -> None:
        self.gaussians, self.lidar2ego_B44, self.grid, self.free = gaussians, lidar2ego_B44, grid, free
        self.whole_columns = whole_columns
        voxels = len(gaussians) * grid.shape[0] * grid.shape[1] * grid.shape[2]
        # the row of each voxel; -1: not rendered yet
        self._row_of = torch.full((voxels,), -1, device=lidar2ego_B44.device)
        self._rendered: list[tuple[Tensor, Tensor]] = []

    def covered(self, index: Tensor) -> Tensor:
        """Whether the teacher has modelled the voxels, bool in the shape of `index`."""
        _, covered_R = self._render(index)
        return covered_R[self._row_of[index]]

    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, float32 (V, C)."""
        log_probs_RC, _ = self._render(index_V)
        return log_probs_RC[self._row_of[index_V]]

    def columns(self, index_K: Tensor) -> Tensor:
        """Log-probabilities of columns by the BEV rule over what is covered, float32 (K, C)."""
        index_KZ = voxels_of(index_K, self.grid.shape[2])
        log_probs_KZC = self.voxels(index_KZ.flatten()).view(*index_KZ.shape, -1)
        return bev_log_probs(log_probs_KZC, self.free, self.covered(index_KZ))

    def _render(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """All that is rendered, these voxels among it: log-probabilities (R, C) and coverage (R,)."""
        wanted = torch.zeros_like(self._row_of, dtype=torch.bool)
        wanted[index.flatten()] = True
        if self.whole_columns:
            columns_KZ = wanted.view(-1, self.grid.shape[2])
            columns_KZ |= columns_KZ.any(1, keepdim=True)
        wanted &= self._row_of < 0
        places_B = [wanted_N.nonzero().squeeze(1) for wanted_N in wanted.view(len(self.gaussians), -1)]
        count = sum(map(len, places_B))
        if count or not self._rendered:
            done = sum(len(covered_R) for _, covered_R in self._rendered)
            self._row_of[wanted] = torch.arange(done, done + count, device=wanted.device)
            for gaussians, lidar2ego_44, index_V in zip(self.gaussians, self.lidar2ego_B44, places_B, strict=True):
                if len(index_V) or not self._rendered:
                    self._rendered.append(render(gaussians, self.grid, lidar2ego_44, index_V))
            log_probs, covered = zip(*self._rendered, strict=True)
            self._rendered = [(torch.cat(log_probs), torch.cat(covered))]
        return self._rendered[0]


def render(gaussians: Gaussians, grid: VoxelGrid, lidar2ego_44: Tensor, index_V: Tensor) -> tuple[Tensor, Tensor]:
    """What the Gaussians of one keyframe say about voxels of any grid.

    Args:
        gaussians: in the LIDAR_TOP frame.
        grid: the voxels.
        lidar2ego_44: LIDAR_TOP to the frame of the grid, mirrored if that is.
        index_V: int64, flat positions in (X, Y, Z).

    Returns:
        Log-probabilities, float32 (V, C), and whether the teacher has modelled the voxels, bool (V,); see
        `Gaussians.told`.
    """
    place_V3 = torch.stack(torch.unravel_index(index_V, grid.shape), 1).double() + 0.5
    points_V3 = place_V3 * grid.voxel_size + place_V3.new_tensor(grid.lower)
    ego2lidar_44 = torch.linalg.inv_ex(lidar2ego_44.double()).inverse
    points_V3 = (points_V3 @ ego2lidar_44[:3, :3].T + ego2lidar_44[:3, 3]).float()
    return gaussians.told(points_V3)


def encode_gaussians(gaussians: Gaussians, kind: GaussianKind) -> np.ndarray:
    """The rows of a keyframe, float32 (kind.count, N), rounded; rows of NaN fill it up.

    Raises:
        ValueError: the Gaussians are of another kind, or not all numbers.
    """
    count = len(gaussians.means_G3)
    found = GaussianKind(count, gaussians.form, gaussians.reach, gaussians.det, gaussians.space)
    if count > kind.count or replace(found, count=kind.count) != kind:
        raise ValueError(f"the Gaussians are of the kind {found}, not of the announced {kind}")
    fields = (gaussians.means_G3, gaussians.scales_G3, gaussians.rotations_G4, gaussians.opacities_G.unsqueeze(1))
    values_GN = torch.cat((*fields, gaussians.semantics_GS), 1).cpu().numpy()
    if not np.isfinite(values_GN).all():
        raise ValueError("a Gaussian is not all numbers")
    rows_GN = np.full((kind.count, len(COLUMNS)), np.nan, np.float32)
    rows_GN[:count] = _rounded(values_GN, kind.form)
    return rows_GN


def decode_gaussians(rows_GN: np.ndarray, kind: GaussianKind) -> Gaussians:
    """The Gaussians in rows of `encode_gaussians`, on the CPU; quaternions and probabilities are normalised."""
    rows_GN = rows_GN[~np.isnan(rows_GN[:, 0])]
    rotations_G4, semantics_GS = rows_GN[:, _ROTATION], rows_GN[:, _SEMANTICS]
    rotations_G4 = rotations_G4 / np.linalg.norm(rotations_G4, axis=1, keepdims=True)
    if kind.form == "probabilistic":
        semantics_GS = semantics_GS / semantics_GS.sum(1, keepdims=True)
    return Gaussians(
        _tensor(rows_GN[:, _MEAN]),
        _tensor(rows_GN[:, _SCALE]),
        _tensor(rotations_G4),
        _tensor(rows_GN[:, _OPACITY]),
        _tensor(semantics_GS),
        kind.form,
        kind.reach,
        kind.det,
        kind.space,
    )


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _rounded(values_GN: np.ndarray, form: str) -> np.ndarray:
    rounded_GN = np.empty_like(values_GN)
    rounded_GN[:, _MEAN] = _to_steps(values_GN[:, _MEAN], _MEAN_STEP)
    rounded_GN[:, _SCALE] = round_bits(values_GN[:, _SCALE], _SCALE_BITS)
    rounded_GN[:, _ROTATION] = _to_steps(values_GN[:, _ROTATION], _ROTATION_STEP)
    rounded_GN[:, _OPACITY] = round_bits(values_GN[:, _OPACITY], _OPACITY_BITS)
    semantics_GS = values_GN[:, _SEMANTICS]
    step = _probability_step(semantics_GS) if form == "probabilistic" else _SCORE_STEP
    rounded_GN[:, _SEMANTICS] = _to_steps(semantics_GS, step)
    return rounded_GN


def _probability_step(probs: np.ndarray) -> np.ndarray:
    """2^-7 sqrt(p), but a power of two: so the roots, and the KL divergence, err alike for all p."""
    return np.exp2(np.round(np.log2(np.maximum(probs, 2.0**-30)) / 2) - 7)


def _to_steps(values: np.ndarray, step: np.ndarray | float) -> np.ndarray:
    """The nearest multiples of a step that is a power of two: exact in float32."""
    return np.round(values / step) * step + 0.0  # no -0, whose sign would not compress
