"""The layout of a panel: cameras, below them two views of each column of voxels or Gaussians, and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distill.classes import ClassSet
from distill.gaussians import Gaussians
from distill.pictures.gaussians import draw_gaussians
from distill.pictures.view import EMPTY, INK, LINE, PAPER, UNSEEN
from distill.pictures.voxels import Painter

# pixels; a camera is as wide as a column
WIDTH, GAP, MARGIN, HEADER, FONT = 600, 12, 28, 58, 19
PERSPECTIVE = (WIDTH, WIDTH * 2 // 3)  # of the perspective view


def draw_panel(
    painter: Painter,
    cameras: Mapping[str, np.ndarray],
    columns: Mapping[str, np.ndarray],
    mask_XYZ: np.ndarray | None,
    gaussians: tuple[Gaussians, np.ndarray] | None = None,
) -> np.ndarray:
    """One picture of a keyframe: its cameras, below them perspective and bird's-eye view of each column, a legend.

    Args:
        painter: of the grid and class set of `columns`.
        cameras: channel -> RGB uint8 pictures of one size, three in a row.
        columns: title -> class ids, uint8 on the grid, such as ground truth, teacher, student; any number.
        mask_XYZ: bool, the voxels to show, usually mask_camera; the rest is grey. None: all are.
        gaussians: one more column, and the pose (4, 4) that brings LIDAR_TOP metres into the frame of the grid.

    Returns:
        RGB uint8.
    """
    views = {title: _voxel_views(painter, semantics_XYZ, mask_XYZ) for title, semantics_XYZ in columns.items()}
    if gaussians is not None:
        views["Gaussians"] = _gaussian_views(painter, *gaussians)
    blocks = [_camera_block(cameras), _columns_block(views), _legend_block(painter.classes, mask_XYZ is not None)]
    height = sum(block.height for block in blocks) + MARGIN * (len(blocks) + 1)
    width = max(block.width for block in blocks) + 2 * MARGIN
    canvas = Image.new("RGB", (width, height), PAPER)
    top = MARGIN
    for block in blocks:
        canvas.paste(block, ((canvas.width - block.width) // 2, top))
        top += block.height + MARGIN
    return np.asarray(canvas)


def _voxel_views(painter: Painter, semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None) -> list[np.ndarray]:
    """Perspective and bird's-eye view of voxels."""
    scale = WIDTH // painter.view.grid.shape[0]
    return [
        painter.perspective_image(semantics_XYZ, mask_XYZ, PERSPECTIVE),
        painter.bev_image(semantics_XYZ, mask_XYZ, scale),
    ]


def _gaussian_views(painter: Painter, gaussians: Gaussians, lidar2grid: np.ndarray) -> list[np.ndarray]:
    """Perspective and bird's-eye view of Gaussians."""
    view, classes = painter.view, painter.classes
    lidar2view = view.turn() @ lidar2grid
    floor = np.asarray(view.floor(PERSPECTIVE))
    perspective = draw_gaussians(floor, gaussians, view.perspective(PERSPECTIVE) @ lidar2view, classes)
    paper = np.full((WIDTH, WIDTH, 3), EMPTY, dtype=np.uint8)
    bev = draw_gaussians(paper, gaussians, view.above(WIDTH) @ lidar2view, classes, perspective=False)
    return [perspective, view.with_ego_arrow(bev, WIDTH // view.grid.shape[0])]


def _camera_block(cameras: Mapping[str, np.ndarray]) -> Image.Image:
    """Rows of three cameras, each with its name."""
    rows, columns = next(iter(cameras.values())).shape[:2]
    lines = -(-len(cameras) // 3)
    size = (WIDTH, round(WIDTH * rows / columns))
    block = Image.new("RGB", (3 * size[0] + 2 * GAP, lines * (size[1] + GAP) - GAP), PAPER)
    draw = ImageDraw.Draw(block, "RGBA")
    font = ImageFont.load_default(FONT)
    for place, (channel, pixels) in enumerate(cameras.items()):
        left, top = (place % 3) * (size[0] + GAP), (place // 3) * (size[1] + GAP)
        block.paste(Image.fromarray(np.asarray(pixels)).resize(size, Image.Resampling.LANCZOS), (left, top))
        name = channel.removeprefix("CAM_").replace("_", " ").lower()
        text = (left + 20, top + 15)
        right, bottom = draw.textbbox(text, name, font)[2:]
        draw.rounded_rectangle((left + 10, top + 10, right + 10, bottom + 8), 6, fill=(*INK, 190))
        draw.text(text, name, PAPER, font)
    return block


def _columns_block(views: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """Side by side: a title, the perspective view, the bird's-eye view."""
    block = Image.new("RGB", (len(views) * (WIDTH + GAP) - GAP, HEADER + PERSPECTIVE[1] + GAP + WIDTH), PAPER)
    draw = ImageDraw.Draw(block)
    for place, (title, (perspective, bev)) in enumerate(views.items()):
        left = place * (WIDTH + GAP)
        draw.text((left + WIDTH // 2, HEADER // 2), title, INK, ImageFont.load_default(30), anchor="mm")
        block.paste(Image.fromarray(perspective), (left, HEADER))
        block.paste(Image.fromarray(bev), (left, block.height - WIDTH))
    return block


def _legend_block(classes: ClassSet, masked: bool) -> Image.Image:
    """The colour of every class, in two rows."""
    entries = [
        (name.replace("_", " "), colour)
        for place, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True))
        if place != classes.free
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
