"""The ground: a raster of materials, level but for the kerbs, and where a ray meets it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.demo.materials import GRASS, KERB, KERB_HEIGHT
from distill.demo.noise import kernel
from distill.demo.shapes import FAR

CELLS_PER_METRE = 10  # also the resolution of nuScenes map masks
_BORDER = 0.12  # metres from a border where it is smoothed


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
def _cell(ground: np.ndarray, x: float, y: float) -> int:
    i, j = int(np.floor(x * CELLS_PER_METRE)), int(np.floor(y * CELLS_PER_METRE))
    if i < 0 or j < 0 or i >= ground.shape[0] or j >= ground.shape[1]:
        return GRASS
    return int(ground[i, j])


@kernel
def near_border(ground, x, y):  # type: ignore[no-untyped-def]
    """Whether cells around a point differ in material."""
    r = _BORDER
    here = _cell(ground, x - r, y - r)
    return not (here == _cell(ground, x + r, y - r) == _cell(ground, x - r, y + r) == _cell(ground, x + r, y + r))


@kernel
def material_at(ground: np.ndarray, x: float, y: float) -> int:
    """Material under a point, borders smoothed below the cell size; grass outside the town."""
    if not near_border(ground, x, y):
        return _cell(ground, x, y)
    best, found = -1.0, GRASS
    for k in range(5):
        reach = _BORDER if k < 4 else 0.0
        candidate = _cell(ground, x + (2 * (k & 1) - 1) * reach, y + ((k & 2) - 1) * reach)
        weight = 0.0
        for i in range(-1, 3):
            cx = np.floor(x * CELLS_PER_METRE - 0.5) + i + 0.5
            for j in range(-1, 3):
                cy = np.floor(y * CELLS_PER_METRE - 0.5) + j + 0.5
                if _cell(ground, cx / CELLS_PER_METRE, cy / CELLS_PER_METRE) == candidate:
                    u, v = cx - x * CELLS_PER_METRE, cy - y * CELLS_PER_METRE
                    weight += max(0.0, 3.2 - u * u - v * v)
        if weight > best:
            best, found = weight, candidate
    return found


@kernel
def _in_rectangle(i, j, x, y, cos, sin, depth, width):  # type: ignore[no-untyped-def]
    u, v = (i + 0.5) / CELLS_PER_METRE - x, (j + 0.5) / CELLS_PER_METRE - y
    return abs(u * cos + v * sin) <= 0.5 * depth and abs(v * cos - u * sin) <= 0.5 * width


@kernel
def is_free(taken, x, y, yaw, depth, width):  # type: ignore[no-untyped-def]
    """Whether no cell of `taken` is set in a rectangle around (x, y), its depth along `yaw`; outside is not free."""
    reach, cos, sin = 0.5 * np.hypot(depth, width), np.cos(yaw), np.sin(yaw)
    low_i, high_i = int((x - reach) * CELLS_PER_METRE), int((x + reach) * CELLS_PER_METRE) + 1
    low_j, high_j = int((y - reach) * CELLS_PER_METRE), int((y + reach) * CELLS_PER_METRE) + 1
    if low_i < 0 or low_j < 0 or high_i > taken.shape[0] or high_j > taken.shape[1]:
        return False
    for i in range(low_i, high_i):
        for j in range(low_j, high_j):
            if taken[i, j] and _in_rectangle(i, j, x, y, cos, sin, depth, width):
                return False
    return True


@kernel
def fill_rectangle(raster, x, y, yaw, depth, width, value):  # type: ignore[no-untyped-def]
    """Set the cells of a rectangle around (x, y), its depth along `yaw`."""
    reach, cos, sin = 0.5 * np.hypot(depth, width), np.cos(yaw), np.sin(yaw)
    low_i, high_i = int((x - reach) * CELLS_PER_METRE), int((x + reach) * CELLS_PER_METRE) + 1
    low_j, high_j = int((y - reach) * CELLS_PER_METRE), int((y + reach) * CELLS_PER_METRE) + 1
    for i in range(max(0, low_i), min(raster.shape[0], high_i)):
        for j in range(max(0, low_j), min(raster.shape[1], high_j)):
            if _in_rectangle(i, j, x, y, cos, sin, depth, width):
                raster[i, j] = value


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
