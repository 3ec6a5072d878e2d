"""Submanifold sparse convolution (Graham et al. 2018) over rows of which several may share a voxel.

A voxel gives something out only where something came in. With one row per voxel this is a dense convolution, read at
the occupied voxels. With more, spconv's rules decide (docs/formulas.md 6.8): k runs over the taps in lexicographic
order, d_k is the step of tap k, c the centre, and every voxel has one representative row:

    centre:  every row i             out_i   += W_c x_i
    k > c:   every row i at voxel p  out_i   += W_k x_r   with r the representative at p + d_k
    k < c:   every row i at voxel p  out_r   += W_k x_i   with r the representative at p - d_k

Duplicates "sum" is spconv on a CPU: the representative is the first row. Duplicates "single" is spconv on a GPU, where
of several rows i of one voxel that write to one row r a single one survives; which one, and which row represents a
voxel, is a race there and the last row here.

What a row receives from k > c, and what it contributes to k < c, depends on its voxel alone. So both sums run over
voxels, each in one gather-GEMM, and no two products write to one place at the same time.

Letters: V rows, U voxels that hold rows, R representatives, K taps of the kernel, J = (K - 1) / 2 taps on one side of
the centre, I input channels, O output channels, N rows of a table.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import twin
from kernels.submanifold.neighbours import Neighbours, find_neighbours

__all__ = ["Neighbours", "find_neighbours", "submanifold_conv"]


def submanifold_conv(x_VI: Tensor, weight_OKKKI: Tensor, bias_O: Tensor | None, neighbours: Neighbours) -> Tensor:
    """Convolve rows with those around them, in float32; forward only, deterministic on every device.

    Args:
        x_VI: float32 features of each row.
        weight_OKKKI: float32 kernel, taps along x, y, z as in a cross-correlation.
        bias_O: added to every row.
        neighbours: of the same rows and kernel size.

    Returns:
        float32 (V, O).
    """
    weight_KIO = weight_OKKKI.flatten(1, 3).permute(1, 2, 0).contiguous()
    centre = len(weight_KIO) // 2
    gather_gemm = twin(__name__, x_VI.device).gather_gemm
    out_VO = x_VI @ weight_KIO[centre]
    if bias_O is not None:
        out_VO += bias_O
    after_UO = gather_gemm(x_VI, neighbours.source_JU, weight_KIO[centre + 1 :])
    out_VO += after_UO[neighbours.voxel_V]
    x_UI = F.embedding_bag(neighbours.member_M, x_VI, neighbours.begin_U, mode="sum")
    before_RO = gather_gemm(x_UI, neighbours.source_JR, weight_KIO[:centre].flip(0))
    out_VO[neighbours.representative_R] += before_RO
    return out_VO
