"""BEV pooling for exported graphs: every point by itself, and one scatter-add. Letters as in `kernels.bev_pool`."""

from __future__ import annotations

from torch import Tensor


def splat(depth_PD: Tensor, context_PC: Tensor, cell_PD: Tensor, cells: int) -> Tensor:
    """The pooling, (K, C): in ONNX a ScatterND of rows, which ONNX Runtime adds twenty times as fast as elements."""
    points = (depth_PD.unsqueeze(2) * context_PC.unsqueeze(1)).flatten(0, 1)
    pooled = context_PC.new_zeros(cells + 1, context_PC.shape[1])
    return pooled.index_put((cell_PD.flatten(),), points, accumulate=True)[:cells]
