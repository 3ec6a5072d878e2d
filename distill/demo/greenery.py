"""Trees, bushes and hedges."""

from __future__ import annotations

import math

import numpy as np

from distill.demo import materials as m
from distill.demo.models import Colour
from distill.demo.shapes import Sketch

_BARK: Colour = (0.13, 0.095, 0.07)
_LEAF: Colour = (0.085, 0.145, 0.04)


def draw_leaf(rng: np.random.Generator, usual: Colour = _LEAF) -> Colour:
    """A leaf colour near the usual one."""
    r, g, b = np.array(usual) * rng.uniform(0.8, 1.25) * rng.uniform(0.88, 1.12, 3)
    return (float(r), float(g), float(b))


def grow_tree(rng: np.random.Generator, sketch: Sketch, foot: tuple[float, float, float], leaf: Colour) -> None:
    """A broad-leaved tree, sometimes a conifer."""
    x, y, base = foot
    height = rng.uniform(5.0, 9.5)
    stem, girth = rng.uniform(0.28, 0.4) * height, rng.uniform(0.24, 0.42)
    sketch.round((x, y, base + 0.6 * stem), (girth, girth, 1.2 * stem), _BARK, m.BARK, taper=0.65)
    if rng.random() < 0.18:
        for level in range(3):
            z, wide = base + stem * 0.5 + (0.2 + 0.27 * level) * height, (0.5 - 0.11 * level) * height
            sketch.round((x, y, z), (wide, wide, 0.42 * height), leaf, m.LEAVES, taper=0.08)
        return
    crown = height - stem
    spread, middle = rng.uniform(0.42, 0.6) * crown, base + stem + 0.5 * crown
    sketch.ellipsoid((x, y, middle), (1.5 * spread, 1.5 * spread, crown), leaf, m.LEAVES)
    for n in range(int(rng.integers(5, 8))):
        angle = 2.4 * n + rng.uniform(-0.5, 0.5)
        out, up = rng.uniform(0.45, 0.7) * spread, rng.uniform(-0.28, 0.32) * crown
        spot = (x + out * math.cos(angle), y + out * math.sin(angle), middle + up)
        shade = tuple(rng.uniform(0.85, 1.15) * c for c in leaf)
        sketch.ellipsoid(spot, rng.uniform(0.7, 1.1, 3) * spread, shade, m.LEAVES)


def grow_bush(rng: np.random.Generator, sketch: Sketch, foot: tuple[float, float, float], leaf: Colour) -> None:
    """A bush of three clumps."""
    x, y, base = foot
    for _ in range(3):
        size = rng.uniform((0.8, 0.8, 0.6), (1.5, 1.5, 1.3))
        spot = (x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5), base + 0.4 * size[2])
        sketch.ellipsoid(spot, size, leaf, m.LEAVES)
