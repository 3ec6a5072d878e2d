"""What the walk of a ray through voxels begins with; torch on any device. Letters as in `kernels.ray_cast`."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_VOXELS = 1001  # that a ray visits, in the grid and outside


def first_borders(origins_R3: Tensor, ends_R3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where rays begin and how they go on.

    Returns:
        Per ray and axis: the first voxel, int32; the direction in which voxels are crossed, int32, 1 or -1; the
        distance to the first border, float64; the distance between two borders, float64. Distances are infinite along
        an axis on which the ray does not move.
    """
    origins_R3, ends_R3 = origins_R3.double(), ends_R3.double()
    x, y, z = (ends_R3 - origins_R3).unbind(-1)
    direction_R3 = (ends_R3 - origins_R3) / (x * x + y * y + z * z).sqrt().unsqueeze(-1)
    voxel_R3 = origins_R3.int()
    forward_R3 = direction_R3 >= 0
    step_R3 = torch.where(forward_R3, 1, -1).int()
    moves_R3 = direction_R3 != 0
    border_R3 = ((voxel_R3 + forward_R3.int()).double() - origins_R3) / direction_R3
    spacing_R3 = step_R3.double() / direction_R3
    return voxel_R3, step_R3, border_R3.where(moves_R3, torch.inf), spacing_R3.where(moves_R3, torch.inf)
