"""Towns: streets, buildings, trees and street furniture laid out around one drive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.classes import OCC3D_CLASSES
from distill.demo import materials as m
from distill.demo.buildings import HOUSE_FRONT, build_block, build_house, draw_style
from distill.demo.furniture import Foot, put_bench, put_lamp, put_sign, put_traffic_light
from distill.demo.greenery import draw_leaf, grow_bush, grow_tree
from distill.demo.ground import Ground, fill_rectangle, is_free
from distill.demo.plot import Plot
from distill.demo.shapes import Shapes, Sketch, joined
from distill.demo.streets import KERB_WIDTH, Crossing, Street, paint

MANMADE = OCC3D_CLASSES.names.index("manmade")
VEGETATION = OCC3D_CLASSES.names.index("vegetation")

MARGIN = 110.0  # town beyond both ends of the drive, metres


@dataclass(frozen=True)
class Town:
    """A town.

    Attributes:
        ground: its ground.
        shapes: everything that never moves and has no box, in the town's frame.
        streets: number 0 is the one driven on; the drive's middle is at s = 0.
        crossings: where streets meet.
    """

    ground: Ground
    shapes: Shapes
    streets: list[Street]
    crossings: list[Crossing]

    def junction_gap(self, street: int, s: float) -> float:
        """Metres from s to the nearest junction on a street, negative inside."""
        return _junction_gap(self.crossings, street, s)


def _junction_gap(crossings: list[Crossing], street: int, s: float) -> float:
    return min((abs(s - c.s) - c.reach for c in crossings if c.street == street), default=1e3)


def build_town(rng: np.random.Generator, drive: float) -> Town:
    """Lay out a town around a drive of `drive` metres."""
    extent = math.ceil(drive + 2 * MARGIN)
    streets, crossings = _plan(rng, extent, drive)
    materials, street = paint(streets, crossings, extent)
    site = _Site(rng, Ground(materials), street, streets, crossings)
    site.furnish()
    return Town(Ground(materials), joined([site.manmade.shapes(), site.green.shapes()]), streets, crossings)


def _plan(rng: np.random.Generator, extent: float, drive: float) -> tuple[list[Street], list[Crossing]]:
    main = Street(
        origin=(0.5 * extent, 0.5 * extent),
        angle=rng.uniform(0, 2 * math.pi),
        bend=rng.uniform(2.0, 9.0),
        wavelength=rng.uniform(150.0, 240.0),
        phase=rng.uniform(0, 2 * math.pi),
        lanes=int(rng.choice([1, 2], p=[0.6, 0.4])),
        parking=True,
        median=bool(rng.random() < 0.45),
        cycle_track=float(rng.choice([0.0, 1.8], p=[0.45, 0.55])),
        sidewalk=rng.uniform(2.4, 4.2),
    )
    streets, crossings = [main], []
    s = rng.uniform(-0.5 * drive, 0.5 * drive) + rng.uniform(5.0, 25.0)  # one junction is always in sight
    spots = [s, s + rng.uniform(55, 80), s - rng.uniform(55, 80)]
    for number, spot in enumerate(spots, start=1):
        x, y, _ = main.pose(spot, 0.0)
        side = Street(
            origin=(x, y),
            angle=main.angle + math.pi / 2 + rng.uniform(-0.12, 0.12),
            bend=0.0,
            wavelength=100.0,
            phase=0.0,
            lanes=1,
            parking=bool(rng.random() < 0.6),
            median=False,
            cycle_track=0.0,
            sidewalk=rng.uniform(2.0, 3.2),
        )
        streets.append(side)
        zebra = bool(number == 1 or rng.random() < 0.5)
        crossings.append(Crossing(0, spot, side.half_width, zebra))
        crossings.append(Crossing(number, 0.0, main.half_width, bool(rng.random() < 0.7)))
    return streets, crossings


class _Site:
    """The building site of one town: what is built so far and which cells are taken."""

    def __init__(
        self,
        rng: np.random.Generator,
        ground: Ground,
        taken: np.ndarray,
        streets: list[Street],
        crossings: list[Crossing],
    ) -> None:
        self.rng, self.ground, self.taken = rng, ground, taken
        self.streets, self.crossings = streets, crossings
        self.manmade, self.green = Sketch(MANMADE), Sketch(VEGETATION)
        self.style, self.usual_leaf = draw_style(rng), draw_leaf(rng)
        self.greenery = rng.uniform(0.4, 0.7)  # share of lots with more green than wall

    def furnish(self) -> None:
        """Fill the lots along all streets, then what is left, then the sidewalks."""
        reach = 0.5 * self.ground.extent
        for street in self.streets:
            for side in (-1.0, 1.0):
                self._line_up(street, side, reach)
        self._fill()
        for number, street in enumerate(self.streets):
            for side in (-1.0, 1.0):
                self._sidewalk(number, street, side, reach)
                self._traffic_lights(number, street, side)

    def _line_up(self, street: Street, side: float, reach: float) -> None:
        """Lots along one side of a street, each as wide as fits."""
        s = -reach
        while s < reach:
            width, kind, depth = self.rng.uniform(11.0, 22.0), self.rng.random(), self.rng.uniform(10.0, 16.0)
            for share in (1.0, 0.75, 0.5):
                if self._lot(street, side, s + 0.5 * share * width, share * width, depth, kind):
                    s += share * width + (0.12 if self.rng.random() < 0.6 else self.rng.uniform(1.0, 4.0))
                    break
            else:
                s += 2.0

    def _lot(self, street: Street, side: float, s: float, width: float, depth: float, kind: float) -> bool:
        """Build a town house, a house with garden or a park, if its rectangle is free."""
        build = self._block if kind < 1.0 - self.greenery else self._house_and_garden
        if kind > 1.0 - 0.35 * self.greenery:
            build = self._park
        if build == self._house_and_garden:
            depth += HOUSE_FRONT
        for setback in (0.1, 0.7, 1.5):  # a bend keeps rectangles away from the sidewalk
            x, y, heading = street.pose(s, side * (street.border + setback + 0.5 * depth))
            plot = Plot(x, y, heading + side * math.pi / 2, depth, width)
            if self._take(plot):
                build(plot)
                return True
        return False

    def _take(self, plot: Plot) -> bool:
        """Take a plot if all of it is free."""
        if not is_free(self.taken, plot.x, plot.y, plot.yaw, plot.depth, plot.width):
            return False
        fill_rectangle(self.taken, plot.x, plot.y, plot.yaw, plot.depth, plot.width, True)
        return True

    def _cover(self, x: float, y: float, yaw: float, depth: float, width: float, material: int) -> None:
        fill_rectangle(self.ground.materials, x, y, yaw, depth, width, material)

    def _foot(self, x: float, y: float) -> Foot:
        return (x, y, self.ground.height(x, y))

    def _tree(self, x: float, y: float) -> None:
        grow_tree(self.rng, self.green, self._foot(x, y), draw_leaf(self.rng, self.usual_leaf))

    def _bush(self, x: float, y: float) -> None:
        grow_bush(self.rng, self.green, self._foot(x, y), draw_leaf(self.rng, self.usual_leaf))

    def _block(self, plot: Plot) -> None:
        build_block(self.rng, self.manmade, plot, self.style, 1.0)

    def _fill(self) -> None:
        """Taller blocks and groves behind the first row."""
        extent, rng = self.ground.extent, self.rng
        for _ in range(420):
            x, y = rng.uniform(8, extent - 8, 2)
            depth, width = rng.uniform(9, 24, 2)
            plot = Plot(x, y, self.streets[0].angle + rng.choice([0.0, math.pi / 2]), depth, width)
            if not self._take(plot):
                continue
            if rng.random() < 0.55:
                build_block(rng, self.manmade, plot, self.style, rng.uniform(1.0, 2.2))
            else:
                for _ in range(int(depth * width / 45)):
                    self._tree(*plot.anywhere(rng, 0.8))

    def _house_and_garden(self, plot: Plot) -> None:
        """A house, the path to it, and a hedge or wall with bushes and a tree towards the street."""
        rng, front, half = self.rng, -0.5 * plot.depth, 0.5 * plot.width
        build_house(rng, self.manmade, plot, self.style)
        path = rng.uniform(-0.3, 0.3) * plot.width
        x, y, _ = plot.at(front + 2.0, path)
        self._cover(x, y, plot.yaw, 4.4, 1.3, m.SLABS)
        for low, high in ((-half, path - 1.3), (path + 1.3, half)):
            middle, span = 0.5 * (low + high), high - low
            if span < 1.0:
                continue
            if rng.random() < 0.65:
                tall, leaf = rng.uniform(0.9, 1.7), draw_leaf(rng, self.usual_leaf)
                self.green.box(plot.at(front + 0.5, middle, 0.5 * tall), (0.8, span, tall), leaf, m.LEAVES, plot.turn)
            else:
                spot = plot.at(front + 0.2, middle, 0.5)
                self.manmade.box(spot, (0.15, span, 1.0), (0.4, 0.3, 0.2), m.BRICK, plot.turn)
        for b in rng.uniform(-0.45, 0.45, 2) * plot.width:
            self._bush(*plot.at(front + rng.uniform(1.8, 3.4), b)[:2])
        if rng.random() < 0.7:
            self._tree(*plot.at(front + 2.2, rng.uniform(-0.4, 0.4) * plot.width)[:2])

    def _park(self, plot: Plot) -> None:
        """Grass with a path, or a paved square, with trees, bushes and benches."""
        rng, area = self.rng, plot.depth * plot.width
        square = rng.random() < 0.35
        if square:
            self._cover(plot.x, plot.y, plot.yaw, plot.depth, plot.width, m.COBBLES)
        elif rng.random() < 0.5:
            self._cover(plot.x, plot.y, plot.yaw, plot.depth, 2.0, m.SLABS)
        for _ in range(int(area / (90 if square else 55)) + 1):
            self._tree(*plot.anywhere(rng, 0.9))
        for _ in range(0 if square else 5):
            self._bush(*plot.anywhere(rng, 0.9))
        for share in (-0.25, 0.25):
            put_bench(self.manmade, plot.at(1.0 - 0.5 * plot.depth, share * plot.width), plot.yaw)

    def _sidewalk(self, number: int, street: Street, side: float, reach: float) -> None:
        """Trees, lamps and signs between the carriageway and the people walking."""
        rng, edge = self.rng, street.half_width + KERB_WIDTH + street.cycle_track
        spacing, trees = rng.uniform(6.5, 11.0), rng.random() < 0.85
        for n, s in enumerate(np.arange(4.0 - reach, reach - 4.0, spacing)):
            x, y, heading = street.pose(s, side * (edge + 0.6))
            inside = min(x, y) > 2.0 and max(x, y) < self.ground.extent - 2.0
            paved = self.ground.at(np.array(x), np.array(y)) in (m.SLABS, m.GRASS)
            if not (inside and paved) or _junction_gap(self.crossings, number, s) < 7.5:
                continue
            if n % 3 == 1:
                put_lamp(self.manmade, self._foot(x, y), heading - side * math.pi / 2)
            elif trees:
                self._cover(x, y, heading, 1.2, 1.2, m.SOIL)
                self._tree(x, y)
            elif n % 3 == 2:
                put_sign(rng, self.manmade, self._foot(x, y), heading)

    def _traffic_lights(self, number: int, street: Street, side: float) -> None:
        """A light on the right-hand side before each junction; side -1 drives towards larger s."""
        edge = street.half_width + KERB_WIDTH + street.cycle_track
        for crossing in self.crossings:
            if crossing.street == number:
                x, y, heading = street.pose(crossing.s + side * (crossing.reach + 6.4), side * (edge + 0.4))
                facing = heading + (math.pi if side < 0 else 0.0)
                put_traffic_light(self.rng, self.manmade, self._foot(x, y), facing)
