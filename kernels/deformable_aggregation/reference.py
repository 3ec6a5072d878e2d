"""Torch reference of deformable aggregation; runs on any device. Letters as in `kernels.deformable_aggregation`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def aggregate(maps: list[Tensor], uv_GPN2: Tensor, weights_GPNLA: Tensor) -> Tensor:
    """Weighted samples, float32 (G, C): per level and group, a bag of pixels for each query."""
    query_M, point_M, camera_M = _within_an_image(maps, uv_GPN2).nonzero(as_tuple=True)
    begin_G = torch.searchsorted(query_M, torch.arange(len(uv_GPN2), device=query_M.device)) * 4
    uv_M2 = uv_GPN2[query_M, point_M, camera_M]
    weights_MLA = weights_GPNLA[query_M, point_M, camera_M]
    groups = weights_MLA.shape[2]
    out_GAC = uv_GPN2.new_zeros(len(uv_GPN2), groups, maps[0].shape[1] // groups)
    for level, map_NCHW in enumerate(maps):
        index_M4, share_M4 = _corners(uv_M2, camera_M, *map_NCHW.shape[2:])
        rows_AQC = map_NCHW.unflatten(1, (groups, -1)).permute(1, 0, 3, 4, 2).reshape(groups, -1, out_GAC.shape[2])
        for group, rows_QC in enumerate(rows_AQC):
            share_K = (share_M4 * weights_MLA[:, level, group, None]).flatten()
            out_GAC[:, group] += F.embedding_bag(
                index_M4.flatten(), rows_QC, begin_G, mode="sum", per_sample_weights=share_K
            )
    return out_GAC.flatten(1)


def _within_an_image(maps: list[Tensor], uv_GPN2: Tensor) -> Tensor:
    """Which projections reach a pixel of any level, bool (G, P, N)."""
    sizes_L2 = uv_GPN2.new_tensor([map_NCHW.shape[:1:-1] for map_NCHW in maps])
    margin_2 = 0.5 / sizes_L2.amin(0)
    return ((uv_GPN2 > -margin_2) & (uv_GPN2 < 1 + margin_2)).all(3)


def _corners(uv_M2: Tensor, camera_M: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows of the four pixels around each sample in an (N * H * W) table, and their shares, 0 outside; (M, 4) each."""
    column_M, row_M = (uv_M2 * uv_M2.new_tensor([width, height]) - 0.5).unbind(1)
    left_M, top_M = column_M.floor(), row_M.floor()
    right_M, below_M = column_M - left_M, row_M - top_M
    indices, shares = [], []
    for row, row_share in ((top_M, 1 - below_M), (top_M + 1, below_M)):
        for column, column_share in ((left_M, 1 - right_M), (left_M + 1, right_M)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (camera_M * height + row.long()) * width + column.long()
            indices.append(torch.where(inside, index, 0))
            shares.append(torch.where(inside, row_share * column_share, 0))
    return torch.stack(indices, 1), torch.stack(shares, 1)
