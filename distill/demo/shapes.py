"""Shapes: tapered boxes, tapered cylinders and ellipsoids, the only solids of the demo world.

A shape is a unit solid stretched by `half` and turned by `axes`; rays and points are tested in its unit frame:

* BOX: |z| <= 1, |x| <= 1 - (1 - taper_x) (z + 1) / 2, the same for y (taper 1 is a box, taper_y 0 a gable roof);
* ROUND: |z| <= 1, sqrt(x^2 + y^2) <= 1 - (1 - taper_x) (z + 1) / 2 (a cylinder or a cone);
* ELLIPSOID: x^2 + y^2 + z^2 <= 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from distill.demo import materials as m
from distill.demo.noise import kernel, smooth_noise

BOX, ROUND, ELLIPSOID = range(3)
FAR = 1e9  # no hit

# Columns of `Shapes.solid`: centre, axes (row k = local axis k in the parent frame), half extents, tapers.
CENTRE, AXES, HALF, TAPER = slice(0, 3), slice(3, 12), slice(12, 15), slice(15, 17)
# Columns of `Shapes.tags`.
KIND, MATERIAL, CLASS, INSTANCE = range(4)


@dataclass(frozen=True)
class Shapes:
    """N shapes in one frame.

    Attributes:
        solid: float32 (N, 17), see the column names above; metres.
        look: float32 (N, 6): linear RGB, then three numbers whose meaning depends on the material.
        tags: int32 (N, 4): kind, material, class id, instance number (-1: part of the town).
    """

    solid: np.ndarray
    look: np.ndarray
    tags: np.ndarray

    def __len__(self) -> int:
        return len(self.solid)

    def moved(self, pose: np.ndarray) -> Shapes:
        """The same shapes in the parent frame of `pose`, a rigid float64 (4, 4)."""
        solid = self.solid.astype(np.float64)
        rotation = pose[:3, :3]
        solid[:, CENTRE] = solid[:, CENTRE] @ rotation.T + pose[:3, 3]
        solid[:, AXES] = (solid[:, AXES].reshape(-1, 3, 3) @ rotation.T).reshape(-1, 9)
        return Shapes(solid.astype(np.float32), self.look, self.tags)

    def of_instance(self, instance: int) -> Shapes:
        """The same shapes, tagged with an instance number."""
        tags = self.tags.copy()
        tags[:, INSTANCE] = instance
        return Shapes(self.solid, self.look, tags)

    def chosen(self, keep: np.ndarray) -> Shapes:
        """The shapes picked by a boolean mask or indices."""
        return Shapes(self.solid[keep], self.look[keep], self.tags[keep])


def joined(groups: Sequence[Shapes]) -> Shapes:
    """All shapes of all groups, in order."""
    return Shapes(
        np.concatenate([g.solid for g in groups]),
        np.concatenate([g.look for g in groups]),
        np.concatenate([g.tags for g in groups]),
    )


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Rotation matrix Rz(yaw) Ry(pitch) Rx(roll), float64 (3, 3); radians, positive pitch turns x down."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def rigid(x: float, y: float, z: float, yaw: float) -> np.ndarray:
    """Rigid transform float64 (4, 4) of an upright object."""
    pose = np.eye(4)
    pose[:3, :3] = rotation(yaw)
    pose[:3, 3] = x, y, z
    return pose


Triple = Sequence[float] | np.ndarray


@dataclass
class Sketch:
    """Collects shapes of one class; sizes are full extents along the local axes, metres."""

    class_id: int
    rows: list[tuple[list[float], list[float], list[int]]] = field(default_factory=list)

    def box(
        self,
        centre: Triple,
        size: Triple,
        colour: Triple,
        material: int = m.PLAIN,
        turn: np.ndarray | None = None,
        taper: tuple[float, float] = (1.0, 1.0),
        pattern: Triple = (0.0, 0.0, 0.0),
    ) -> None:
        """Add a (tapered) box."""
        self._add(BOX, centre, size, colour, material, turn, taper, pattern)

    def round(
        self,
        centre: Triple,
        size: Triple,
        colour: Triple,
        material: int = m.PLAIN,
        turn: np.ndarray | None = None,
        taper: float = 1.0,
        pattern: Triple = (0.0, 0.0, 0.0),
    ) -> None:
        """Add a cylinder or cone along the local z axis."""
        self._add(ROUND, centre, size, colour, material, turn, (taper, taper), pattern)

    def ellipsoid(
        self,
        centre: Triple,
        size: Triple,
        colour: Triple,
        material: int = m.PLAIN,
        turn: np.ndarray | None = None,
        pattern: Triple = (0.0, 0.0, 0.0),
    ) -> None:
        """Add an ellipsoid."""
        self._add(ELLIPSOID, centre, size, colour, material, turn, (1.0, 1.0), pattern)

    def _add(
        self,
        kind: int,
        centre: Triple,
        size: Triple,
        colour: Triple,
        material: int,
        turn: np.ndarray | None,
        taper: tuple[float, float],
        pattern: Triple,
    ) -> None:
        axes = (np.eye(3) if turn is None else turn).T.ravel()
        solid = [*centre, *axes, *(0.5 * s for s in size), *taper]
        self.rows.append((solid, [*colour, *pattern], [kind, material, self.class_id, -1]))

    def shapes(self) -> Shapes:
        """Everything added so far."""
        solid, look, tags = zip(*self.rows, strict=True)
        return Shapes(np.array(solid, np.float32), np.array(look, np.float32), np.array(tags, np.int32))


@kernel
def unit_frame(row: np.ndarray) -> tuple:
    """The matrix that takes parent directions into the unit frame of a shape (`solid` row), as nine numbers."""
    return (
        row[3] / row[12], row[4] / row[12], row[5] / row[12],
        row[6] / row[13], row[7] / row[13], row[8] / row[13],
        row[9] / row[14], row[10] / row[14], row[11] / row[14],
    )  # fmt: skip


@kernel
def _enter_box(tx, ty, ox, oy, oz, dx, dy, dz):  # type: ignore[no-untyped-def]
    """First hit of a ray with the unit tapered box: (t, face); faces 0-5 are +x -x +y -y +z -z."""
    kx, ky = 0.5 * (1.0 - tx), 0.5 * (1.0 - ty)
    near, leave, face = -FAR, FAR, 0
    for plane in range(6):
        sign = 1.0 - 2.0 * (plane & 1)
        if plane < 2:
            speed, gap = sign * dx + kx * dz, 1.0 - kx - sign * ox - kx * oz
        elif plane < 4:
            speed, gap = sign * dy + ky * dz, 1.0 - ky - sign * oy - ky * oz
        else:
            speed, gap = sign * dz, 1.0 - sign * oz
        if abs(speed) < 1e-12:
            if gap < 0.0:
                return FAR, 0
            continue
        t = gap / speed
        if speed < 0.0:
            if t > near:
                near, face = t, plane
        elif t < leave:
            leave = t
    if near > leave or near <= 0.0:
        return FAR, 0
    return near, face


@kernel
def _enter_round(taper, ox, oy, oz, dx, dy, dz):  # type: ignore[no-untyped-def]
    """First hit with the unit tapered cylinder: (t, face); face 6 is the side, 4 and 5 the caps."""
    k = 1.0 - taper
    best, face = FAR, 6
    radius, growth = 1.0 - 0.5 * k * (oz + 1.0), -0.5 * k * dz
    a = dx * dx + dy * dy - growth * growth
    b = ox * dx + oy * dy - radius * growth
    c = ox * ox + oy * oy - radius * radius
    root = b * b - a * c
    if root > 0.0 and abs(a) > 1e-12:
        root = math.sqrt(root)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            if 0.0 < t < best and abs(oz + t * dz) <= 1.0 and radius + t * growth >= 0.0:
                best = t
    if abs(dz) > 1e-12:
        for cap in range(2):
            t = ((1.0 - 2.0 * cap) - oz) / dz
            x, y, r = ox + t * dx, oy + t * dy, (taper if cap == 0 else 1.0)
            if 0.0 < t < best and x * x + y * y <= r * r:
                best, face = t, 4 + cap
    return best, face


@kernel
def enter(kind, tx, ty, ox, oy, oz, dx, dy, dz):  # type: ignore[no-untyped-def]
    """First hit of the ray o + t d with a unit solid from outside: (t, face); t is FAR without a hit."""
    if kind == BOX:
        return _enter_box(tx, ty, ox, oy, oz, dx, dy, dz)
    if kind == ROUND:
        return _enter_round(tx, ox, oy, oz, dx, dy, dz)
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    root = b * b - a * (ox * ox + oy * oy + oz * oz - 1.0)
    if root <= 0.0:
        return FAR, 7
    t = (-b - math.sqrt(root)) / a
    return (t, 7) if t > 0.0 else (FAR, 7)


@kernel
def passes_through(material, x, y, z, dx, dy, dz, wx, wy, wz):  # type: ignore[no-untyped-def]
    """Whether a ray slips through the surface it met: ragged edges of crowns, gaps between spokes.

    (x, y, z) and (dx, dy, dz) are in the unit frame, (wx, wy, wz) is the point in the shape's parent frame.
    """
    if material == m.LEAVES:
        facing = -(x * dx + y * dy + z * dz) / math.sqrt((dx * dx + dy * dy + dz * dz) * (x * x + y * y + z * z))
        return facing < 0.75 * smooth_noise(3.7 * wx, 3.7 * wy, 3.7 * wz) ** 2
    if material == m.SPOKES:
        return abs(z) > 0.99 and x * x + y * y < 0.64
    return False


@kernel
def contains(kind, tx, ty, x, y, z):  # type: ignore[no-untyped-def]
    """Whether a point of the unit frame lies in the unit solid."""
    if kind == ELLIPSOID:
        return x * x + y * y + z * z <= 1.0
    if abs(z) > 1.0:
        return False
    rx = 1.0 - 0.5 * (1.0 - tx) * (z + 1.0)
    if kind == ROUND:
        return x * x + y * y <= rx * rx
    return abs(x) <= rx and abs(y) <= 1.0 - 0.5 * (1.0 - ty) * (z + 1.0)
