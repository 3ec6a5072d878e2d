"""Procedural textures: the colour of a material at a point.

Every texture answers (r, g, b, gloss, glow): linear albedo, how much it mirrors the sky, how much it shines itself.
`detail` in [0, 1] fades what a pixel could not resolve at the point's distance.
"""

from __future__ import annotations

import math

from distill.demo import materials as m
from distill.demo.noise import hash_noise, kernel, smooth_noise
from distill.demo.shapes import ROUND


@kernel
def ground_texture(material, x, y, patch, seam, detail, wetness):  # type: ignore[no-untyped-def]
    """Texture of the ground at a town point; `patch` and `seam` are slow noises there."""
    grain = 1.0
    if detail > 0.03:
        speckle = hash_noise(int(45 * x), int(45 * y), 1) + smooth_noise(11.0 * x, 11.0 * y, 0.0)
        grain += 0.5 * detail * (speckle - 1.0)
    if material == m.ASPHALT or material == m.LINE:
        shade = (0.075 + 0.05 * patch) * grain
        if abs(seam - 0.5) < 0.006:
            shade *= 0.6
        if material == m.LINE:
            worn = smooth_noise(2.3 * x, 2.3 * y, 2.0)
            shade = shade + (0.62 - shade) * min(1.0, 0.35 + 1.3 * worn)
        puddle = wetness * min(1.0, 0.35 + max(0.0, 2.2 * patch - 0.7))
        shade *= 1.0 - 0.5 * wetness
        return shade, shade * 0.99, shade * 0.98, 0.75 * puddle, 0.0
    if material == m.KERB:
        shade = 0.36 * grain
        return shade, 0.98 * shade, 0.94 * shade, 0.0, 0.0
    if material == m.SLABS:
        u, v = x / 0.62, y / 0.62
        slab = hash_noise(math.floor(u), math.floor(v), 4) - 0.5
        shade = 0.25 + 0.07 * detail * slab + 0.08 * (patch - 0.5)
        if u - math.floor(u) < 0.05 or v - math.floor(v) < 0.05:
            shade *= 1.0 - 0.45 * math.sqrt(detail)
        shade *= (0.5 + 0.5 * grain) * (1.0 - 0.35 * wetness)
        return shade, 0.97 * shade, 0.92 * shade, 0.12 * wetness, 0.0
    if material == m.GRASS:
        tuft = smooth_noise(5.0 * x, 5.0 * y, 1.0) - 0.5
        dry = min(1.0, max(0.0, 2.5 * smooth_noise(0.35 * x, 0.35 * y, 6.0) - 1.2))
        lush = (0.9 + 0.5 * detail * tuft + 0.4 * (patch - 0.5)) * (0.4 + 0.6 * grain)
        return lush * (0.085 + 0.08 * dry), lush * (0.135 + 0.02 * dry), lush * 0.04, 0.0, 0.0
    if material == m.SOIL:
        shade = 0.13 * grain
        return shade, 0.75 * shade, 0.55 * shade, 0.0, 0.0
    if material == m.COBBLES:
        row = math.floor(y / 0.2)
        u = x / 0.3 + 0.5 * (int(row) & 1)
        stone = hash_noise(math.floor(u), int(row), 8) - 0.5
        shade = 0.26 + 0.1 * detail * stone + 0.06 * (patch - 0.5)
        if u - math.floor(u) < 0.1 or y / 0.2 - row < 0.13:
            shade *= 1.0 - 0.4 * math.sqrt(detail)
        return shade, 0.78 * shade, 0.66 * shade, 0.08 * wetness, 0.0
    shade = (0.27 + 0.06 * patch) * grain
    return shade, 0.36 * shade, 0.27 * shade, 0.2 * wetness, 0.0


@kernel
def _glass(seed, a, b, darkness):  # type: ignore[no-untyped-def]
    """A window pane: dark and mirroring, with a curtain behind some, lit in the dark behind others."""
    lot = hash_noise(a, b, seed)
    if lot < 0.5 * darkness:
        return 0.5, 0.38, 0.2, 0.3, 0.9
    if lot > 0.75:
        return 0.22, 0.21, 0.19, 0.55, 0.0
    return 0.025, 0.03, 0.035, 0.9, 0.0


@kernel
def _masonry(r, g, b, seed, u, v, detail):  # type: ignore[no-untyped-def]
    stain = 0.82 + 0.22 * smooth_noise(0.5 * u, 0.35 * v, 0.01 * seed) + 0.1 * min(1.0, v / 2.0)
    if seed % 3 == 0:
        row = math.floor(v / 0.085)
        w = u / 0.25 + 0.5 * (int(row) & 1)
        stain *= 1.0 + 0.4 * detail * (hash_noise(math.floor(w), int(row), seed) - 0.5)
        if v / 0.085 - row < 0.14 or w - math.floor(w) < 0.05:
            stain *= 1.0 + 0.35 * detail
    else:
        stain *= 1.0 + 0.12 * detail * (smooth_noise(6.0 * u, 6.0 * v, 1.0) - 0.5)
    return r * stain, g * stain, b * stain, 0.0, 0.0


@kernel
def _facade(look, face, u, v, width, height, detail, darkness):  # type: ignore[no-untyped-def]
    """A wall with a grid of windows; u runs along the wall, v up from its foot, metres."""
    r, g, b, seed, bay, floor = look[0], look[1], look[2], int(look[3]), look[4], look[5]
    bays, storeys = max(1, int(width / bay + 0.5)), max(1, int(height / floor))
    column, storey = int(u / width * bays), int(v / floor)
    bay = width / bays
    across, up = (u - column * bay) - 0.5 * bay, v - storey * floor
    side = seed + 31 * face
    if storey >= storeys:
        return _masonry(1.1 * r, 1.1 * g, 1.1 * b, seed, u, v, detail)
    shop = storey == 0 and face == 1 and seed % 5 < 3
    half = 0.5 * min(bay - 0.5, 0.9 + 0.9 * hash_noise(seed, 1, 1))
    low, high = 0.28 * floor, (0.8 + 0.06 * hash_noise(seed, 2, 2)) * floor
    door = storey == 0 and face == 1 and column == seed % bays
    if shop:
        half, low, high = 0.5 * bay - 0.14, 0.45, 0.8 * floor
    if door:
        half, low, high = 0.55, 0.0, 0.74 * floor
    elif not shop and hash_noise(column, face, seed) < 0.08:
        return _masonry(r, g, b, seed, u, v, detail)
    inset = min(half - abs(across), up - low, high - up)
    if inset < 0.0:
        if inset > -0.14 and up < low and abs(across) < half + 0.1:
            return 0.5, 0.48, 0.45, 0.0, 0.0
        if abs(up - 0.02 * floor) < 0.12 and storey == 1:
            return 0.8 * r, 0.8 * g, 0.8 * b, 0.0, 0.0
        return _masonry(r, g, b, seed, u, v, detail)
    if inset < 0.07 or ((not shop) and abs(across) < 0.035):
        tone = 0.6 if seed % 2 else 0.07
        return tone, tone, tone, 0.0, 0.0
    if door and up < 0.7 * high:
        tone = 0.5 + hash_noise(seed, 5, 5)
        return 0.16 * tone, 0.09 * tone, 0.06 * tone, 0.1, 0.0
    return _glass(side, column, storey, darkness)


@kernel
def _cabin(r, g, b, face, x, y, z):  # type: ignore[no-untyped-def]
    """Greenhouse of a vehicle: glass between pillars; x, y, z in the unit frame."""
    along = x if face == 2 or face == 3 else y
    reach = 1.0 - 0.25 * (z + 1.0) * 0.5
    pillar = face != 0 and face != 1 and abs(x + 0.08) < 0.035
    if face >= 4 or z < -0.86 or z > 0.84 or abs(along) > reach * 0.9 or pillar:
        return r, g, b, 0.3, 0.0
    return 0.02, 0.024, 0.028, 0.8, 0.0


@kernel
def _bus_side(r, g, b, face, x, y, z, hx):  # type: ignore[no-untyped-def]
    if face >= 4:
        return 0.6, 0.6, 0.58, 0.1, 0.0
    along = x * hx if face == 2 or face == 3 else 1.4 * y
    post = along / 1.4 - math.floor(along / 1.4)
    low = -0.75 if face == 0 else -0.1
    if low < z < 0.72 and post > 0.07:
        return 0.02, 0.025, 0.03, 0.8, 0.0
    if -0.32 < z < -0.24:
        return 0.65, 0.65, 0.63, 0.2, 0.0
    return r, g, b, 0.3, 0.0


@kernel
def shape_texture(material, kind, look, face, x, y, z, hx, hy, hz, wx, wy, wz, detail, darkness):  # type: ignore[no-untyped-def]
    """Texture of a shape at unit-frame point (x, y, z), half extents h, town point w."""
    r, g, b = look[0], look[1], look[2]
    if material == m.FACADE:
        if face >= 4:
            return 0.16, 0.155, 0.15, 0.0, 0.0
        along, half = (y * hy, hy) if face < 2 else (x * hx, hx)
        return _facade(look, face, along + half, z * hz + hz, 2.0 * half, 2.0 * hz, detail, darkness)
    if material == m.LEAVES:
        coarse, fine = smooth_noise(2.6 * wx, 2.6 * wy, 2.6 * wz), smooth_noise(9.0 * wx, 9.0 * wy, 9.0 * wz)
        lush = (0.45 + 0.75 * coarse + 0.8 * detail * (fine - 0.5)) * (0.85 + 0.25 * z)
        return lush * r * (0.8 + 0.4 * coarse), lush * g, lush * b, 0.0, 0.0
    if material == m.PAINT:
        return r, g, b, 0.35, 0.0
    if material == m.CABIN:
        return _cabin(r, g, b, face, x, y, z)
    if material == m.WINDOW_BAND:
        return _bus_side(r, g, b, face, x, y, z, hx)
    if material == m.TYRE:
        if kind == ROUND and face != 6 and x * x + y * y < 0.36:
            return 0.4, 0.4, 0.42, 0.3, 0.0
        return r, g, b, 0.0, 0.0
    if material == m.LAMP:
        return r, g, b, 0.2, 0.15 + 1.2 * darkness
    if material == m.STRIPES:
        along = z * hz if kind == ROUND else y * hy + look[4] * z * hz
        place = along / look[3] + 0.25
        if place - math.floor(place) < 0.5:
            return r, g, b, 0.05, 0.0
        return 0.72, 0.72, 0.7, 0.05, 0.0
    if material == m.BOX_BODY:
        rib = x * hx / 0.6
        tone = 0.88 if rib - math.floor(rib) < 0.08 and face >= 2 else 1.0
        if 0.2 < z < 0.55 and abs(x) < 0.6 and (face == 2 or face == 3):
            return 0.9 * (0.8 - r) * tone, 0.5 * (0.8 - g) * tone, 0.6 * b * tone, 0.12, 0.0
        return tone * r, tone * g, tone * b, 0.12, 0.0
    if material == m.ROOF:
        row = z * hz / 0.16
        tone = 0.85 + 0.3 * smooth_noise(1.5 * wx, 1.5 * wy, 1.5 * wz)
        if row - math.floor(row) < 0.25:
            tone *= 1.0 - 0.35 * detail
        return tone * r, tone * g, tone * b, 0.0, 0.0
    if material == m.BRICK or material == m.BARK:
        tone = 0.7 + 0.6 * smooth_noise(4.0 * wx, 4.0 * wy, (4.0 if material == m.BRICK else 9.0) * wz)
        return tone * r, tone * g, tone * b, 0.0, 0.0
    return r, g, b, 0.04, 0.0
