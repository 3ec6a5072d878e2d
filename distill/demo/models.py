"""Models of everything nuScenes puts a box around: cars, lorries, riders, people, cones and clutter.

A model stands at the origin of its own frame (x forward, y left, z up from the ground).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.classes import OCC3D_CLASSES
from distill.demo import materials as m
from distill.demo.shapes import Shapes, Sketch, rotation

Colour = tuple[float, float, float]

TYRE: Colour = (0.02, 0.02, 0.022)
DARK: Colour = (0.035, 0.036, 0.04)
STEEL: Colour = (0.35, 0.36, 0.38)
CHALK: Colour = (0.75, 0.75, 0.72)
SAFETY_ORANGE: Colour = (0.9, 0.22, 0.03)
MACHINE_YELLOW: Colour = (0.85, 0.5, 0.03)
HEADLIGHT: Colour = (0.95, 0.93, 0.85)
TAILLIGHT: Colour = (0.55, 0.02, 0.02)

# Usual car colours: white, silver, grey, black, blue, red, green, beige, dark blue, yellow.
CAR_COLOURS: tuple[Colour, ...] = (
    (0.72, 0.72, 0.7), (0.45, 0.47, 0.5), (0.16, 0.17, 0.18), (0.025, 0.025, 0.03), (0.03, 0.1, 0.36),
    (0.45, 0.025, 0.02), (0.04, 0.16, 0.09), (0.5, 0.42, 0.3), (0.02, 0.035, 0.12), (0.75, 0.48, 0.03),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (0.05, 0.07, 0.2), (0.4, 0.04, 0.05), (0.55, 0.53, 0.5), (0.03, 0.03, 0.035), (0.1, 0.2, 0.12),
    (0.6, 0.35, 0.06), (0.15, 0.3, 0.5), (0.3, 0.2, 0.13), (0.5, 0.15, 0.3),
)  # fmt: skip
SKINS: tuple[Colour, ...] = ((0.6, 0.38, 0.28), (0.42, 0.25, 0.16), (0.18, 0.1, 0.06))


@dataclass(frozen=True)
class Model:
    """A thing with a box.

    Attributes:
        category: nuScenes category name.
        shapes: in the model's frame.
        size: (width, length, height) of its box, metres, in nuScenes order.
    """

    category: str
    shapes: Shapes
    size: tuple[float, float, float]


# nuScenes category -> occupancy class.
CATEGORY_CLASS = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "human.pedestrian.adult": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.barrier": "barrier",
    "movable_object.pushable_pullable": "others",
    "movable_object.debris": "others",
}
# Of nuScenes-lidarseg: what no box is put around.
_SURFACE_CLASS = {
    "flat.driveable_surface": "driveable_surface",
    "flat.other": "other_flat",
    "flat.sidewalk": "sidewalk",
    "flat.terrain": "terrain",
    "static.manmade": "manmade",
    "static.vegetation": "vegetation",
}
CATEGORIES = ("noise", *CATEGORY_CLASS, *_SURFACE_CLASS)  # by their index in lidarseg files
_OF_CATEGORY = list((CATEGORY_CLASS | _SURFACE_CLASS).values())
# Class id -> index of the first category of this class, uint8 (17,).
LIDARSEG = np.array([1 + _OF_CATEGORY.index(name) for name in OCC3D_CLASSES.names[: OCC3D_CLASSES.free]], np.uint8)


def _sketch(category: str) -> Sketch:
    return Sketch(OCC3D_CLASSES.names.index(CATEGORY_CLASS[category]))


def _model(category: str, sketch: Sketch) -> Model:
    """Close a sketch: its box is the tight box around the shapes, symmetric about the origin."""
    shapes = sketch.shapes()
    axes = np.abs(shapes.solid[:, 3:12].reshape(-1, 3, 3))
    reach = np.einsum("nk,nka->na", shapes.solid[:, 12:15], axes)
    far = np.abs(shapes.solid[:, :2]) + reach[:, :2]
    top = shapes.solid[:, 2] + reach[:, 2]
    return Model(category, shapes, (2.0 * float(far[:, 1].max()), 2.0 * float(far[:, 0].max()), float(top.max())))


def _pick(rng: np.random.Generator, choices: tuple[Colour, ...]) -> Colour:
    return choices[int(rng.integers(len(choices)))]


_ACROSS = rotation(roll=math.pi / 2)  # local z along y: wheels
_UPSIDE_DOWN = rotation(roll=math.pi)  # what is wider above than below


def _wheels(sketch: Sketch, positions: list[float], half_track: float, radius: float, width: float) -> None:
    for x in positions:
        for side in (-1.0, 1.0):
            centre = (x, side * (half_track - 0.5 * width), radius)
            sketch.round(centre, (2 * radius, 2 * radius, width), TYRE, m.TYRE, _ACROSS)


def _lights(sketch: Sketch, front: float, rear: float, half_width: float, height: float) -> None:
    for side in (-1.0, 1.0):
        y = side * (half_width - 0.24)
        sketch.box((front, y, height), (0.08, 0.36, 0.15), HEADLIGHT, m.LAMP)
        sketch.box((rear, y, height + 0.08), (0.08, 0.3, 0.2), TAILLIGHT, m.LAMP)


def car(rng: np.random.Generator) -> Model:
    """A saloon, an estate or a van-like car."""
    sketch = _sketch("vehicle.car")
    style = rng.choice(3, p=[0.5, 0.35, 0.15])
    length, width = rng.uniform(4.1, 4.8), rng.uniform(1.75, 1.92)
    height = (1.46, 1.6, 1.9)[style] + rng.uniform(-0.04, 0.08)
    paint, belt = _pick(rng, CAR_COLOURS), 0.58 * height
    front, half = 0.5 * length, 0.5 * width
    sketch.box((0, 0, 0.42), (length - 0.06, width - 0.04, 0.36), paint, m.PAINT, taper=(1.0, 1.0))
    sketch.box((0, 0, 0.27), (length - 0.2, width - 0.1, 0.18), DARK)
    sketch.box((0, 0, 0.5 * (0.58 + belt)), (length, width, belt - 0.56), paint, m.PAINT, taper=(0.9, 0.9))
    cabin_length = length * (0.58, 0.68, 0.74)[style]
    cabin_back = length * (-0.07, -0.13, -0.1)[style]
    sketch.box(
        (cabin_back, 0, 0.5 * (belt + height)),
        (cabin_length, width - 0.14, height - belt),
        paint,
        m.CABIN,
        taper=((0.6, 0.74, 0.8)[style], 0.8),
    )
    _wheels(sketch, [-0.29 * length, 0.3 * length], half, 0.33, 0.22)
    _lights(sketch, front - 0.07, -front + 0.07, half, 0.66)
    sketch.box((-front + 0.02, 0, 0.62), (0.05, 0.5, 0.12), CHALK)
    sketch.box((front - 0.02, 0, 0.48), (0.06, 0.9, 0.16), DARK)
    for side in (-1.0, 1.0):
        sketch.box((0.16 * length, side * (half + 0.07), belt + 0.06), (0.12, 0.18, 0.12), paint, m.PAINT)
    return _model("vehicle.car", sketch)


def truck(rng: np.random.Generator) -> Model:
    """A lorry with a cab and a box body."""
    sketch = _sketch("vehicle.truck")
    length, width, height = rng.uniform(6.4, 8.5), 2.4, rng.uniform(2.9, 3.5)
    paint = _pick(rng, CAR_COLOURS)
    body = _pick(rng, ((0.7, 0.7, 0.68), (0.5, 0.3, 0.1), (0.1, 0.2, 0.4), (0.6, 0.6, 0.2)))
    front = 0.5 * length
    sketch.box((front - 0.95, 0, 0.95), (1.9, width - 0.1, 1.0), paint, m.PAINT)
    sketch.box((front - 1.0, 0, 1.95), (1.8, width - 0.16, 1.0), paint, m.CABIN, taper=(0.82, 0.94))
    sketch.box((-1.05, 0, 0.5 * (1.0 + height)), (length - 2.2, width, height - 1.0), body, m.BOX_BODY)
    sketch.box((-0.2, 0, 0.75), (length - 0.6, 0.9, 0.4), DARK)
    _wheels(sketch, [front - 1.1, -front + 1.3, -front + 2.4], 0.5 * width, 0.48, 0.3)
    _lights(sketch, front - 0.02, -front + 0.04, 0.5 * width, 0.72)
    return _model("vehicle.truck", sketch)


def bus(rng: np.random.Generator) -> Model:
    """A city bus."""
    sketch = _sketch("vehicle.bus.rigid")
    length, width, height = rng.uniform(10.5, 12.0), 2.55, 3.05
    paint = _pick(rng, ((0.5, 0.04, 0.03), (0.05, 0.25, 0.5), (0.7, 0.45, 0.04), (0.08, 0.35, 0.2), (0.68, 0.68, 0.66)))
    sketch.box((0, 0, 0.5 * (0.35 + height)), (length, width, height - 0.35), paint, m.WINDOW_BAND, taper=(0.99, 0.97))
    sketch.box((-1.0, 0, height + 0.1), (3.0, 1.6, 0.22), CHALK)
    _wheels(sketch, [0.32 * length, -0.28 * length], 0.5 * width + 0.02, 0.48, 0.3)
    _lights(sketch, 0.5 * length, -0.5 * length, 0.5 * width, 0.7)
    sketch.box((0.5 * length - 0.02, 0, height - 0.3), (0.08, 1.6, 0.3), (0.9, 0.55, 0.05), m.LAMP)
    return _model("vehicle.bus.rigid", sketch)


def trailer(rng: np.random.Generator) -> Model:
    """A box or flatbed trailer, parked on its legs."""
    sketch = _sketch("vehicle.trailer")
    length, width = rng.uniform(7.0, 10.0), 2.45
    body = _pick(rng, ((0.66, 0.66, 0.64), (0.1, 0.16, 0.3), (0.45, 0.1, 0.06), (0.2, 0.3, 0.22)))
    height = rng.uniform(3.1, 3.6)
    sketch.box((0, 0, 0.5 * (1.15 + height)), (length, width, height - 1.15), body, m.BOX_BODY)
    sketch.box((0, 0, 1.05), (length, 1.0, 0.25), DARK)
    _wheels(sketch, [-0.5 * length + d for d in (1.0, 2.1, 3.2)], 0.5 * width, 0.48, 0.34)
    for side in (-0.8, 0.8):
        sketch.box((0.3 * length, side, 0.5), (0.14, 0.14, 1.0), STEEL)
        sketch.box((-0.5 * length, side, 1.0), (0.06, 0.4, 0.16), TAILLIGHT, m.LAMP)
    sketch.box((-0.5 * length + 0.02, 0, 0.6), (0.08, 2.2, 0.14), SAFETY_ORANGE, m.STRIPES, pattern=(0.4, 0.8, 0))
    return _model("vehicle.trailer", sketch)


def construction_vehicle(rng: np.random.Generator) -> Model:
    """An excavator on crawlers."""
    sketch = _sketch("vehicle.construction")
    paint = _pick(rng, (MACHINE_YELLOW, (0.85, 0.28, 0.03), (0.75, 0.55, 0.1)))
    for side in (-1.0, 1.0):
        sketch.box((0, side * 1.0, 0.45), (3.4, 0.55, 0.8), DARK, m.TYRE, taper=(0.8, 1.0))
    sketch.box((-0.3, 0, 0.95), (1.6, 1.5, 0.3), DARK)
    sketch.box((-0.6, 0, 1.6), (2.8, 2.4, 1.0), paint, m.PAINT, taper=(0.92, 0.95))
    sketch.box((0.2, 0.65, 2.4), (1.5, 1.05, 1.3), paint, m.CABIN, taper=(0.85, 0.92))
    boom, stick = rng.uniform(0.55, 0.8), rng.uniform(0.9, 1.2)
    knee = (0.6 + 2.9 * math.cos(boom), 1.6 + 2.9 * math.sin(boom))
    tip = (knee[0] + 1.9 * math.cos(stick), knee[1] - 1.9 * math.sin(stick))
    middle = (0.5 * (0.6 + knee[0]), -0.35, 0.5 * (1.6 + knee[1]))
    sketch.box(middle, (3.1, 0.35, 0.5), paint, m.PAINT, rotation(pitch=-boom))
    middle = (0.5 * (knee[0] + tip[0]), -0.35, 0.5 * (knee[1] + tip[1]))
    sketch.box(middle, (2.2, 0.3, 0.36), paint, m.PAINT, rotation(pitch=stick))
    sketch.box((tip[0] - 0.2, -0.35, tip[1] - 0.2), (0.8, 0.95, 0.75), DARK, turn=rotation(pitch=0.6), taper=(0.7, 1.0))
    return _model("vehicle.construction", sketch)


def _rider(sketch: Sketch, rng: np.random.Generator, seat: float, lean: float) -> None:
    """Somebody sitting on two wheels."""
    coat, trousers, skin = _pick(rng, CLOTHES), _pick(rng, CLOTHES), _pick(rng, SKINS)
    tilt = rotation(pitch=lean) @ _UPSIDE_DOWN
    sketch.round((0.06, 0, seat + 0.3), (0.28, 0.42, 0.62), coat, turn=tilt, taper=0.82)
    sketch.ellipsoid((0.16, 0, seat + 0.55), (0.28, 0.46, 0.28), coat)
    for side in (-1.0, 1.0):
        sketch.round((0.15, side * 0.16, seat - 0.12), (0.17, 0.17, 0.6), trousers, turn=rotation(pitch=-0.9))
        sketch.round((0.32, side * 0.17, seat - 0.42), (0.14, 0.14, 0.55), trousers)
        sketch.round((0.36, side * 0.23, seat + 0.33), (0.11, 0.11, 0.55), coat, turn=rotation(pitch=2.1))
    x = 0.14 + 0.4 * math.sin(lean)
    sketch.ellipsoid((x, 0, seat + 0.82), (0.22, 0.2, 0.27), skin)
    sketch.ellipsoid((x - 0.01, 0, seat + 0.88), (0.28, 0.25, 0.22), _pick(rng, CLOTHES), m.PAINT)


# Tubes of a bicycle frame: (x, z) of both ends, metres.
_FRAME_TUBES = (
    ((-0.52, 0.34), (-0.15, 0.85)),
    ((-0.1, 0.35), (-0.18, 0.9)),
    ((-0.1, 0.35), (0.4, 0.8)),
    ((-0.15, 0.8), (0.4, 0.82)),
    ((0.52, 0.34), (0.38, 1.02)),
    ((-0.52, 0.34), (-0.1, 0.35)),
)


def bicycle(rng: np.random.Generator, ridden: bool) -> Model:
    """A bicycle, parked or ridden."""
    sketch = _sketch("vehicle.bicycle")
    paint = _pick(rng, CAR_COLOURS)
    for x in (-0.52, 0.52):
        sketch.round((x, 0, 0.34), (0.68, 0.68, 0.06), TYRE, m.SPOKES, _ACROSS)
    for start, end in _FRAME_TUBES:
        dx, dz = end[0] - start[0], end[1] - start[1]
        centre = (0.5 * (start[0] + end[0]), 0, 0.5 * (start[1] + end[1]))
        sketch.box(centre, (math.hypot(dx, dz), 0.05, 0.055), paint, m.PAINT, rotation(pitch=-math.atan2(dz, dx)))
    sketch.box((-0.2, 0, 0.93), (0.26, 0.14, 0.07), DARK)
    sketch.box((0.38, 0, 1.03), (0.06, 0.56, 0.05), DARK)
    if ridden:
        _rider(sketch, rng, 0.93, 0.35)
    return _model("vehicle.bicycle", sketch)


def motorcycle(rng: np.random.Generator, ridden: bool) -> Model:
    """A motorcycle or scooter, parked or ridden."""
    sketch = _sketch("vehicle.motorcycle")
    paint = _pick(rng, CAR_COLOURS)
    for x in (-0.68, 0.68):
        sketch.round((x, 0, 0.31), (0.62, 0.62, 0.16), TYRE, m.TYRE, _ACROSS)
    sketch.box((0, 0, 0.48), (0.9, 0.36, 0.42), DARK, taper=(0.9, 0.8))
    sketch.ellipsoid((0.18, 0, 0.82), (0.75, 0.4, 0.38), paint, m.PAINT)
    sketch.box((-0.4, 0, 0.8), (0.75, 0.3, 0.16), DARK, turn=rotation(pitch=-0.1))
    sketch.box((-0.75, 0, 0.72), (0.4, 0.26, 0.18), paint, m.PAINT, rotation(pitch=0.25))
    for side in (-0.08, 0.08):
        sketch.round((0.58, side, 0.66), (0.07, 0.07, 0.8), STEEL, turn=rotation(pitch=-0.4))
    sketch.box((0.5, 0, 1.06), (0.07, 0.72, 0.06), DARK)
    sketch.ellipsoid((0.66, 0, 0.9), (0.2, 0.26, 0.26), HEADLIGHT, m.LAMP)
    if ridden:
        _rider(sketch, rng, 0.88, 0.25)
    return _model("vehicle.motorcycle", sketch)


def pedestrian(rng: np.random.Generator) -> Model:
    """A person in mid-stride."""
    sketch = _sketch("human.pedestrian.adult")
    height = rng.uniform(1.58, 1.9)
    k, swing = height / 1.75, rng.uniform(0.1, 0.4)
    coat, trousers, skin = _pick(rng, CLOTHES), _pick(rng, CLOTHES), _pick(rng, SKINS)
    for side in (-1.0, 1.0):
        stride = side * swing
        leg = (0.42 * k * math.sin(stride), side * 0.1, 0.43 * k)
        tilt = rotation(pitch=-stride) @ _UPSIDE_DOWN
        sketch.round(leg, (0.15 * k, 0.15 * k, 0.86 * k), trousers, turn=tilt, taper=0.8)
        sketch.box((0.86 * k * math.sin(stride) + 0.05, side * 0.1, 0.05), (0.27, 0.1, 0.1), DARK)
        arm = (-0.25 * k * math.sin(stride), side * 0.27 * k, 1.12 * k)
        tilt = rotation(pitch=stride) @ _UPSIDE_DOWN
        sketch.round(arm, (0.11 * k, 0.11 * k, 0.62 * k), coat, turn=tilt, taper=0.83)
    sketch.round((0, 0, 1.1 * k), (0.27 * k, 0.44 * k, 0.6 * k), coat, turn=_UPSIDE_DOWN, taper=0.82)
    sketch.ellipsoid((0, 0, 1.36 * k), (0.26 * k, 0.46 * k, 0.26 * k), coat)
    sketch.round((0, 0, 1.48 * k), (0.12, 0.12, 0.12), skin)
    sketch.ellipsoid((0.01, 0, 1.62 * k), (0.21, 0.18, 0.26 * k), skin)
    sketch.ellipsoid((-0.02, 0, 1.67 * k), (0.22, 0.2, 0.2 * k), _pick(rng, ((0.03, 0.02, 0.015), (0.2, 0.12, 0.05))))
    if rng.random() < 0.35:
        sketch.box((-0.2 * k, 0, 1.2 * k), (0.18, 0.32, 0.45), _pick(rng, CLOTHES))
    return _model("human.pedestrian.adult", sketch)


def traffic_cone(rng: np.random.Generator) -> Model:
    """A traffic cone."""
    sketch = _sketch("movable_object.trafficcone")
    height = rng.uniform(0.8, 1.0)
    sketch.box((0, 0, 0.03), (0.42, 0.42, 0.06), DARK)
    size, band = (0.4, 0.4, height), 0.52 * height
    sketch.round((0, 0, 0.5 * height), size, SAFETY_ORANGE, m.STRIPES, taper=0.18, pattern=(band, 0, 0))
    return _model("movable_object.trafficcone", sketch)


def barrier(rng: np.random.Generator) -> Model:
    """A striped plank barrier or a concrete one, its length across the model's x axis."""
    sketch = _sketch("movable_object.barrier")
    if rng.random() < 0.5:
        for z in (0.55, 0.9):
            sketch.box((0, 0, z), (0.1, 2.0, 0.24), (0.75, 0.05, 0.04), m.STRIPES, pattern=(0.5, 1.0, 0))
        for y in (-0.85, 0.85):
            sketch.box((0, y, 0.5), (0.45, 0.08, 1.0), DARK, taper=(0.2, 1.0))
    else:
        sketch.box((0, 0, 0.2), (0.6, 2.2, 0.4), (0.42, 0.41, 0.39), m.BARK, taper=(0.55, 1.0))
        sketch.box((0, 0, 0.65), (0.33, 2.2, 0.5), (0.42, 0.41, 0.39), m.BARK, taper=(0.6, 1.0))
    return _model("movable_object.barrier", sketch)


def container(rng: np.random.Generator) -> Model:
    """A wheeled waste container (pushable, class others)."""
    sketch = _sketch("movable_object.pushable_pullable")
    paint = _pick(rng, ((0.06, 0.25, 0.1), (0.05, 0.1, 0.3), (0.1, 0.1, 0.11), (0.45, 0.35, 0.05)))
    wide = rng.random() < 0.5
    width, length, height = (1.35, 1.0, 1.3) if wide else (0.6, 0.7, 1.05)
    size = (length, width, height - 0.16)
    sketch.box((0, 0, 0.5 * height), size, paint, turn=_UPSIDE_DOWN, taper=(0.86, 0.88))
    sketch.box((0, 0, height), (length, width, 0.1), (0.6 * paint[0], 0.6 * paint[1], 0.6 * paint[2]))
    _wheels(sketch, [-0.3 * length], 0.46 * width, 0.1, 0.06)
    return _model("movable_object.pushable_pullable", sketch)


def debris(rng: np.random.Generator) -> Model:
    """A pile of pallets and boxes (class others)."""
    sketch = _sketch("movable_object.debris")
    height = 0.0
    for _ in range(int(rng.integers(3, 6))):
        step = rng.uniform(0.14, 0.3)
        turn = rotation(yaw=rng.uniform(-0.25, 0.25))
        sketch.box((0, 0, height + 0.5 * step), (1.2, rng.uniform(0.8, 1.3), step), (0.36, 0.25, 0.14), m.BARK, turn)
        height += step
    sketch.box((0.1, 0.1, height + 0.2), (0.6, 0.5, 0.4), (0.42, 0.32, 0.2))
    return _model("movable_object.debris", sketch)
