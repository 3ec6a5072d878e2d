"""A rectangle of land that something is built on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.demo.materials import KERB_HEIGHT
from distill.demo.shapes import rotation


@dataclass(frozen=True)
class Plot:
    """A rectangle around (x, y): `depth` along `yaw`, away from the street, and `width` along the street, metres."""

    x: float
    y: float
    yaw: float
    depth: float
    width: float

    @property
    def turn(self) -> np.ndarray:
        """Axes of something that stands square on the plot, float64 (3, 3)."""
        return rotation(self.yaw)

    def at(self, a: float, b: float, z: float = 0.0) -> tuple[float, float, float]:
        """Town coordinates: a behind and b left of the middle, z above the ground."""
        c, k = math.cos(self.yaw), math.sin(self.yaw)
        return (self.x + c * a - k * b, self.y + k * a + c * b, KERB_HEIGHT + z)

    def anywhere(self, rng: np.random.Generator, share: float) -> tuple[float, float]:
        """A random point (x, y) in the middle `share` of the plot."""
        a, b = rng.uniform(-0.5 * share, 0.5 * share, 2) * (self.depth, self.width)
        return self.at(a, b)[:2]
