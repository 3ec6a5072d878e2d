"""Convolution among the Gaussians themselves (docs/formulas.md 6.8).

Letters: G Gaussians, K anchor columns, C channels, I O input and output channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distill.grids import SURROUNDOCC
from kernels.submanifold import Neighbours, find_neighbours, submanifold_conv
from teacher_dump.teachers.gaussianformer import anchors

_KERNEL = 5


class SubMConv3d(nn.Module):
    """A submanifold convolution with spconv's parameter layout (O, k, k, k, I)."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, _KERNEL, _KERNEL, _KERNEL, channels))
        nn.init.normal_(self.weight, std=(channels * _KERNEL**3) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x_GC: Tensor, neighbours: Neighbours) -> Tensor:
        """(G, C) -> (G, C)."""
        return submanifold_conv(x_GC, self.weight, self.bias, neighbours)


class SparseConv3D(nn.Module):
    """Submanifold convolutions over the voxels that the Gaussians' centres fall into.

    Args:
        channels: C.
        voxel_size: metres.
        deep: three convolutions with bias, LayerNorm and ReLU, instead of a bare one.
        projected: whether a linear layer follows.
        legacy: whether the voxels begin at the smallest coordinates of all centres (docs/formulas.md 6.10).
        duplicates: what happens to Gaussians in one voxel; see `kernels.submanifold`.
    """

    pc_range: Tensor
    grid_size: Tensor

    def __init__(
        self,
        channels: int,
        voxel_size: float,
        deep: bool,
        projected: bool,
        legacy: bool,
        duplicates: Literal["single", "sum"],
    ) -> None:
        super().__init__()
        self.register_buffer("pc_range", torch.tensor([*SURROUNDOCC.lower, *SURROUNDOCC.upper]))
        self.register_buffer("grid_size", torch.full((3,), voxel_size))
        self.shape = [round(extent * SURROUNDOCC.voxel_size / voxel_size) for extent in SURROUNDOCC.shape]
        self.layer = _stack(channels) if deep else SubMConv3d(channels, bias=False)
        self.output_proj = nn.Linear(channels, channels) if projected else nn.Identity()
        self.legacy = legacy
        self.duplicates: Literal["single", "sum"] = duplicates

    def forward(self, x_GC: Tensor, anchor_GK: Tensor) -> Tensor:
        """Features and anchors -> (G, C)."""
        neighbours = self._neighbours(anchors.means(anchor_GK))
        for module in self.layer if isinstance(self.layer, nn.Sequential) else [self.layer]:
            x_GC = module(x_GC, neighbours) if isinstance(module, SubMConv3d) else module(x_GC)
        return self.output_proj(x_GC)

    def _neighbours(self, means_G3: Tensor) -> Neighbours:
        lower_3 = means_G3.amin(0) if self.legacy else self.pc_range[:3]
        cell_G3 = ((means_G3 - lower_3) / self.grid_size).int()
        # one less than there are along each axis: upstream took the largest index for the extent
        shape = cell_G3.amax(0).tolist() if self.legacy else self.shape
        return find_neighbours(cell_G3, shape, _KERNEL, self.duplicates)


def _stack(channels: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for _ in range(3):
        modules += [SubMConv3d(channels, bias=True), nn.LayerNorm(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules)
