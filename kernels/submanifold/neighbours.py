"""Which rows a submanifold convolution connects. Letters as in `kernels.submanifold`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Neighbours(NamedTuple):
    """Who receives from whom under which tap; made once for all convolutions over the same voxels.

    Attributes:
        voxel_V: number of each row's voxel in [0, U).
        member_M: the rows of each voxel that contribute to the taps before the centre, voxel after voxel.
        begin_U: where each voxel's rows begin in `member_M`.
        representative_R: row numbers.
        source_JU: int32, the row from which voxel u receives under tap c + 1 + j, -1 = none.
        source_JR: int32, the voxel from which representative r receives under tap c - 1 - j, -1 = none.
    """

    voxel_V: Tensor
    member_M: Tensor
    begin_U: Tensor
    representative_R: Tensor
    source_JU: Tensor
    source_JR: Tensor


def find_neighbours(
    cell_V3: Tensor, shape: Sequence[int], kernel: int, duplicates: Literal["single", "sum"]
) -> Neighbours:
    """Find the rows that a cubic kernel connects.

    Args:
        cell_V3: integer voxel coordinates, not negative. As in spconv, a row beyond `shape` looks for its neighbours
            like any other, but is itself found in the voxel that has its place in a C-order array, if there is one.
        shape: voxels along the three axes.
        kernel: odd edge length of the kernel.
        duplicates: what happens to rows that share a voxel, see `kernels.submanifold`.
    """
    place_V = _place(cell_V3, shape)
    by_place = _group(place_V)
    # by coordinates: beyond the shape, several voxels have one place
    by_voxel = _group(_place(cell_V3, [int(cell_V3.max()) + 1] * 3))
    if duplicates == "sum":
        representative_R, member_M, begin_U = by_place.first_N, by_voxel.order_V, by_voxel.begin_N
    else:
        representative_R, member_M = by_place.last_N, by_voxel.last_N
        begin_U = torch.arange(len(member_M), device=cell_V3.device)
    representative_R = representative_R[place_V[representative_R] < math.prod(shape)]
    found_JU = _look_around(cell_V3[by_voxel.first_N], shape, kernel, place_V[representative_R])
    return Neighbours(
        voxel_V=by_voxel.number_V,
        member_M=member_M,
        begin_U=begin_U,
        representative_R=representative_R,
        source_JU=F.pad(representative_R, (0, 1), value=-1)[found_JU].int(),
        source_JR=_invert(found_JU, len(representative_R)).int(),
    )


class _Groups(NamedTuple):
    """Rows by a number they share: (V,) number of each row's group, rows group after group; (N,) per group."""

    number_V: Tensor
    order_V: Tensor
    begin_N: Tensor
    first_N: Tensor
    last_N: Tensor


def _group(key_V: Tensor) -> _Groups:
    _, number_V, rows_N = torch.unique(key_V, return_inverse=True, return_counts=True)
    order_V = number_V.argsort(stable=True)
    end_N = rows_N.cumsum(0)
    begin_N = end_N - rows_N
    return _Groups(number_V, order_V, begin_N, order_V[begin_N], order_V[end_N - 1])


def _place(cell_N3: Tensor, shape: Sequence[int]) -> Tensor:
    """Place in a C-order array of this shape, int64."""
    x, y, z = cell_N3.long().unbind(-1)
    return (x * shape[1] + y) * shape[2] + z


def _look_around(cell_U3: Tensor, shape: Sequence[int], kernel: int, place_R: Tensor) -> Tensor:
    """Number of the representative at each step after the centre from each voxel, int64 (J, U), -1 = none."""
    device = cell_U3.device
    # the last entry is for everything outside
    occupant = torch.full((math.prod(shape) + 1,), -1, device=device)
    occupant[place_R] = torch.arange(len(place_R), device=device)
    axis = torch.arange(kernel, device=device) - kernel // 2
    step_J3 = torch.cartesian_prod(axis, axis, axis)[kernel**3 // 2 + 1 :]
    cell_JU3 = cell_U3 + step_J3.unsqueeze(1)
    inside_JU = ((cell_JU3 >= 0) & (cell_JU3 < torch.tensor(shape, device=device))).all(2)
    return occupant[torch.where(inside_JU, _place(cell_JU3, shape), -1)]


def _invert(found_JU: Tensor, representatives: int) -> Tensor:
    """Number of the voxel that finds each representative at each step, int64 (J, R), -1 = none."""
    finder_JR = torch.full((len(found_JU), representatives), -1, device=found_JU.device)
    step_P, voxel_P = (found_JU >= 0).nonzero(as_tuple=True)
    finder_JR[step_P, found_JU[step_P, voxel_P]] = voxel_P
    return finder_JR
