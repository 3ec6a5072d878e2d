"""Farthest point sampling (Eldar et al. 1997): each next point is the one farthest from all points chosen so far.

A point chosen changes only distances in its neighbourhood, and the more are chosen the smaller that is. The CPU and
Triton implementations therefore keep the points in spatial buckets and skip every bucket that is out of reach; the
result is that of the plain loop, bit by bit.

Letters: P points, K points chosen, R subsets, B buckets, S points of a bucket.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import twin


def farthest_points(points_P3: Tensor, count: int, subsets: int) -> Tensor:
    """Choose `count` points, starting with the first; of equally far points the first is taken.

    Args:
        points_P3: finite coordinates; computed in float32.
        count: K, from 1 to P.
        subsets: 1, or R > 1 to sample every R-th point by itself (R times less work, coarser): subset r holds the
            points r, r + R, ... and gives its share of K.

    Returns:
        int64 (K,) numbers of the points, in the order of choice, subset after subset.

    Raises:
        ValueError: fewer points than asked for, or fewer asked for than subsets.
    """
    if not 1 <= subsets <= count <= len(points_P3):
        raise ValueError(f"cannot choose {count} of {len(points_P3)} points in {subsets} subsets")
    parts = [points_P3[r::subsets].float().contiguous() for r in range(subsets)]
    counts = [len(range(r, count, subsets)) for r in range(subsets)]
    chosen = twin(__name__, points_P3.device).sample(parts, counts)
    return torch.cat([r + subsets * chosen_K for r, chosen_K in enumerate(chosen)])
