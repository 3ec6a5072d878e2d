"""Town houses and gabled houses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.demo import materials as m
from distill.demo.models import STEEL, Colour
from distill.demo.plot import Plot
from distill.demo.shapes import Sketch, rotation

_WALLS: tuple[Colour, ...] = (
    (0.5, 0.4, 0.27), (0.52, 0.3, 0.2), (0.6, 0.56, 0.47), (0.3, 0.12, 0.08), (0.42, 0.44, 0.43), (0.55, 0.47, 0.33),
    (0.24, 0.3, 0.34), (0.62, 0.6, 0.57), (0.4, 0.3, 0.26), (0.34, 0.36, 0.3), (0.6, 0.42, 0.3), (0.2, 0.19, 0.2),
)  # fmt: skip
_ROOFS: tuple[Colour, ...] = ((0.3, 0.1, 0.06), (0.16, 0.13, 0.12), (0.22, 0.15, 0.12), (0.12, 0.14, 0.17))
_AWNINGS: tuple[Colour, ...] = ((0.35, 0.04, 0.04), (0.05, 0.2, 0.12), (0.06, 0.1, 0.3), (0.6, 0.5, 0.3))
HOUSE_FRONT = 4.2  # depth of a front garden, metres
_HOUSE_DEPTH = 8.5


@dataclass(frozen=True)
class Style:
    """What the buildings of one town have in common: wall and roof colours, usual number of storeys."""

    walls: tuple[Colour, ...]
    roofs: tuple[Colour, ...]
    storeys: float

    def wall(self, rng: np.random.Generator) -> Colour:
        """A wall colour, varied."""
        colour = np.array(self.walls[int(rng.integers(len(self.walls)))])
        r, g, b = np.clip(colour * rng.uniform(0.85, 1.15) * rng.uniform(0.96, 1.04, 3), 0, 0.8)
        return (float(r), float(g), float(b))


def draw_style(rng: np.random.Generator) -> Style:
    """The style of a town."""
    walls = tuple(_WALLS[i] for i in rng.choice(len(_WALLS), 6, replace=False))
    roofs = tuple(_ROOFS[i] for i in rng.choice(len(_ROOFS), 2, replace=False))
    return Style(walls, roofs, rng.uniform(2.5, 5.0))


def build_block(rng: np.random.Generator, sketch: Sketch, plot: Plot, style: Style, taller: float) -> None:
    """A town house that fills its plot: cornice, parapet, things on the roof, awning and balconies in front."""
    turn, depth, width = plot.turn, plot.depth, plot.width
    floor = rng.uniform(3.0, 3.5)
    storeys = max(2, round(style.storeys * taller + rng.uniform(-1.2, 1.2)))
    height, wall = storeys * floor + 0.8, style.wall(rng)
    trim = tuple(min(0.75, 1.35 * c) for c in wall)
    pattern = (float(rng.integers(1, 4000)), rng.uniform(1.7, 3.0), floor)
    sketch.box(plot.at(0, 0, 0.5 * height), (depth, width, height), wall, m.FACADE, turn, pattern=pattern)
    sketch.box(plot.at(0, 0, height + 0.12), (depth + 0.4, width + 0.1, 0.24), trim, m.PLAIN, turn)
    sketch.box(plot.at(0, 0, height + 0.5), (depth, width, 0.55), wall, m.ROOF, turn)
    for _ in range(int(rng.integers(1, 4))):
        a, b = rng.uniform(-0.35, 0.35, 2) * (depth, width)
        sketch.box(plot.at(a, b, height + 1.3), rng.uniform(0.8, 2.4, 3), STEEL, m.PLAIN, turn)
    if rng.random() < 0.6:
        awning = _AWNINGS[int(rng.integers(len(_AWNINGS)))]
        spot = plot.at(-0.5 * depth - 0.5, rng.uniform(-0.2, 0.2) * width, 2.75)
        size = (1.1, 0.45 * width, 0.1)
        sketch.box(spot, size, awning, m.STRIPES, turn @ rotation(pitch=-0.3), pattern=(0.6, 1.0, 1.0))
    if rng.random() < 0.5:
        for level in range(1, storeys):
            spot = plot.at(-0.5 * depth - 0.45, 0.22 * width, level * floor + 0.15)
            sketch.box(spot, (0.9, 2.6, 0.12), trim, m.PLAIN, turn)
            spot = plot.at(-0.5 * depth - 0.88, 0.22 * width, level * floor + 0.65)
            sketch.box(spot, (0.05, 2.6, 0.9), STEEL, m.PLAIN, turn)


def build_house(rng: np.random.Generator, sketch: Sketch, plot: Plot, style: Style) -> None:
    """A gabled house with a chimney, behind a front garden."""
    turn, width = plot.turn, plot.width - rng.uniform(2.5, 4.5)
    floor = rng.uniform(2.8, 3.1)
    middle, height = -0.5 * plot.depth + HOUSE_FRONT + 0.5 * _HOUSE_DEPTH, floor * float(rng.choice([1, 2, 2])) + 0.4
    pattern = (float(rng.integers(1, 4000)), rng.uniform(2.2, 3.2), floor)
    size = (_HOUSE_DEPTH, width, height)
    sketch.box(plot.at(middle, 0, 0.5 * height), size, style.wall(rng), m.FACADE, turn, pattern=pattern)
    ridge, roof = rng.uniform(2.4, 3.6), style.roofs[int(rng.integers(len(style.roofs)))]
    if rng.random() < 0.6:  # the ridge runs along the street
        size, facing = (width + 0.9, _HOUSE_DEPTH + 1.0, ridge), rotation(plot.yaw + math.pi / 2)
    else:
        size, facing = (_HOUSE_DEPTH + 1.0, width + 0.9, ridge), turn
    sketch.box(plot.at(middle, 0, height + 0.5 * ridge), size, roof, m.ROOF, facing, taper=(1.0, 0.03))
    sketch.box(plot.at(middle + 1.2, 0.3 * width, height + ridge), (0.7, 0.7, 1.8), (0.3, 0.14, 0.1), m.BRICK, turn)
