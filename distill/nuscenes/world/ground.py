"""The ground: a raster of materials, level but for the kerbs, and where a ray meets it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.nuscenes.world.materials import GRASS, KERB, KERB_HEIGHT
from distill.nuscenes.world.noise import kernel
from distill.nuscenes.world.shapes import FAR

CELLS_PER_METRE = 10  # also the resolution of nuScenes map masks


@dataclass(frozen=True)
class Ground:
    """Ground materials of a town.

    Attributes:
        materials: uint8 (E, E), [x, y] in cells of 0.1 m; the town's frame starts at the corner of cell (0, 0).
    """

    materials: np.ndarray

    @property
    def extent(self) -> float:
        """Edge length of the town, metres."""
        return len(self.materials) / CELLS_PER_METRE

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Materials at points given in metres; grass outside the town."""
        i, j = (np.floor(np.asarray(v) * CELLS_PER_METRE).astype(int) for v in (x, y))
        size = len(self.materials)
        inside = (i >= 0) & (j >= 0) & (i < size) & (j < size)
        found = np.full(i.shape, GRASS, np.uint8)
        found[inside] = self.materials[i[inside], j[inside]]
        return found

    def height(self, x: float, y: float) -> float:
        """Height of the ground, metres."""
        return KERB_HEIGHT if self.at(np.array(x), np.array(y)) >= KERB else 0.0


@kernel
def material_at(ground: np.ndarray, x: float, y: float) -> int:
    """Material under a point; grass outside the town."""
    i, j = int(np.floor(x * CELLS_PER_METRE)), int(np.floor(y * CELLS_PER_METRE))
    if i < 0 or j < 0 or i >= ground.shape[0] or j >= ground.shape[1]:
        return GRASS
    return int(ground[i, j])


@kernel
def enter_ground(ground, ox, oy, oz, dx, dy, dz):  # type: ignore[no-untyped-def]
    """First hit of a ray with the ground: (t, material, whether it is the upright face of a kerb)."""
    if dz > -1e-9:
        return FAR, GRASS, False
    top, bottom = (KERB_HEIGHT - oz) / dz, -oz / dz
    material = material_at(ground, ox + top * dx, oy + top * dy)
    if material >= KERB:
        return top, material, False
    material = material_at(ground, ox + bottom * dx, oy + bottom * dy)
    if material < KERB:
        return bottom, material, False
    for _ in range(6):
        middle = 0.5 * (top + bottom)
        if material_at(ground, ox + middle * dx, oy + middle * dy) >= KERB:
            bottom = middle
        else:
            top = middle
    return bottom, KERB, True
