"""What a network says of a batch as it is trained on: an answer that lies in no store.

Letters: B batch, X Y Z voxel axes, C classes, V voxels and K columns of the whole batch.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from distill.bev import bev_log_probs
from distill.errors import InputError
from distill.frame import GRID, Array, Frame, Record, declared
from distill.grids import VoxelGrid
from distill.signals.seen import RAYS_PER_ROW, seen_by_cameras
from distill.signals.voxels import voxels_of


@dataclass(frozen=True)
class Predicted(Record):
    """What a network says.

    Attributes:
        logits: unnormalised class scores (X, Y, Z, C), without gradients.
    """

    logits: Array = declared(GRID)


class Predictions:
    """Listens to `Predicted`, as signals do to what they have decoded (`distill.signals.Signal.listen`)."""

    name = "predicted"
    answers = frozenset({"voxels", "columns", "seen", "covered"})

    def listen(self, record: Predicted, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> PredictedVoxels:
        """Its answers about a batch."""
        return PredictedVoxels(record.logits, frame, grid, free)

    def check(self, name: str, asked: Collection[str]) -> None:
        """Raise InputError where the teacher `name` is asked something else."""
        unknown = sorted(set(asked) - self.answers)
        if unknown:
            raise InputError(
                f"teachers.{name} answers for {', '.join(sorted(self.answers))}, not for {', '.join(unknown)}: let "
                "the terms that ask listen to other teachers (kd.terms.NAME.teachers)"
            )


class PredictedVoxels:
    """Looks up the voxels that are asked for."""

    def __init__(self, logits_BXYZC: Tensor, frame: Frame, grid: VoxelGrid, free: int) -> None:
        self.logits_BXYZC, self.frame, self.grid, self.free = logits_BXYZC, frame, grid, free

    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, float32 (V, C)."""
        return self.logits_BXYZC.flatten(0, -2).index_select(0, index_V).float().log_softmax(-1)

    def columns(self, index_K: Tensor) -> Tensor:
        """Log-probabilities of columns by the BEV rule, float32 (K, C)."""
        index_KZ = voxels_of(index_K, self.grid.shape[2])
        return bev_log_probs(self.voxels(index_KZ.flatten()).unflatten(0, index_KZ.shape), self.free)

    def seen(self, index_V: Tensor) -> Tensor:
        """Whether cameras see voxels through what the network finds (docs/formulas.md 4.9), bool (V,)."""
        return self._seen_BXYZ.flatten()[index_V]

    def covered(self, index: Tensor) -> Tensor:
        """A network has modelled every voxel."""
        return torch.ones_like(index, dtype=torch.bool)

    @cached_property
    def _seen_BXYZ(self) -> Tensor:  # noqa: N802 - the shape suffix
        return seen_by_cameras(self.logits_BXYZC.argmax(-1) != self.free, self.frame, self.grid, RAYS_PER_ROW)
