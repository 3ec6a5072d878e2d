"""Farthest point sampling on the CPU; same results as `kernels.farthest_points.reference`, same letters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.compiled import compiled
from kernels.farthest_points.buckets import SIZE, fill_buckets


def sample(parts: list[Tensor], counts: list[int]) -> list[Tensor]:
    """`counts[r]` numbers of points of each set float32 (P, 3)."""
    chosen = []
    for points_P3, count in zip(parts, counts, strict=True):
        buckets = fill_buckets(points_P3, -(-len(points_P3) // SIZE))
        chosen.append(torch.from_numpy(_sample(count, points_P3.numpy(), *(tensor.numpy() for tensor in buckets))))
    return chosen


@compiled()
def _sample(count, points_P3, points_BS3, index_BS, distance_BS, lower_B3, upper_B3):
    # of each bucket: the farthest point, by its number, and its distance
    farthest_B = np.zeros(len(points_BS3), np.int32)
    reach_B = np.full(len(points_BS3), np.inf, np.float32)
    chosen_K = np.zeros(count, np.int64)
    for k in range(1, count):
        point_3 = points_P3[chosen_K[k - 1]]
        best, best_distance = 0, np.float32(-1)
        for b in range(len(points_BS3)):
            if _box_distance(point_3, lower_B3[b], upper_B3[b]) < reach_B[b]:
                farthest_B[b], reach_B[b] = _update(point_3, points_BS3[b], index_BS[b], distance_BS[b])
            if reach_B[b] > best_distance or (reach_B[b] == best_distance and farthest_B[b] < best):
                best, best_distance = farthest_B[b], reach_B[b]
        chosen_K[k] = best
    return chosen_K


@compiled()
def _box_distance(point_3, lower_3, upper_3):
    """Squared distance to a box; rounding never makes it larger than that to a point inside."""
    dx = max(lower_3[0] - point_3[0], point_3[0] - upper_3[0], np.float32(0))
    dy = max(lower_3[1] - point_3[1], point_3[1] - upper_3[1], np.float32(0))
    dz = max(lower_3[2] - point_3[2], point_3[2] - upper_3[2], np.float32(0))
    return dx * dx + dy * dy + dz * dz


@compiled()
def _update(point_3, points_S3, index_S, distance_S):
    """Shorten the distances of one bucket; returns its farthest point and that point's distance."""
    farthest, reach = 0, np.float32(-1)
    for s in range(len(points_S3)):
        dx, dy, dz = points_S3[s, 0] - point_3[0], points_S3[s, 1] - point_3[1], points_S3[s, 2] - point_3[2]
        distance_S[s] = min(distance_S[s], dx * dx + dy * dy + dz * dz)
        if distance_S[s] > reach or (distance_S[s] == reach and index_S[s] < farthest):
            farthest, reach = index_S[s], distance_S[s]
    return farthest, reach
