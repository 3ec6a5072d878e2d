"""Streets: centre lines with their cross-section, painted into the ground raster.

A street is a straight axis with an optional gentle sine bend. Points on it have street coordinates (s, d): s runs
along the axis, d is the offset to the left of the centre line, both metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.demo import materials as m
from distill.demo.ground import CELLS_PER_METRE
from distill.demo.noise import kernel

LANE = 3.4
PARKING = 2.3
KERB_WIDTH = 0.25
OFF_STREET = 255  # in place of a material
CORNER = 7.0  # metres over which the kerbs of two streets are rounded into each other


@dataclass(frozen=True)
class Street:
    """One street and its cross-section.

    Attributes:
        origin: where s = 0, d = 0 lies in the town, metres.
        angle: direction of the axis, radians.
        bend: amplitude of the sine bend, metres.
        wavelength: of the bend, metres.
        phase: of the bend at s = 0, radians.
        lanes: lanes per direction.
        parking: whether there is a parking lane on both sides.
        median: whether a paved island divides the directions.
        cycle_track: width of a paved track between kerb and sidewalk, metres (0: none).
        sidewalk: width, metres.
    """

    origin: tuple[float, float]
    angle: float
    bend: float
    wavelength: float
    phase: float
    lanes: int
    parking: bool
    median: bool
    cycle_track: float
    sidewalk: float

    @property
    def island(self) -> float:
        """Half width of the island between the directions, metres."""
        return 1.0 if self.median else 0.0

    @property
    def half_width(self) -> float:
        """From the centre line to the kerb, metres."""
        return self.island + self.lanes * LANE + (PARKING if self.parking else 0.0)

    @property
    def border(self) -> float:
        """From the centre line to the first lot, metres."""
        return self.half_width + KERB_WIDTH + self.cycle_track + self.sidewalk

    def lane_offset(self, lane: int) -> float:
        """|d| of the middle of a lane, 0 being next to the centre line."""
        return self.island + (lane + 0.5) * LANE

    def pose(self, s: float, d: float) -> tuple[float, float, float]:
        """(x, y, heading along increasing s) at street coordinates."""
        argument = 2 * math.pi * s / self.wavelength + self.phase
        centre = self.bend * (math.sin(argument) - math.sin(self.phase))
        slope = self.bend * 2 * math.pi / self.wavelength * math.cos(argument)
        length = math.hypot(1.0, slope)
        a, b = s - d * slope / length, centre + d / length
        c, k = math.cos(self.angle), math.sin(self.angle)
        return self.origin[0] + c * a - k * b, self.origin[1] + k * a + c * b, self.angle + math.atan(slope)

    def row(self) -> list[float]:
        """The numbers the painting kernel needs."""
        return [
            *self.origin,
            math.cos(self.angle),
            math.sin(self.angle),
            self.bend,
            2 * math.pi / self.wavelength,
            self.phase,
            self.half_width,
            float(self.lanes),
            self.island,
            self.cycle_track,
            self.sidewalk,
        ]


@dataclass(frozen=True)
class Crossing:
    """Where street number `street` meets another one: at `s`, whose kerbs lie `reach` metres before and after."""

    street: int
    s: float
    reach: float
    zebra: bool


def plan_arrays(streets: list[Street], crossings: list[Crossing]) -> tuple[np.ndarray, np.ndarray]:
    """Streets and crossings as the kernels take them: float64 (S, 12) and (C, 4)."""
    rows = np.array([s.row() for s in streets])
    marks = np.array([[c.street, c.s, c.reach, c.zebra] for c in crossings], np.float64).reshape(-1, 4)
    return rows, marks


def paint(streets: list[Street], crossings: list[Crossing], extent: float) -> tuple[np.ndarray, np.ndarray]:
    """Ground materials uint8 (E, E) and, for the same cells, whether the cell belongs to a street (bool)."""
    cells = math.ceil(extent * CELLS_PER_METRE)
    ground = np.empty((cells, cells), np.uint8)
    _paint(ground, *plan_arrays(streets, crossings))
    street = ground != OFF_STREET
    ground[~street] = m.GRASS
    return ground, street


@kernel
def street_coordinates(row, x, y):  # type: ignore[no-untyped-def]
    """Street coordinates (s, d) of a town point."""
    px, py = x - row[0], y - row[1]
    s, b = px * row[2] + py * row[3], py * row[2] - px * row[3]
    if row[4] == 0.0:
        return s, b
    argument = row[5] * s + row[6]
    slope = row[4] * row[5] * math.cos(argument)
    d = (b - row[4] * (math.sin(argument) - math.sin(row[6]))) / math.sqrt(1.0 + slope * slope)
    return s + d * slope / math.sqrt(1.0 + slope * slope), d


@kernel
def _marking(row, marks, number, s, d):  # type: ignore[no-untyped-def]
    """Material of the carriageway of street `number` at (s, d), away from junctions."""
    half, lanes, island = row[7], row[8], row[9]
    side, free = abs(d), True
    for i in range(len(marks)):
        if marks[i, 0] != number:
            continue
        gap = abs(s - marks[i, 1]) - marks[i, 2]
        if gap < 11.0:
            free = False
        if marks[i, 3] > 0.0 and 2.4 < gap < 5.2 and side < half - 0.4:
            return m.LINE if (d % 1.1) < 0.55 else m.ASPHALT
        approaching = (s < marks[i, 1]) == (d < 0.0)
        if approaching and 6.2 < gap < 6.6 and island < side < half - 0.2:
            return m.LINE
        if gap < 1.5:
            return m.ASPHALT
    if island > 0.0 and free and side < island:
        return m.KERB if side > island - 0.2 else m.COBBLES
    if island == 0.0 and side < 0.09:
        return m.LINE if (not free) or (s % 6.0) < 3.2 else m.ASPHALT
    edge = island + lanes * 3.4
    for lane in range(1, int(lanes)):
        if abs(side - island - lane * 3.4) < 0.08 and ((not free) or (s % 6.0) < 2.4):
            return m.LINE
    if half > edge + 1.0 and free:
        if abs(side - edge) < 0.07 and (s % 2.0) < 1.1:
            return m.LINE
        if side > edge and (s % 6.5) < 0.13:
            return m.LINE
    return m.ASPHALT


@kernel
def street_material(rows, marks, x, y):  # type: ignore[no-untyped-def]
    """Material of the street at a town point, or OFF_STREET."""
    nearest, best, joined = 0, 1e9, 1e9
    best_s, best_d, inside = 0.0, 0.0, 0
    for n in range(len(rows)):
        s, d = street_coordinates(rows[n], x, y)
        gap = abs(d) - rows[n, 7]
        inside += gap < 0.0
        blend = max(CORNER - abs(gap - joined), 0.0) / CORNER
        joined = min(gap, joined) - 0.25 * CORNER * blend * blend
        if gap < best:
            nearest, best, best_s, best_d = n, gap, s, d
    row = rows[nearest]
    paved = KERB_WIDTH + row[10]
    if joined >= paved + row[11]:
        return OFF_STREET
    if joined < 0.0:
        if inside > 1 or best >= 0.0:
            return m.ASPHALT
        return _marking(row, marks, nearest, best_s, best_d)
    if joined < KERB_WIDTH:
        return m.KERB
    return m.CYCLE_TRACK if joined < paved else m.SLABS


@kernel
def _paint(ground, rows, marks):  # type: ignore[no-untyped-def]
    for i in range(ground.shape[0]):
        for j in range(ground.shape[1]):
            ground[i, j] = street_material(rows, marks, (i + 0.5) / CELLS_PER_METRE, (j + 0.5) / CELLS_PER_METRE)
