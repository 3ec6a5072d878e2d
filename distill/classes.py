"""Class sets: names, colours, the free id and which classes are scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassSet:
    """The classes of a voxel label array; the id of a class is its position.

    Attributes:
        name: short name used in stores.
        names: class names, id order.
        colours: RGB 0-255 per class, id order (the colours of the nuScenes occupancy papers).
        free: id of empty space.
        frequencies: camera-visible voxel counts over the training split, id order.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    free: int
    frequencies: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def palette(self) -> np.ndarray:
        """Colours as uint8 (C, 3)."""
        return np.array(self.colours, dtype=np.uint8)

    def weights(self, balance: str) -> np.ndarray:
        """Cross-entropy class weights from the frequencies f, float32 (C,).

        Args:
            balance: "log", 1 / ln(f + 0.001), almost flat (FlashOcc; systems.md 0.2), or "sqrt", 1 / sqrt(f), under
                which a car voxel counts ten times as much as a free one.
        """
        frequencies = np.array(self.frequencies, dtype=np.float64)
        return (1.0 / (np.log(frequencies + 0.001) if balance == "log" else np.sqrt(frequencies))).astype(np.float32)


_TABLE: tuple[tuple[str, tuple[int, int, int], int], ...] = (
    ("others", (110, 110, 110), 944004),
    ("barrier", (255, 120, 50), 1897170),
    ("bicycle", (255, 192, 203), 152386),
    ("bus", (255, 255, 0), 2391677),
    ("car", (0, 150, 245), 16957802),
    ("construction_vehicle", (0, 255, 255), 724139),
    ("motorcycle", (200, 180, 0), 189027),
    ("pedestrian", (255, 0, 0), 2074468),
    ("traffic_cone", (255, 240, 150), 413451),
    ("trailer", (135, 60, 0), 2384460),
    ("truck", (160, 32, 240), 5916653),
    ("driveable_surface", (255, 0, 255), 175883646),
    ("other_flat", (175, 0, 75), 4275424),
    ("sidewalk", (75, 0, 75), 51393615),
    ("terrain", (150, 240, 80), 61411620),
    ("manmade", (230, 230, 250), 105975596),
    ("vegetation", (0, 175, 0), 116424404),
    ("free", (255, 255, 255), 1892500630),
)

# Occ3D-nuScenes, train-split frequencies (systems.md 0.2).
OCC3D_CLASSES = ClassSet(
    name="occ3d",
    names=tuple(row[0] for row in _TABLE),
    colours=tuple(row[1] for row in _TABLE),
    free=17,
    frequencies=tuple(row[2] for row in _TABLE),
)
