"""Pictures of occupancy: bird's-eye view, perspective view, and a panel of cameras above both.

Everything is drawn on the Occ3D grid and returned as RGB uint8 (rows, columns, 3). Forward is up, left is left.
Letters: X Y Z voxel axes, K visible voxels, F visible voxel faces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distill.classes import OCC3D_CLASSES as CLASSES
from distill.grids import OCC3D as GRID
from distill.nuscenes.layout import CAMERAS

INK, PAPER = (38, 42, 51), (255, 255, 255)
UNSEEN, EMPTY, LINE = (231, 233, 237), (248, 249, 250), (222, 225, 230)

# The recording car seen from the ego origin below its rear axle: (lower, upper) corners in metres and RGB.
EGO_CAR = (
    ((-0.9, -0.9, 0.25), (3.2, 0.9, 0.95), (250, 250, 252)),
    ((-0.6, -0.78, 0.95), (1.9, 0.78, 1.55), (60, 66, 78)),
)

# The perspective camera: where it stands and what it looks at, metres in the ego frame; vertical field of view.
EYE, TARGET, FIELD_OF_VIEW = (-76.0, -10.0, 66.0), (-7.0, -0.6, 0.0), 40.0

# The six faces of a cube as (axis, side, shade): light comes from above, a little from behind and the right.
FACES = ((0, 0, 0.76), (0, 1, 0.60), (1, 0, 0.64), (1, 1, 0.60), (2, 0, 0.50), (2, 1, 1.0))

# The layout of a panel, pixels: three cameras side by side are as wide as three columns.
WIDTH, GAP, MARGIN, HEADER, FONT = 600, 12, 28, 58, 19


def panel(cameras: Sequence[np.ndarray], columns: Mapping[str, np.ndarray], mask_XYZ: np.ndarray | None) -> np.ndarray:
    """One picture of a keyframe: six cameras, below them the perspective and bird's-eye view of each column, a legend.

    Args:
        cameras: six RGB uint8 pictures of one size in the order of `CAMERAS`.
        columns: title -> class ids, uint8 on the Occ3D grid; at most three, such as ground truth, teacher, student.
        mask_XYZ: bool, the voxels to show, usually mask_camera; the rest is grey. None: all are.

    Returns:
        RGB uint8.
    """
    blocks = [_camera_block(cameras), _columns_block(columns, mask_XYZ), _legend_block(mask_XYZ is not None)]
    height = sum(block.height for block in blocks) + MARGIN * (len(blocks) + 1)
    canvas = Image.new("RGB", (blocks[0].width + 2 * MARGIN, height), PAPER)
    top = MARGIN
    for block in blocks:
        canvas.paste(block, ((canvas.width - block.width) // 2, top))
        top += block.height + MARGIN
    return np.asarray(canvas)


def _camera_block(cameras: Sequence[np.ndarray]) -> Image.Image:
    """Two rows of three cameras, each with its name."""
    rows, columns = cameras[0].shape[:2]
    size = (WIDTH, round(WIDTH * rows / columns))
    block = Image.new("RGB", (3 * size[0] + 2 * GAP, 2 * size[1] + GAP), PAPER)
    draw = ImageDraw.Draw(block, "RGBA")
    font = ImageFont.load_default(FONT)
    for place, (channel, pixels) in enumerate(zip(CAMERAS, cameras, strict=True)):
        left, top = (place % 3) * (size[0] + GAP), (place // 3) * (size[1] + GAP)
        block.paste(Image.fromarray(np.asarray(pixels)).resize(size, Image.Resampling.LANCZOS), (left, top))
        name = channel.removeprefix("CAM_").replace("_", " ").lower()
        text = (left + 20, top + 15)
        right, bottom = draw.textbbox(text, name, font)[2:]
        draw.rounded_rectangle((left + 10, top + 10, right + 10, bottom + 8), 6, fill=(*INK, 190))
        draw.text(text, name, PAPER, font)
    return block


def _columns_block(columns: Mapping[str, np.ndarray], mask_XYZ: np.ndarray | None) -> Image.Image:
    """Side by side: a title, the perspective view, the bird's-eye view."""
    block = Image.new("RGB", (len(columns) * (WIDTH + GAP) - GAP, HEADER + WIDTH * 2 // 3 + GAP + WIDTH), PAPER)
    draw = ImageDraw.Draw(block)
    for place, (title, semantics_XYZ) in enumerate(columns.items()):
        left = place * (WIDTH + GAP)
        draw.text((left + WIDTH // 2, HEADER // 2), title, INK, ImageFont.load_default(30), anchor="mm")
        view = voxel_image(semantics_XYZ, mask_XYZ, (WIDTH, WIDTH * 2 // 3))
        block.paste(Image.fromarray(view), (left, HEADER))
        view = bev_image(semantics_XYZ, mask_XYZ, WIDTH // GRID.shape[0])
        block.paste(Image.fromarray(view), (left, block.height - WIDTH))
    return block


def _legend_block(masked: bool) -> Image.Image:
    """The colour of every class, in two rows."""
    entries = [
        (name.replace("_", " "), colour)
        for place, (name, colour) in enumerate(zip(CLASSES.names, CLASSES.colours, strict=True))
        if place != CLASSES.free
    ]
    entries += [("not seen", UNSEEN)] if masked else []
    font, swatch, line = ImageFont.load_default(FONT), 32, 34
    per_row = -(-len(entries) // 2)
    widths = [swatch + max(font.getlength(name) for name, _ in entries[place::per_row]) for place in range(per_row)]
    block = Image.new("RGB", (3 * WIDTH + 2 * GAP, 2 * line), PAPER)
    space = (block.width - sum(widths)) / (per_row - 1)
    draw = ImageDraw.Draw(block)
    for place, (name, colour) in enumerate(entries):
        row, column = divmod(place, per_row)
        left, top = round(sum(widths[:column]) + column * space), row * line
        draw.rounded_rectangle((left, top + 6, left + 22, top + 28), 4, fill=colour, outline=LINE)
        draw.text((left + swatch, top + line // 2), name, INK, font, anchor="lm")
    return block


def bev_image(semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None, scale: int) -> np.ndarray:
    """The topmost occupied voxel of each column, brighter the higher it is, with the ego car.

    Args:
        semantics_XYZ: class ids, uint8 on the Occ3D grid.
        mask_XYZ: bool; columns without a voxel in it are grey and voxels outside it are not drawn. None: all are.
        scale: pixels per voxel.

    Returns:
        RGB uint8 (X * scale, Y * scale, 3).
    """
    shown_XYZ = _shown(semantics_XYZ, mask_XYZ)
    height = semantics_XYZ.shape[2]
    top_XY = height - 1 - shown_XYZ[:, :, ::-1].argmax(2)
    class_XY = np.take_along_axis(semantics_XYZ, top_XY[..., None], 2)[..., 0]
    shade_XY = 0.82 + 0.18 * (top_XY / (height - 1)) ** 0.5
    image = CLASSES.palette[class_XY] * shade_XY[..., None]
    image[~shown_XYZ.any(2)] = EMPTY
    if mask_XYZ is not None:
        image[~mask_XYZ.any(2)] = UNSEEN
    # rows run backwards along x, columns backwards along y
    pixels = image[::-1, ::-1].astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    return _with_ego_arrow(pixels, scale)


def _with_ego_arrow(pixels: np.ndarray, scale: int) -> np.ndarray:
    picture = Image.fromarray(pixels)
    metre = scale / GRID.voxel_size
    outline = [(2.6, 0.0), (-1.4, 1.5), (-0.5, 0.0), (-1.4, -1.5)]
    corners = [((GRID.upper[1] - y) * metre, (GRID.upper[0] - x) * metre) for x, y in outline]
    ImageDraw.Draw(picture).polygon(corners, fill=INK, outline=PAPER, width=max(1, scale // 2))
    return np.asarray(picture)


def voxel_image(semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """A perspective view of the coloured voxels from behind and above the ego car.

    Faces are painted from far to near. The distance to a voxel's centre is an exact order: along any ray through a
    regular grid it only grows.

    Args:
        semantics_XYZ: class ids, uint8 on the Occ3D grid.
        mask_XYZ: bool; voxels outside it are not drawn. None: all are.
        size: (width, height) of the picture in pixels.

    Returns:
        RGB uint8 (height, width, 3).
    """
    shown_XYZ = _shown(semantics_XYZ, mask_XYZ)
    quads, colours, distances = zip(
        _ego_quads(), *(_voxel_quads(semantics_XYZ, shown_XYZ, *face) for face in FACES), strict=True
    )
    order_F = np.argsort(-np.concatenate(distances), kind="stable")
    # drawn twice as large and reduced: smooth edges
    canvas = Image.new("RGB", (2 * size[0], 2 * size[1]), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_floor(draw, canvas.size)
    pixels_F42 = _project(np.concatenate(quads)[order_F], canvas.size)
    fills = np.concatenate(colours)[order_F].astype(np.uint8)
    lines = (fills * 0.82).astype(np.uint8)
    for corners, fill, line in zip(pixels_F42.reshape(-1, 8).tolist(), fills.tolist(), lines.tolist(), strict=True):
        draw.polygon(corners, fill=tuple(fill), outline=tuple(line))
    return np.asarray(canvas.resize(size, Image.Resampling.BOX))


def _shown(semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None) -> np.ndarray:
    occupied_XYZ = semantics_XYZ != CLASSES.free
    return occupied_XYZ if mask_XYZ is None else occupied_XYZ & mask_XYZ


def _voxel_quads(
    semantics_XYZ: np.ndarray, shown_XYZ: np.ndarray, axis: int, side: int, shade: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners (F, 4, 3) in metres, colours (F, 3) and distances (F,) of the bare faces turned to the camera."""
    step = 2 * side - 1
    padded_XYZ = np.pad(shown_XYZ, 1)
    neighbour_XYZ = np.roll(padded_XYZ, -step, axis)[1:-1, 1:-1, 1:-1]
    index_F3 = np.argwhere(shown_XYZ & ~neighbour_XYZ)
    faces_camera_F = step * (np.array(EYE) - _metres(index_F3 + 0.5))[:, axis] > 0.5 * GRID.voxel_size
    index_F3 = index_F3[faces_camera_F]
    colours_F3 = CLASSES.palette[semantics_XYZ[tuple(index_F3.T)]] * shade
    colours_F3 *= _openness(padded_XYZ, index_F3)[:, None] if axis == 2 else 1.0
    distances_F = np.linalg.norm(_metres(index_F3 + 0.5) - EYE, axis=1)
    return _metres(index_F3[:, None] + _square(axis, side)), colours_F3, distances_F


def _openness(padded_XYZ: np.ndarray, index_F3: np.ndarray) -> np.ndarray:
    """Ambient light on top faces: 1 in the open, darker beside higher voxels."""
    x, y, z = index_F3.T + 1
    around = sum(padded_XYZ[x + dx, y + dy, z + 1] for dx in (-1, 0, 1) for dy in (-1, 0, 1))
    return 1 - 0.07 * np.minimum(around, 4)


def _square(axis: int, side: int) -> np.ndarray:
    """The corners (4, 3) of one face of the unit cube, in circular order."""
    corners = np.full((4, 3), side)
    corners[:, [other for other in range(3) if other != axis]] = [(0, 0), (0, 1), (1, 1), (1, 0)]
    return corners


def _ego_quads() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ego car's faces turned to the camera, in the form of `_voxel_quads`."""
    quads, colours, distances = [], [], []
    for lower, upper, colour in EGO_CAR:
        size = np.subtract(upper, lower)
        for axis, side, shade in FACES:
            if (2 * side - 1) * (EYE[axis] - (lower, upper)[side][axis]) > 0:
                quads.append(lower + _square(axis, side) * size)
                colours.append(np.multiply(colour, shade))
                distances.append(np.linalg.norm(np.subtract(EYE, np.add(lower, size / 2))))
    return np.array(quads), np.array(colours), np.array(distances)


def _draw_floor(draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    """The bottom of the grid with a line every 10 m."""
    edges = np.linspace(GRID.lower[0], GRID.upper[0], 9)
    low, high, floor = edges[0], edges[-1], GRID.lower[2]

    def pixels(*corners: tuple[float, float]) -> list[float]:
        return _project(np.array([(*corner, floor) for corner in corners]), size).ravel().tolist()

    draw.polygon(pixels((low, low), (high, low), (high, high), (low, high)), fill=EMPTY)
    for edge in edges:
        draw.line(pixels((edge, low), (edge, high)), fill=LINE, width=2)
        draw.line(pixels((low, edge), (high, edge)), fill=LINE, width=2)


def _metres(index: np.ndarray) -> np.ndarray:
    return np.array(GRID.lower) + index * GRID.voxel_size


def _project(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pinhole projection of ego-frame metres (..., 3) to pixels (..., 2)."""
    forward = np.subtract(TARGET, EYE)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    camera = (points - EYE) @ np.stack([right, np.cross(forward, right), forward], axis=1)
    focal = 0.5 * size[1] / np.tan(0.5 * np.radians(FIELD_OF_VIEW))
    return camera[..., :2] / camera[..., 2:] * focal + 0.5 * np.array(size)
