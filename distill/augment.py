"""One augmentation for everything a frame carries: images, calibration, points, labels, masks and teachers.

A `Transform` has two halves. Image half: every camera image is scaled, shifted, mirrored, turned and recoloured; its
intrinsics follow, and nothing in the 3D world changes. World half: the ego frame is mirrored along x and/or y; all that
lives in it follows, and no pixel changes. Both mirror the Occ3D range symmetrically, so voxels map onto voxels.

Distilling is only valid when teacher and student see the same world: a field of a frame that does not say how it
moves cannot be defined (`distill.frame`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

import numpy as np

from distill.errors import InputError
from distill.frame import Mirror


@dataclass(frozen=True)
class ImageTransform:
    """How one camera image becomes a network input: u' = scale * u - offset, then mirrored, turned and recoloured.

    Pixel coordinates are continuous: column j spans [j, j + 1). Area outside the source image is black.

    Attributes:
        scale: pixels of the result per pixel of the source.
        offset: (x, y) of the crop's upper left corner in the scaled image, pixels.
        flip: mirror the result left to right.
        rotation: turn it about its middle, degrees counter-clockwise, to the nearest pixels as FlashOcc does.
        brightness, contrast, saturation: enhancement factors, 1 = unchanged.
        bicubic: resize the whole image to whole pixels with a bicubic filter and crop it; otherwise decode it no larger
            than needed and resize the crop with a bilinear one, which is several times as fast.
    """

    scale: float
    offset: tuple[float, float]
    flip: bool
    rotation: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    bicubic: bool = False

    @classmethod
    def fit(cls, source_size: tuple[int, int], image_size: tuple[int, int]) -> ImageTransform:
        """No randomness: the source fills the width, its upper rows are cut off (FlashOcc, docs/formulas.md 5.1).

        Args:
            source_size: (height, width) of the file.
            image_size: (height, width) of the network input.
        """
        (source_height, source_width), (height, width) = source_size, image_size
        scale = width / source_width
        return cls(scale, (0.0, scale * source_height - height), flip=False)

    @classmethod
    def cover(cls, source_size: tuple[int, int], image_size: tuple[int, int]) -> ImageTransform:
        """What GaussianFormer does at test time (docs/formulas.md 8.1): the source covers the input, bicubic.

        Whole rows are cut off at the top, whole columns at both sides. Arguments as for `fit`.
        """
        (source_height, source_width), (height, width) = source_size, image_size
        scale = max(height / source_height, width / source_width)
        covering = cls(scale, (0.0, 0.0), flip=False, bicubic=True)
        rows, columns = covering.scaled(source_size)
        return replace(covering, offset=((columns - width) // 2, rows - height))

    def scaled(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the whole scaled image, without broken pixels."""
        height, width = (floor(self.scale * side + 1e-6) for side in source_size)
        return height, width

    def matrix(self, image_size: tuple[int, int]) -> np.ndarray:
        """Source pixels to pixels of the result of this (height, width), homogeneous, float64 (3, 3)."""
        (height, width), angle = image_size, np.radians(self.rotation)
        (x, y), (c, s) = (width / 2, height / 2), (np.cos(angle), np.sin(angle))
        turn = np.array([[c, s, x - c * x - s * y], [-s, c, y + s * x - c * y], [0.0, 0.0, 1.0]])
        return turn @ self.upright(width)

    def upright(self, width: int) -> np.ndarray:
        """`matrix` without the rotation."""
        (x, y), s = self.offset, self.scale
        crop = np.array([[s, 0.0, -x], [0.0, s, -y], [0.0, 0.0, 1.0]])
        mirror = np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        return mirror @ crop if self.flip else crop

    def window(self, source_size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The pixels that lie wholly in the source, before the rotation: left, top, right, bottom (exclusive)."""
        (source_height, source_width), (height, width), (x, y) = source_size, image_size, self.offset
        # An edge that only rounding keeps off a whole pixel counts as on it.
        left, right = ceil(-x - 1e-6), floor(self.scale * source_width - x + 1e-6)
        top, bottom = ceil(-y - 1e-6), floor(self.scale * source_height - y + 1e-6)
        if self.flip:
            left, right = width - right, width - left
        return max(0, left), max(0, top), min(width, right), min(height, bottom)


@dataclass(frozen=True)
class Transform:
    """What happens to one frame.

    Attributes:
        images: one per camera, applied where the images are decoded (`distill.nuscenes.images`).
        mirror: of the world, applied once the frame is complete (`Frame.mirrored`).
    """

    images: tuple[ImageTransform, ...]
    mirror: Mirror = Mirror()

    @classmethod
    def fit(
        cls, source_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int], bicubic: bool = False
    ) -> Transform:
        """No randomness: `ImageTransform.fit`, or `.cover` if bicubic, for every camera, the world as it is."""
        place = ImageTransform.cover if bicubic else ImageTransform.fit
        return cls(tuple(place(size, image_size) for size in source_sizes))


@dataclass(frozen=True)
class Augmentation:
    """The distribution `Transform`s are drawn from.

    Attributes:
        resize: (low, high) of the image scale, relative to the one that fits the width. FlashOcc's
            0.44 + U(-0.06, 0.11) at 1600 -> 704 pixels is (0.864, 1.25). The crop keeps the lowest rows; where it lies
            horizontally is uniform.
        image_flip: probability of mirroring an image, drawn per camera.
        rotation: images are turned by up to so many degrees either way, uniform, per camera; FlashOcc's is 5.4.
        colour: brightness, contrast and saturation factors are uniform in [1 - colour, 1 + colour], per camera.
        bev_flip: probability of mirroring the world, drawn for x and y separately.

    Raises:
        InputError: a value outside its range.
    """

    resize: tuple[float, float]
    image_flip: float
    rotation: float
    colour: float
    bev_flip: float

    def __post_init__(self) -> None:
        if len(self.resize) != 2 or not 0 < self.resize[0] <= self.resize[1]:
            raise InputError(f"augmentation resize={list(self.resize)} must be [low, high] with 0 < low <= high")
        for name in ("image_flip", "bev_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation {name}={getattr(self, name)} must be a probability in [0, 1]")
        if not 0 <= self.rotation < 90:
            raise InputError(f"augmentation rotation={self.rotation} must be degrees in [0, 90)")
        if not 0 <= self.colour < 1:
            raise InputError(f"augmentation colour={self.colour} must be in [0, 1)")

    def draw(
        self, rng: np.random.Generator, source_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int]
    ) -> Transform:
        """One random transform for a frame.

        Args:
            rng: the only source of randomness.
            source_sizes: (height, width) of every camera's file.
            image_size: (height, width) of the network input.
        """
        flip_x, flip_y = rng.random(2) < self.bev_flip
        upright = [self._draw_image(rng, size, image_size) for size in source_sizes]
        degrees = rng.uniform(-self.rotation, self.rotation, len(upright)).tolist()
        images = tuple(replace(image, rotation=angle) for image, angle in zip(upright, degrees, strict=True))
        return Transform(images, Mirror(x=bool(flip_x), y=bool(flip_y)))

    def _draw_image(
        self, rng: np.random.Generator, source_size: tuple[int, int], image_size: tuple[int, int]
    ) -> ImageTransform:
        (source_height, source_width), (height, width) = source_size, image_size
        scale = width / source_width * rng.uniform(*self.resize)
        spare = scale * source_width - width  # negative: the image is narrower than the input and floats in it
        offset = (rng.uniform(min(spare, 0.0), max(spare, 0.0)), scale * source_height - height)
        flip = bool(rng.random() < self.image_flip)
        brightness, contrast, saturation = rng.uniform(1 - self.colour, 1 + self.colour, size=3)
        return ImageTransform(scale, offset, flip, 0.0, float(brightness), float(contrast), float(saturation))
