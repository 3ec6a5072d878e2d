"""Materials: what a surface is made of, and which class the ground of a material carries."""

from __future__ import annotations

import numpy as np

from distill.classes import OCC3D_CLASSES

# Ground, in the raster. Everything from KERB on lies KERB_HEIGHT above the carriageway.
ASPHALT, LINE, KERB, SLABS, GRASS, SOIL, COBBLES, CYCLE_TRACK = range(8)
# Surfaces of shapes.
PLAIN, FACADE, ROOF, BRICK, PAINT, CABIN, WINDOW_BAND, TYRE, SPOKES, LEAVES, BARK, STRIPES, LAMP, BOX_BODY = range(
    8, 22
)

KERB_HEIGHT = 0.14

_GROUND_NAMES = {
    ASPHALT: "driveable_surface",
    LINE: "driveable_surface",
    KERB: "sidewalk",
    SLABS: "sidewalk",
    GRASS: "terrain",
    SOIL: "terrain",
    COBBLES: "other_flat",
    CYCLE_TRACK: "other_flat",
}
# Class id of a ground material, uint8 (8,).
GROUND_CLASS = np.array([OCC3D_CLASSES.names.index(_GROUND_NAMES[m]) for m in range(8)], dtype=np.uint8)

# LiDAR reflectance of a material at normal incidence, 0-255.
_REFLECTANCE = {
    ASPHALT: 14, LINE: 85, KERB: 30, SLABS: 26, GRASS: 38, SOIL: 24, COBBLES: 28, CYCLE_TRACK: 22,
    PLAIN: 40, FACADE: 46, ROOF: 30, BRICK: 34, PAINT: 60, CABIN: 12, WINDOW_BAND: 22, TYRE: 6, SPOKES: 12,
    LEAVES: 32, BARK: 26, STRIPES: 150, LAMP: 110, BOX_BODY: 55,
}  # fmt: skip
REFLECTANCE = np.array([_REFLECTANCE[m] for m in range(len(_REFLECTANCE))], dtype=np.float32)
