"""Points sorted into spatial buckets. Letters as in `kernels.farthest_points`."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 64  # points of a bucket
_BITS = 10  # per axis, of the cell by which points are sorted


def fill_buckets(points_P3: Tensor, buckets: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cut the Z-order curve through float32 points into `buckets` runs of `SIZE`; the last ones are filled up.

    Returns:
        points_BS3: coordinates; a filler repeats the last point.
        index_BS: int32 number of each point; P for a filler.
        distance_BS: float32 squared distance to the nearest chosen point: infinite at first, -1 for a filler.
        lower_B3: minimum corner of each bucket.
        upper_B3: maximum corner of each bucket.
    """
    count = len(points_P3)
    fillers = buckets * SIZE - count
    order_P = _z_order(points_P3).argsort(stable=True)
    sorted_P3 = points_P3[order_P]
    points_BS3 = torch.cat([sorted_P3, sorted_P3[-1:].expand(fillers, 3)]).view(buckets, SIZE, 3)
    index_BS = torch.cat([order_P.int(), order_P.new_full((fillers,), count).int()]).view(buckets, SIZE)
    distance_BS = torch.where(index_BS < count, torch.inf, -1.0)
    return points_BS3, index_BS, distance_BS, points_BS3.amin(1), points_BS3.amax(1)


def _z_order(points_P3: Tensor) -> Tensor:
    """Place of each point on a Z-order curve (Morton 1966), int32 (P,)."""
    offset_P3 = points_P3 - points_P3.amin(0)
    width = offset_P3.amax().clamp(min=torch.finfo(torch.float32).tiny)
    cell_P3 = (offset_P3 / width * (2**_BITS - 1)).int()
    code_P = torch.zeros_like(cell_P3[:, 0])
    for bit in range(_BITS):
        for axis in range(3):
            code_P |= (cell_P3[:, axis] >> bit & 1) << (3 * bit + axis)
    return code_P
