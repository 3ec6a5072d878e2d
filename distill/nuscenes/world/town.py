"""Towns: streets, buildings, trees and street furniture laid out around one drive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.classes import OCC3D_CLASSES
from distill.nuscenes.world import materials as m
from distill.nuscenes.world.ground import CELLS_PER_METRE, Ground
from distill.nuscenes.world.models import STEEL, Colour
from distill.nuscenes.world.shapes import Shapes, Sketch, joined, rotation
from distill.nuscenes.world.streets import Crossing, Street, paint

MANMADE = OCC3D_CLASSES.names.index("manmade")
VEGETATION = OCC3D_CLASSES.names.index("vegetation")

MARGIN = 110.0  # town beyond both ends of the drive, metres
WALLS: tuple[Colour, ...] = (
    (0.5, 0.4, 0.27), (0.52, 0.3, 0.2), (0.6, 0.56, 0.47), (0.3, 0.12, 0.08), (0.42, 0.44, 0.43), (0.55, 0.47, 0.33),
    (0.24, 0.3, 0.34), (0.62, 0.6, 0.57), (0.4, 0.3, 0.26), (0.34, 0.36, 0.3), (0.6, 0.42, 0.3), (0.2, 0.19, 0.2),
)  # fmt: skip
ROOFS: tuple[Colour, ...] = ((0.3, 0.1, 0.06), (0.16, 0.13, 0.12), (0.22, 0.15, 0.12), (0.12, 0.14, 0.17))


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
        return min((abs(s - c.s) - c.reach for c in self.crossings if c.street == street), default=1e3)


def build_town(rng: np.random.Generator, drive: float) -> Town:
    """Lay out a town around a drive of `drive` metres."""
    extent = math.ceil(drive + 2 * MARGIN)
    streets, crossings = _plan(rng, extent, drive)
    materials, street = paint(streets, crossings, extent)
    site = _Site(rng, Ground(materials), street.copy(), streets, crossings)
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
        x, y, heading = main.pose(spot, 0.0)
        side = Street(
            origin=(x, y),
            angle=heading + math.pi / 2 + rng.uniform(-0.12, 0.12),
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
        self.walls = [WALLS[i] for i in rng.choice(len(WALLS), 6, replace=False)]
        self.roofs = [ROOFS[i] for i in rng.choice(len(ROOFS), 2, replace=False)]
        self.leaves = np.array([0.1, 0.19, 0.04]) * rng.uniform(0.75, 1.25, 3)
        self.storeys = rng.uniform(2.5, 5.0)
        self.greenery = rng.uniform(0.3, 0.65)

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

    # --- lots -------------------------------------------------------------------------------------------------------

    def _line_up(self, street: Street, side: float, reach: float) -> None:
        s = -reach
        while s < reach:
            width = self.rng.uniform(11.0, 22.0)
            self._lot(street, side, s + 0.5 * width, width)
            s += width + (0.15 if self.rng.random() < 0.6 else self.rng.uniform(2.0, 5.0))

    def _lot(self, street: Street, side: float, s: float, width: float) -> None:
        rng, kind = self.rng, self.rng.random()
        depth = rng.uniform(10.0, 16.0)
        if kind < 1.0 - self.greenery:
            setback = rng.choice([0.0, 0.2, 2.5])
            pose = self._claim(street, side, s, street.border + setback, depth, width)
            if pose:
                self._block(*pose, depth, width)
        elif kind < 1.0 - 0.5 * self.greenery:
            pose = self._claim(street, side, s, street.border + 0.3, depth + 4.0, width)
            if pose:
                self._house(*pose, depth + 4.0, width)
        else:
            pose = self._claim(street, side, s, street.border, depth, width)
            if pose:
                self._park(*pose, depth, width)

    def _claim(
        self, street: Street, side: float, s: float, front: float, depth: float, width: float
    ) -> tuple[float, float, float] | None:
        """Take a rectangle beside the street; its centre and the heading of its depth, or None if it is not free."""
        x, y, heading = street.pose(s, side * (front + 0.5 * depth))
        yaw = heading + side * math.pi / 2
        return (x, y, yaw) if self._take(x, y, yaw, depth, width) else None

    def _footprint(self, x: float, y: float, yaw: float, depth: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        a = np.arange(-0.5 * depth + 0.05, 0.5 * depth, 0.07)
        b = np.arange(-0.5 * width + 0.05, 0.5 * width, 0.07)
        a, b = (grid.ravel() for grid in np.meshgrid(a, b, indexing="ij"))
        c, k = math.cos(yaw), math.sin(yaw)
        i = np.floor((x + c * a - k * b) * CELLS_PER_METRE).astype(int)
        j = np.floor((y + k * a + c * b) * CELLS_PER_METRE).astype(int)
        return i, j

    def _take(self, x: float, y: float, yaw: float, depth: float, width: float) -> bool:
        i, j = self._footprint(x, y, yaw, depth, width)
        size = len(self.taken)
        if i.min() < 0 or j.min() < 0 or i.max() >= size or j.max() >= size or self.taken[i, j].any():
            return False
        self.taken[i, j] = True
        return True

    def _cover(self, x: float, y: float, yaw: float, depth: float, width: float, material: int) -> None:
        i, j = self._footprint(x, y, yaw, depth, width)
        self.ground.materials[i, j] = material

    def _fill(self) -> None:
        """Taller blocks and groves behind the first row."""
        extent, rng = self.ground.extent, self.rng
        for _ in range(170):
            x, y = rng.uniform(8, extent - 8, 2)
            yaw = self.streets[0].angle + rng.choice([0.0, math.pi / 2])
            depth, width = rng.uniform(12, 24, 2)
            if not self._take(x, y, yaw, depth, width):
                continue
            if rng.random() < 0.55:
                self._block(x, y, yaw, depth, width, rng.uniform(1.0, 2.4))
            else:
                for _ in range(int(depth * width / 45)):
                    a, b = rng.uniform(-0.5, 0.5, 2) * (depth - 3, width - 3)
                    self._tree(x + math.cos(yaw) * a - math.sin(yaw) * b, y + math.sin(yaw) * a + math.cos(yaw) * b)

    # --- buildings --------------------------------------------------------------------------------------------------

    def _wall(self) -> Colour:
        colour = np.array(self.walls[int(self.rng.integers(len(self.walls)))])
        r, g, b = np.clip(colour * self.rng.uniform(0.85, 1.15) * self.rng.uniform(0.96, 1.04, 3), 0, 0.8)
        return (float(r), float(g), float(b))

    def _block(self, x: float, y: float, yaw: float, depth: float, width: float, taller: float = 1.0) -> None:
        """A town house with a shop floor, cornice, parapet and things on the roof; -x faces the street."""
        rng, turn, base = self.rng, rotation(yaw), m.KERB_HEIGHT
        floor = rng.uniform(3.0, 3.5)
        storeys = max(2, round(self.storeys * taller + rng.uniform(-1.2, 1.2)))
        height = storeys * floor + 0.8
        pattern = (float(rng.integers(1, 4000)), rng.uniform(1.7, 3.0), floor)
        wall = self._wall()
        trim = tuple(min(0.75, 1.35 * c) for c in wall)

        def at(a: float, b: float, z: float) -> tuple[float, float, float]:
            return (x + math.cos(yaw) * a - math.sin(yaw) * b, y + math.sin(yaw) * a + math.cos(yaw) * b, base + z)

        self.manmade.box(at(0, 0, 0.5 * height), (depth, width, height), wall, m.FACADE, turn, pattern=pattern)
        self.manmade.box(at(0, 0, height + 0.12), (depth + 0.4, width + 0.1, 0.24), trim, m.PLAIN, turn)
        self.manmade.box(at(0, 0, height + 0.5), (depth, width, 0.55), wall, m.ROOF, turn)
        for _ in range(int(rng.integers(1, 4))):
            a, b = rng.uniform(-0.35, 0.35, 2) * (depth, width)
            self.manmade.box(at(a, b, height + 1.3), rng.uniform(0.8, 2.4, 3), STEEL, m.PLAIN, turn)
        if rng.random() < 0.6:
            awning = [(0.35, 0.04, 0.04), (0.05, 0.2, 0.12), (0.06, 0.1, 0.3), (0.6, 0.5, 0.3)][int(rng.integers(4))]
            self.manmade.box(
                at(-0.5 * depth - 0.5, rng.uniform(-0.2, 0.2) * width, 2.75), (1.1, 0.45 * width, 0.1), awning,
                m.STRIPES, rotation(yaw) @ rotation(pitch=-0.3), pattern=(0.6, 1.0, 1.0),
            )  # fmt: skip
        if rng.random() < 0.5:
            for level in range(1, storeys):
                spot = at(-0.5 * depth - 0.45, 0.22 * width, level * floor + 0.15)
                self.manmade.box(spot, (0.9, 2.6, 0.12), trim, m.PLAIN, turn)
                spot = at(-0.5 * depth - 0.88, 0.22 * width, level * floor + 0.65)
                self.manmade.box(spot, (0.05, 2.6, 0.9), STEEL, m.PLAIN, turn)

    def _house(self, x: float, y: float, yaw: float, depth: float, width: float) -> None:
        """A gabled house in a garden with a hedge or fence towards the street."""
        rng = self.rng

        def at(a: float, b: float, z: float) -> tuple[float, float, float]:
            return (
                x + math.cos(yaw) * a - math.sin(yaw) * b,
                y + math.sin(yaw) * a + math.cos(yaw) * b,
                m.KERB_HEIGHT + z,
            )

        turn, body, front = rotation(yaw), width - rng.uniform(2.5, 4.5), -0.5 * depth
        deep, floor = 8.5, rng.uniform(2.8, 3.1)
        centre, height = front + 4.2 + 0.5 * deep, floor * float(rng.choice([1, 2, 2])) + 0.4
        pattern = (float(rng.integers(1, 4000)), rng.uniform(2.2, 3.2), floor)
        self.manmade.box(at(centre, 0, 0.5 * height), (deep, body, height), self._wall(), m.FACADE, turn, pattern=pattern)
        ridge, roof = rng.uniform(2.4, 3.6), self.roofs[int(rng.integers(2))]
        along = rng.random() < 0.6
        size = (body + 0.9, deep + 1.0, ridge) if along else (deep + 1.0, body + 0.9, ridge)
        facing = rotation(yaw + math.pi / 2) if along else turn
        self.manmade.box(at(centre, 0, height + 0.5 * ridge), size, roof, m.ROOF, facing, taper=(1.0, 0.03))
        spot = at(centre + 1.2, 0.3 * body, height + ridge)
        self.manmade.box(spot, (0.7, 0.7, 1.8), (0.3, 0.14, 0.1), m.BRICK, turn)
        door = rng.uniform(-0.3, 0.3) * body
        self._cover(*at(front + 2.0, door, 0)[:2], yaw, 4.4, 1.3, m.SLABS)
        gap = 1.3
        for low, high in ((-0.5 * width, door - gap), (door + gap, 0.5 * width)):
            if high - low < 1.0:
                continue
            spot, span = 0.5 * (low + high), high - low
            if rng.random() < 0.65:
                tall = rng.uniform(0.9, 1.7)
                self.green.box(at(front + 0.5, spot, 0.5 * tall), (0.8, span, tall), self._leaf(), m.LEAVES, turn)
            else:
                self.manmade.box(at(front + 0.2, spot, 0.5), (0.15, span, 1.0), (0.4, 0.3, 0.2), m.BRICK, turn)
        for b in rng.uniform(-0.45, 0.45, 2) * width:
            self._bush(*at(front + rng.uniform(1.8, 3.4), b, 0)[:2])
        if rng.random() < 0.7:
            self._tree(*at(front + 2.2, rng.uniform(-0.4, 0.4) * width, 0)[:2])

    def _park(self, x: float, y: float, yaw: float, depth: float, width: float) -> None:
        """Grass or a paved square with trees, bushes and benches."""
        rng, square = self.rng, self.rng.random() < 0.35
        c, k = math.cos(yaw), math.sin(yaw)
        if square:
            self._cover(x, y, yaw, depth, width, m.COBBLES)
        elif rng.random() < 0.5:
            self._cover(x, y, yaw, depth, 2.0, m.SLABS)
        for _ in range(int(depth * width / (90 if square else 55)) + 1):
            a, b = rng.uniform(-0.45, 0.45, 2) * (depth, width)
            self._tree(x + c * a - k * b, y + k * a + c * b)
        for _ in range(0 if square else 5):
            a, b = rng.uniform(-0.45, 0.45, 2) * (depth, width)
            self._bush(x + c * a - k * b, y + k * a + c * b)
        for b in (-0.25, 0.25):
            a = -0.5 * depth + 1.0
            self._bench(x + c * a - k * b * width, y + k * a + c * b * width, yaw)

    # --- greenery and furniture -------------------------------------------------------------------------------------

    def _leaf(self) -> Colour:
        r, g, b = self.leaves * self.rng.uniform(0.8, 1.25) * self.rng.uniform(0.93, 1.07, 3)
        return (float(r), float(g), float(b))

    def _tree(self, x: float, y: float) -> None:
        rng, green, base, leaf = self.rng, self.green, self.ground.height(x, y), self._leaf()
        height = rng.uniform(5.0, 9.5)
        stem, girth = rng.uniform(0.28, 0.4) * height, rng.uniform(0.24, 0.42)
        bark = (0.13, 0.095, 0.07)
        green.round((x, y, base + 0.6 * stem), (girth, girth, 1.2 * stem), bark, m.BARK, taper=0.65)
        if rng.random() < 0.18:
            for level in range(3):
                z, wide = base + stem * 0.5 + (0.2 + 0.27 * level) * height, (0.5 - 0.11 * level) * height
                green.round((x, y, z), (wide, wide, 0.42 * height), leaf, m.LEAVES, taper=0.08)
            return
        spread = rng.uniform(0.42, 0.6) * (height - stem)
        middle = base + stem + 0.5 * (height - stem)
        green.ellipsoid((x, y, middle), (1.5 * spread, 1.5 * spread, height - stem), leaf, m.LEAVES)
        for n in range(int(rng.integers(5, 8))):
            angle = 2.4 * n + rng.uniform(-0.5, 0.5)
            out, up = rng.uniform(0.45, 0.7) * spread, rng.uniform(-0.28, 0.32) * (height - stem)
            size = rng.uniform(0.7, 1.1, 3) * spread
            spot = (x + out * math.cos(angle), y + out * math.sin(angle), middle + up)
            green.ellipsoid(spot, size, tuple(rng.uniform(0.85, 1.15) * c for c in leaf), m.LEAVES)

    def _bush(self, x: float, y: float) -> None:
        rng, base, leaf = self.rng, self.ground.height(x, y), self._leaf()
        for _ in range(3):
            size = rng.uniform((0.8, 0.8, 0.6), (1.5, 1.5, 1.3))
            spot = (x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5), base + 0.4 * size[2])
            self.green.ellipsoid(spot, size, leaf, m.LEAVES)

    def _bench(self, x: float, y: float, yaw: float) -> None:
        turn, base = rotation(yaw), self.ground.height(x, y)
        self.manmade.box((x, y, base + 0.45), (0.5, 1.7, 0.08), (0.25, 0.14, 0.07), m.BARK, turn)
        spot = (x + 0.25 * math.cos(yaw), y + 0.25 * math.sin(yaw), base + 0.75)
        self.manmade.box(spot, (0.07, 1.7, 0.45), (0.25, 0.14, 0.07), m.BARK, turn)
        self.manmade.box((x, y, base + 0.2), (0.4, 1.3, 0.4), (0.2, 0.2, 0.2), m.PLAIN, turn, taper=(0.9, 0.95))

    def _sidewalk(self, number: int, street: Street, side: float, reach: float) -> None:
        """Street trees, lamps, signs and a bus shelter along one side of a street."""
        rng, n = self.rng, 0
        edge = street.half_width + 0.25 + street.cycle_track
        s, spacing, trees = -reach + 4.0, rng.uniform(8.0, 13.0), rng.random() < 0.75
        while s < reach - 4.0:
            gap = min((abs(s - c.s) - c.reach for c in self.crossings if c.street == number), default=1e3)
            x, y, heading = street.pose(s, side * (edge + 0.6))
            inside = 2.0 < min(x, y) and max(x, y) < self.ground.extent - 2.0
            if inside and gap > 7.5 and self.ground.at(np.array(x), np.array(y)) in (m.SLABS, m.GRASS):
                if n % 3 == 1:
                    self._lamp(x, y, heading + side * math.pi / 2)
                elif trees:
                    self._cover(x, y, heading, 1.2, 1.2, m.SOIL)
                    self._tree(x, y)
                elif n % 3 == 2:
                    self._sign(x, y, heading)
            n += 1
            s += spacing
        self._corner_posts(number, street, side, edge)

    def _lamp(self, x: float, y: float, outward: float) -> None:
        base, grey = self.ground.height(x, y), (0.12, 0.13, 0.14)
        self.manmade.round((x, y, base + 3.2), (0.17, 0.17, 6.4), grey, taper=0.6)
        reach = 0.9
        spot = (x - reach * math.cos(outward), y - reach * math.sin(outward), base + 6.3)
        self.manmade.box(spot, (2.0, 0.09, 0.09), grey, m.PLAIN, rotation(outward))
        spot = (x - 1.9 * reach * math.cos(outward), y - 1.9 * reach * math.sin(outward), base + 6.22)
        self.manmade.box(spot, (0.7, 0.28, 0.12), (0.8, 0.75, 0.6), m.LAMP, rotation(outward))

    def _sign(self, x: float, y: float, heading: float) -> None:
        base = self.ground.height(x, y)
        colour = [(0.6, 0.03, 0.03), (0.03, 0.12, 0.5), (0.75, 0.55, 0.05)][int(self.rng.integers(3))]
        self.manmade.round((x, y, base + 1.2), (0.08, 0.08, 2.4), STEEL)
        self.manmade.round((x, y, base + 2.3), (0.62, 0.62, 0.06), colour, m.LAMP, rotation(heading) @ rotation(pitch=math.pi / 2))

    def _corner_posts(self, number: int, street: Street, side: float, edge: float) -> None:
        """Traffic lights on the right-hand side before each junction."""
        for crossing in self.crossings:
            if crossing.street != number:
                continue
            s = crossing.s + side * (crossing.reach + 6.4)  # side -1 drives along +s and arrives at a smaller s
            x, y, heading = street.pose(s, side * (edge + 0.4))
            base, back = self.ground.height(x, y), heading + (math.pi if side < 0 else 0.0)
            self.manmade.round((x, y, base + 1.7), (0.14, 0.14, 3.4), (0.1, 0.1, 0.1))
            spot = (x + 0.16 * math.cos(back), y + 0.16 * math.sin(back))
            self.manmade.box((*spot, base + 3.0), (0.24, 0.34, 0.95), (0.02, 0.02, 0.02), m.PLAIN, rotation(back))
            lit = int(self.rng.integers(3))
            for k, colour in enumerate(((0.9, 0.05, 0.03), (0.9, 0.5, 0.03), (0.05, 0.8, 0.3))):
                glow = colour if k == lit else tuple(0.1 * c for c in colour)
                spot = (x + 0.29 * math.cos(back), y + 0.29 * math.sin(back))
                turn = rotation(back) @ rotation(pitch=math.pi / 2)
                self.manmade.round((*spot, base + 3.3 - 0.29 * k), (0.2, 0.2, 0.05), glow, m.LAMP, turn)
