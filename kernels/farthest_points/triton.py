"""Triton twin of `kernels.farthest_points.reference`; same letters, same results, one program per subset.

Each step finds the buckets within reach of the point chosen last, queues them, shortens the distances of `_AT_ONCE`
buckets at a time, and takes the farthest of all buckets.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.farthest_points.buckets import SIZE, fill_buckets

_AT_ONCE = 16


def sample(parts: list[Tensor], counts: list[int]) -> list[Tensor]:
    """`counts[r]` numbers of points of each set float32 (P, 3); the sets differ by one point at most."""
    subsets, buckets = len(parts), triton.cdiv(len(parts[0]), SIZE)
    device = parts[0].device
    points_RP3 = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    filled = [fill_buckets(points_P3, buckets) for points_P3 in parts]
    chosen_RK = torch.zeros(subsets, max(counts), dtype=torch.int64, device=device)
    _sample[(subsets,)](
        points_RP3,
        *(torch.stack(tensors) for tensors in zip(*filled, strict=True)),
        torch.full((subsets, buckets), torch.inf, device=device),
        torch.zeros(subsets, buckets, dtype=torch.int32, device=device),
        torch.zeros(subsets, buckets, dtype=torch.int32, device=device),
        chosen_RK,
        points_RP3.shape[1],
        max(counts),
        buckets,
        SIZE,
        _AT_ONCE,
        triton.next_power_of_2(buckets),
        num_warps=8,
        num_stages=1,
        enable_fp_fusion=False,  # distances equal those of the reference bit by bit
    )
    return [chosen_K[:count] for chosen_K, count in zip(chosen_RK, counts, strict=True)]


@triton.jit
def _sample(
    points,
    bucket_points,
    index,
    distance,
    lower,
    upper,
    reach,
    farthest,
    queue,
    chosen,
    size,
    count,
    buckets,
    SIZE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    subset = tl.program_id(0)
    points += subset * size * 3
    chosen += subset * count
    b = tl.arange(0, BLOCK_B)
    real = b < buckets
    first = subset * buckets
    corner = (first + b) * 3
    lower_x = tl.load(lower + corner, mask=real, other=0.0)
    lower_y = tl.load(lower + corner + 1, mask=real, other=0.0)
    lower_z = tl.load(lower + corner + 2, mask=real, other=0.0)
    upper_x = tl.load(upper + corner, mask=real, other=0.0)
    upper_y = tl.load(upper + corner + 1, mask=real, other=0.0)
    upper_z = tl.load(upper + corner + 2, mask=real, other=0.0)
    x, y, z = tl.load(points), tl.load(points + 1), tl.load(points + 2)
    for k in range(1, count):
        reach_B = tl.load(reach + first + b, mask=real, other=-1.0)
        dx = tl.maximum(tl.maximum(lower_x - x, x - upper_x), 0.0)
        dy = tl.maximum(tl.maximum(lower_y - y, y - upper_y), 0.0)
        dz = tl.maximum(tl.maximum(lower_z - z, z - upper_z), 0.0)
        near = (real & (dx * dx + dy * dy + dz * dz < reach_B)).to(tl.int32)
        tl.store(queue + first + tl.cumsum(near, 0) - 1, first + b, mask=near != 0)
        tl.debug_barrier()
        queued = tl.sum(near, 0)
        for start in range(0, queued, AT_ONCE):
            q = start + tl.arange(0, AT_ONCE)
            bucket = tl.load(queue + first + q, mask=q < queued, other=0)
            _update(bucket, q < queued, x, y, z, bucket_points, index, distance, reach, farthest, SIZE)
        tl.debug_barrier()
        reach_B = tl.load(reach + first + b, mask=real, other=-1.0)
        farthest_B = tl.load(farthest + first + b, mask=real, other=0)
        best = tl.min(tl.where(reach_B == tl.max(reach_B, 0), farthest_B, 0x7FFFFFFF), 0)
        tl.store(chosen + k, best)
        x, y, z = tl.load(points + best * 3), tl.load(points + best * 3 + 1), tl.load(points + best * 3 + 2)


@triton.jit
def _update(bucket, real, x, y, z, bucket_points, index, distance, reach, farthest, SIZE: tl.constexpr):
    slot = bucket[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    mask = real[:, None] & (slot >= 0)
    dx = tl.load(bucket_points + slot * 3, mask=mask, other=0.0) - x
    dy = tl.load(bucket_points + slot * 3 + 1, mask=mask, other=0.0) - y
    dz = tl.load(bucket_points + slot * 3 + 2, mask=mask, other=0.0) - z
    shortest = tl.minimum(tl.load(distance + slot, mask=mask, other=-1.0), dx * dx + dy * dy + dz * dz)
    tl.store(distance + slot, shortest, mask=mask)
    furthest = tl.max(shortest, 1)
    number = tl.where(shortest == furthest[:, None], tl.load(index + slot, mask=mask, other=0), 0x7FFFFFFF)
    tl.store(reach + bucket, furthest, mask=real)
    tl.store(farthest + bucket, tl.min(number, 1), mask=real)
