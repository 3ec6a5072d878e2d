"""Torch reference of farthest point sampling: the definition. Letters as in `kernels.farthest_points`."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(parts: list[Tensor], counts: list[int]) -> list[Tensor]:
    """`counts[r]` numbers of points of each set float32 (P, 3)."""
    return [_sample(points_P3, count) for points_P3, count in zip(parts, counts, strict=True)]


def _sample(points_P3: Tensor, count: int) -> Tensor:
    x_P, y_P, z_P = points_P3.T.contiguous()
    distance_P = torch.full_like(x_P, torch.inf)
    chosen_K = torch.zeros(count, dtype=torch.int64, device=points_P3.device)
    for k in range(1, count):
        last = chosen_K[k - 1]
        dx, dy, dz = x_P - x_P[last], y_P - y_P[last], z_P - z_P[last]
        distance_P = torch.minimum(distance_P, dx * dx + dy * dy + dz * dz)
        chosen_K[k] = distance_P.argmax()
    return chosen_K
