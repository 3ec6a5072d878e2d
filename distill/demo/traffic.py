"""Traffic: who drives, walks, parks and lies about along the drive, and where everybody is at a given time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.demo import models
from distill.demo.models import Model
from distill.demo.shapes import rigid
from distill.demo.streets import PARKING, Street
from distill.demo.town import Town

CYCLES = ("vehicle.bicycle", "vehicle.motorcycle")
SLOT = 6.5  # length of a parking bay, metres

Maker = Callable[[np.random.Generator], Model]


@dataclass(frozen=True)
class Actor:
    """A thing with a box and its motion in street coordinates.

    Attributes:
        model: what it is.
        street: number of the street its coordinates refer to.
        start: (s, d) at time 0, metres.
        velocity: (ds/dt, dd/dt), metres per second.
        turn: heading relative to the street, radians.
        attribute: nuScenes attribute name, "" for none.
    """

    model: Model
    street: int
    start: tuple[float, float]
    velocity: tuple[float, float]
    turn: float
    attribute: str

    def pose(self, town: Town, time: float) -> np.ndarray:
        """Model frame to town, float64 (4, 4), at a time in seconds."""
        s, d = (p + v * time for p, v in zip(self.start, self.velocity, strict=True))
        x, y, heading = town.streets[self.street].pose(s, d)
        return rigid(x, y, town.ground.height(x, y), heading + self.turn)


@dataclass(frozen=True)
class Drive:
    """The ego vehicle's way along street 0: lane middle at offset d (negative: right), from `start` at `speed`."""

    start: float
    speed: float
    d: float

    def pose(self, town: Town, time: float) -> np.ndarray:
        """Ego frame to town, float64 (4, 4)."""
        x, y, heading = town.streets[0].pose(self.start + self.speed * time, self.d)
        return rigid(x, y, 0.0, heading)


def populate(rng: np.random.Generator, town: Town, drive: Drive, duration: float) -> list[Actor]:
    """Everybody around a drive of `duration` seconds."""
    crowd = _Crowd(rng, town, drive, drive.speed * duration)
    crowd.park()
    crowd.drive_along()
    crowd.wait_at_junctions()
    crowd.walk()
    crowd.litter()
    return crowd.actors


class _Crowd:
    """Actors placed so far."""

    def __init__(self, rng: np.random.Generator, town: Town, drive: Drive, length: float) -> None:
        self.rng, self.town, self.drive, self.length = rng, town, drive, length
        self.actors: list[Actor] = []

    def _add(
        self,
        model: Model,
        street: int,
        s: float,
        d: float,
        turn: float,
        attribute: str,
        velocity: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.actors.append(Actor(model, street, (s, d), velocity, turn, attribute))

    # --- parked -----------------------------------------------------------------------------------------------------

    def park(self) -> None:
        """Fill the parking lanes; every rare kind stands somewhere along the drive."""
        rng, main = self.rng, self.town.streets[0]
        reach = 0.5 * self.length + 32.0
        free = {side: self._bays(0, reach + 30.0) for side in (-1.0, 1.0)}
        d = main.half_width - 0.5 * PARKING
        parkers = [self._parker(make, d) for make in (models.trailer, models.truck, models.bus, models.trailer)]
        must = [self._two_wheelers, self._roadworks, *parkers, self._two_wheelers, self._roadworks, self._two_wheelers]
        for place in must:
            run = self._run_of_slots(free, reach)
            if run is not None:
                place(*run)
        for side, slots in free.items():
            for s in slots:
                if rng.random() < 0.8:
                    self._park_one(models.car, 0, s, side * d, side)
        for number, street in enumerate(self.town.streets[1:], start=1):
            if street.parking:
                self._park_side_street(number, street)

    def _bays(self, street: int, reach: float) -> list[float]:
        """Middles of the parking bays of a street, clear of junctions."""
        spots = np.arange(-reach, reach, SLOT)
        return [float(s) for s in spots if self.town.junction_gap(street, s) > 11.0 + 0.5 * SLOT]

    def _run_of_slots(self, free: dict[float, list[float]], reach: float) -> tuple[float, float] | None:
        """Take two neighbouring bays near the drive: (s between them, side)."""
        options = [
            (side, i)
            for side, slots in free.items()
            for i in range(len(slots) - 1)
            if abs(slots[i]) < reach and slots[i + 1] - slots[i] < 1.1 * SLOT
        ]
        if not options:
            return None
        side, i = options[int(self.rng.integers(len(options)))]
        first, second = free[side].pop(i), free[side].pop(i)
        return 0.5 * (first + second), side

    def _park_one(self, make: Maker, street: int, s: float, d: float, side: float) -> None:
        turn = (0.0 if side < 0 else math.pi) + self.rng.normal(0, 0.015)
        self._add(make(self.rng), street, s + self.rng.uniform(-0.5, 0.5), d, turn, "vehicle.parked")

    def _parker(self, make: Maker, d: float) -> Callable[[float, float], None]:
        return lambda s, side: self._park_one(make, 0, s, side * d, side)

    def _park_side_street(self, number: int, street: Street) -> None:
        for side in (-1.0, 1.0):
            for s in self._bays(number, 60.0):
                if self.rng.random() < 0.7:
                    self._park_one(models.car, number, s, side * (street.half_width - 0.5 * PARKING), side)

    def _two_wheelers(self, s: float, side: float) -> None:
        """Motorcycles and bicycles across two bays."""
        d = side * (self.town.streets[0].half_width - 1.25)
        for n, offset in enumerate(np.linspace(-5.6, 5.6, 9)):
            make = models.bicycle if n % 3 == 1 else models.motorcycle
            turn = side * math.pi / 2 + self.rng.normal(0, 0.12)
            self._add(make(self.rng, False), 0, s + offset, d, turn, "cycle.without_rider")

    def _roadworks(self, s: float, side: float) -> None:
        """An excavator behind barriers and cones, with pallets."""
        d = self.town.streets[0].half_width - 0.5 * PARKING
        rng = self.rng
        self._add(models.construction_vehicle(rng), 0, s + 1.2, side * d, rng.choice([0.0, math.pi]), "vehicle.stopped")
        for end, turn in ((-5.9, 0.0), (6.0, math.pi)):
            self._add(models.barrier(rng), 0, s + end, side * d, turn, "")
        for k in range(3):
            self._add(models.barrier(rng), 0, s - 3.6 + 3.6 * k, side * (d - 1.5), math.pi / 2, "")
        for k in range(7):
            self._add(models.traffic_cone(rng), 0, s - 5.4 + 1.8 * k, side * (d - 1.9), 0.0, "")
        for k in range(3):
            self._add(models.traffic_cone(rng), 0, s - 6.6, side * (d - 0.9 + 0.9 * k), 0.0, "")
        self._add(models.debris(rng), 0, s - 3.9, side * (d + 0.1), rng.uniform(-0.3, 0.3), "")

    # --- moving -----------------------------------------------------------------------------------------------------

    def _vehicle(self) -> Model:
        rng = self.rng
        kind = int(rng.choice(5, p=[0.56, 0.1, 0.12, 0.1, 0.12]))
        if kind in (3, 4):
            return (models.motorcycle, models.bicycle)[kind - 3](rng, True)
        return (models.car, models.truck, models.bus)[kind](rng)

    def drive_along(self) -> None:
        """Vehicles in every lane of the main street; a lane has one speed, so nobody catches up."""
        main, rng, drive = self.town.streets[0], self.rng, self.drive
        for lane in range(main.lanes):
            for side in (-1.0, 1.0):
                d = side * main.lane_offset(lane)
                own = abs(d - drive.d) < 0.1
                speed = drive.speed if own else rng.uniform(4.0, 9.0)
                s = drive.start - 70.0 if side < 0 else drive.start - 50.0
                while s < drive.start + 120.0:
                    s += rng.uniform(17.0, 38.0)
                    if own and -13.0 < s - drive.start < 13.0:
                        continue
                    turn = 0.0 if side < 0 else math.pi
                    self._drive_one(s, d, turn, -side * speed)
        if main.cycle_track:
            for side in (-1.0, 1.0):
                for s in drive.start + rng.uniform(-20, 50, 2):
                    d = side * (main.half_width + 0.25 + 0.5 * main.cycle_track)
                    speed = rng.uniform(3.0, 5.0)
                    turn = 0.0 if side < 0 else math.pi
                    rider = models.bicycle(rng, True)
                    self._add(rider, 0, s, d, turn, "cycle.with_rider", (-side * speed, 0.0))

    def _drive_one(self, s: float, d: float, turn: float, speed: float) -> None:
        model = self._vehicle()
        attribute = "cycle.with_rider" if model.category in CYCLES else "vehicle.moving"
        self._add(model, 0, s, d, turn, attribute, (speed, 0.0))

    def wait_at_junctions(self) -> None:
        """Vehicles standing at the stop lines of the side streets, and people crossing behind them."""
        rng = self.rng
        for crossing in self.town.crossings:
            if crossing.street == 0:
                continue
            street = self.town.streets[crossing.street]
            for side in (-1.0, 1.0):
                s, d = crossing.reach + 7.0, side * street.lane_offset(0)
                for _ in range(int(rng.integers(0, 3))):
                    model = self._vehicle()
                    s += 0.5 * model.size[1] + 0.4
                    attribute = "cycle.with_rider" if model.category in CYCLES else "vehicle.stopped"
                    self._add(model, crossing.street, side * s, d, 0.0 if side < 0 else math.pi, attribute)
                    s += 0.5 * model.size[1] + 1.2
                if crossing.zebra:
                    self._cross(crossing.street, side * (crossing.reach + rng.uniform(2.8, 4.8)), street.half_width)

    def _cross(self, street: int, s: float, half: float) -> None:
        for _ in range(int(self.rng.integers(1, 4))):
            direction = self.rng.choice([-1.0, 1.0])
            d, speed = self.rng.uniform(-half, half), self.rng.uniform(1.0, 1.5)
            spot = s + self.rng.uniform(-0.8, 0.8)
            model = models.pedestrian(self.rng)
            self._add(model, street, spot, d, direction * math.pi / 2, "pedestrian.moving", (0.0, direction * speed))

    def walk(self) -> None:
        """People on the sidewalks of the main street, most of them walking."""
        main, rng, reach = self.town.streets[0], self.rng, 0.5 * self.length + 45.0
        inner = main.half_width + 0.25 + main.cycle_track + 1.3
        for side in (-1.0, 1.0):
            for s in np.arange(-reach, reach, rng.uniform(7.0, 14.0)):
                for _ in range(int(rng.choice([1, 2], p=[0.7, 0.3]))):
                    d = side * rng.uniform(inner, main.border - 0.4)
                    direction = rng.choice([-1.0, 1.0])
                    moving = rng.random() < 0.8
                    speed = direction * rng.uniform(0.9, 1.6) if moving else 0.0
                    turn = (0.0 if direction > 0 else math.pi) if moving else rng.uniform(0, 2 * math.pi)
                    attribute = "pedestrian.moving" if moving else "pedestrian.standing"
                    self._add(models.pedestrian(rng), 0, s + rng.uniform(-3, 3), d, turn, attribute, (speed, 0.0))

    def litter(self) -> None:
        """Waste containers, pallets and leaning bicycles on the sidewalks of the main street."""
        main, rng, reach = self.town.streets[0], self.rng, 0.5 * self.length + 35.0
        makers: Sequence[Callable[[], tuple[Model, str]]] = (
            lambda: (models.container(rng), ""),
            lambda: (models.container(rng), ""),
            lambda: (models.debris(rng), ""),
            lambda: (models.bicycle(rng, False), "cycle.without_rider"),
        )
        for side in (-1.0, 1.0):
            for n, s in enumerate(np.arange(-reach, reach, 9.5)):
                s += rng.uniform(-3.0, 3.0)
                if self.town.junction_gap(0, s) < 6.0:
                    continue
                model, attribute = makers[n % 4]()
                d = side * (main.border - 0.5 - 0.5 * model.size[0] * (model.category == "movable_object.debris"))
                self._add(model, 0, s, d, rng.choice([0.0, math.pi]) + rng.normal(0, 0.1), attribute)


def lane_choice(rng: np.random.Generator, street: Street) -> float:
    """Offset of the lane the ego vehicle drives in: on the right, hence negative."""
    return -street.lane_offset(int(rng.integers(street.lanes)))
