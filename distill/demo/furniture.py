"""Street furniture: lamps, signs, traffic lights and benches."""

from __future__ import annotations

import math

import numpy as np

from distill.demo import materials as m
from distill.demo.models import STEEL, Colour
from distill.demo.shapes import Sketch, rotation

Foot = tuple[float, float, float]

_POST: Colour = (0.12, 0.13, 0.14)
_WOOD: Colour = (0.25, 0.14, 0.07)
_SIGNS: tuple[Colour, ...] = ((0.6, 0.03, 0.03), (0.03, 0.12, 0.5), (0.75, 0.55, 0.05))
_SIGNALS: tuple[Colour, ...] = ((0.9, 0.05, 0.03), (0.9, 0.5, 0.03), (0.05, 0.8, 0.3))
_FORWARD = rotation(pitch=math.pi / 2)  # local z along x: discs that face ahead


def put_lamp(sketch: Sketch, foot: Foot, facing: float) -> None:
    """A street lamp whose arm points along `facing`."""
    x, y, base = foot
    c, k, turn = math.cos(facing), math.sin(facing), rotation(facing)
    sketch.round((x, y, base + 3.2), (0.17, 0.17, 6.4), _POST, taper=0.6)
    sketch.box((x + 0.9 * c, y + 0.9 * k, base + 6.3), (2.0, 0.09, 0.09), _POST, m.PLAIN, turn)
    sketch.box((x + 1.7 * c, y + 1.7 * k, base + 6.22), (0.7, 0.28, 0.12), (0.8, 0.75, 0.6), m.LAMP, turn)


def put_sign(rng: np.random.Generator, sketch: Sketch, foot: Foot, facing: float) -> None:
    """A round road sign."""
    x, y, base = foot
    colour, turn = _SIGNS[int(rng.integers(len(_SIGNS)))], rotation(facing) @ _FORWARD
    sketch.round((x, y, base + 1.2), (0.08, 0.08, 2.4), STEEL)
    sketch.round((x, y, base + 2.3), (0.62, 0.62, 0.06), colour, m.LAMP, turn)


def put_traffic_light(rng: np.random.Generator, sketch: Sketch, foot: Foot, facing: float) -> None:
    """A traffic light that looks along `facing`."""
    x, y, base = foot
    c, k, lit = math.cos(facing), math.sin(facing), int(rng.integers(3))
    sketch.round((x, y, base + 1.7), (0.14, 0.14, 3.4), _POST)
    sketch.box((x + 0.16 * c, y + 0.16 * k, base + 3.0), (0.24, 0.34, 0.95), (0.02, 0.02, 0.02), turn=rotation(facing))
    for n, colour in enumerate(_SIGNALS):
        glow = colour if n == lit else tuple(0.1 * part for part in colour)
        spot = (x + 0.29 * c, y + 0.29 * k, base + 3.3 - 0.29 * n)
        sketch.round(spot, (0.2, 0.2, 0.05), glow, m.LAMP, rotation(facing) @ _FORWARD)


def put_bench(sketch: Sketch, foot: Foot, back: float) -> None:
    """A bench whose back is towards `back`."""
    x, y, base = foot
    turn = rotation(back)
    sketch.box((x, y, base + 0.45), (0.5, 1.7, 0.08), _WOOD, m.BARK, turn)
    spot = (x + 0.25 * math.cos(back), y + 0.25 * math.sin(back), base + 0.75)
    sketch.box(spot, (0.07, 1.7, 0.45), _WOOD, m.BARK, turn)
    sketch.box((x, y, base + 0.2), (0.4, 1.3, 0.4), _POST, m.PLAIN, turn, taper=(0.9, 0.95))
