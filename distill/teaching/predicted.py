"""What a network says of a batch as it is trained on: an answer that lies in no store.

Letters: B batch, X Y Z voxel axes, C classes, V voxels and K columns of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence, Set
from functools import cached_property, reduce

import torch
from torch import Tensor

from distill.bev import bev_log_probs
from distill.errors import InputError
from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.signals.seen import RAYS_PER_ROW, seen_by_cameras
from distill.signals.voxels import voxels_of


class Predictions:
    """Listens to the heads of a network, as a signal does to what it has decoded (`distill.signals.Signal.listen`).

    Args:
        more: questions that are answered beside those about voxels: "heads", of a network that learns by them.
    """

    name = "predicted"

    def __init__(self, more: Set[str] = frozenset()) -> None:
        self.answers = {"voxels", "columns", "seen", "covered"} | more

    def listen(
        self, record: Sequence[Tensor], frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]
    ) -> PredictedVoxels:
        """Its answers about a batch; `record` holds the logits (B, X, Y, Z, C) of each head."""
        return PredictedVoxels(record, frame, grid, free)

    def check(self, name: str, asked: Collection[str]) -> None:
        """Raise InputError where the teacher `name` is asked something else."""
        unknown = sorted(set(asked) - self.answers)
        if unknown:
            raise InputError(
                f"teachers.{name} answers for {', '.join(sorted(self.answers))}, not for {', '.join(unknown)}: let "
                "the terms that ask listen to other teachers (kd.terms.NAME.teachers)"
            )


class PredictedVoxels:
    """Looks up the voxels that are asked for: the mean of what the heads say, in probabilities."""

    def __init__(self, heads: Sequence[Tensor], frame: Frame, grid: VoxelGrid, free: int) -> None:
        self.logits_BXYZC, self.frame, self.grid, self.free = heads, frame, grid, free

    def heads(self, index_V: Tensor) -> list[Tensor]:
        """Logits of voxels by each head, float32 at least (V, C), for whoever trains them: with gradients."""
        found = [logits.flatten(0, -2).index_select(0, index_V) for logits in self.logits_BXYZC]
        return [logits_VC.to(torch.promote_types(logits_VC.dtype, torch.float32)) for logits_VC in found]

    @torch.no_grad()
    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, float32 at least (V, C)."""
        return mean_log_probs(self.heads(index_V))

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
    @torch.no_grad()
    def _seen_BXYZ(self) -> Tensor:  # noqa: N802 - the shape suffix
        # the classes of `mean_log_probs`, without its logarithms, which take long
        total_BXYZC = reduce(torch.add, (logits.float().softmax(-1) for logits in self.logits_BXYZC))
        occupied_BXYZ = total_BXYZC.argmax(-1) != self.free
        return seen_by_cameras(occupied_BXYZ, self.frame, self.grid, RAYS_PER_ROW)


def mean_log_probs(heads: Sequence[Tensor]) -> Tensor:
    """ln of the mean of softmax(logits) over the heads, whose logits are (..., C)."""
    total = heads[0].log_softmax(-1)
    for logits in heads[1:]:
        total = torch.logaddexp(total, logits.log_softmax(-1))
    return total - math.log(len(heads))
