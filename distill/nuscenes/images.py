"""Camera images decoded straight to the network's input size, and the intrinsics that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import numpy as np
from PIL import Image, ImageEnhance

from distill.augment import ImageTransform
from distill.errors import InputError
from distill.nuscenes.index import Camera, Keyframe


def read_images(
    keyframe: Keyframe, transforms: Sequence[ImageTransform], image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The six images of a keyframe and their intrinsics.

    Args:
        keyframe: whose images.
        transforms: one per camera.
        image_size: (H, W) of the result.

    Returns:
        RGB uint8 (6, 3, H, W) and intrinsics float32 (6, 3, 3) after the transform. A mirrored image has a negative
        focal length fx.

    Raises:
        InputError: an image is missing, cannot be decoded, or is not of the size the calibration is for.
    """
    height, width = image_size
    images = np.empty((len(keyframe.cameras), 3, height, width), dtype=np.uint8)
    intrinsics = np.empty((len(keyframe.cameras), 3, 3), dtype=np.float32)
    for i, (camera, transform) in enumerate(zip(keyframe.cameras, transforms, strict=True)):
        image = _transformed(_decode(camera, keyframe.token, transform.scale), camera, transform, image_size)
        images[i] = np.asarray(image).transpose(2, 0, 1)
        intrinsics[i] = transform.matrix(width) @ camera.intrinsics
    return images, intrinsics


def _decode(camera: Camera, token: str, scale: float) -> Image.Image:
    """The image, decoded no larger than `scale` needs: libjpeg skips the DCT coefficients of a finer scale."""
    try:
        image = Image.open(camera.path)
        if image.size != (camera.width, camera.height):
            raise InputError(
                f"{camera.path}: {image.width}x{image.height} pixels, but keyframe {token} is calibrated for "
                f"{camera.width}x{camera.height}: put the original file back"
            )
        image.draft("RGB", (ceil(scale * camera.width), ceil(scale * camera.height)))
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"{camera.path}: image of keyframe {token} is missing") from error
    except (OSError, SyntaxError) as error:  # Pillow's exceptions for damaged files
        raise InputError(f"{camera.path}: image of keyframe {token} cannot be decoded ({error})") from error


def _transformed(
    image: Image.Image, camera: Camera, transform: ImageTransform, image_size: tuple[int, int]
) -> Image.Image:
    """Resize (antialiased bilinear) and crop in one step, mirror, recolour."""
    (x, y), scale, (height, width) = transform.offset, transform.scale, image_size
    # The pixels of the result that lie wholly inside the scaled image: [left, right) x [top, bottom).
    left, right = max(0, ceil(-x)), min(width, floor(scale * camera.width - x + 1e-6))
    top, bottom = max(0, ceil(-y)), min(height, floor(scale * camera.height - y + 1e-6))
    # Decoded columns per source column. Rounded up by libjpeg: 113 rows of 900/8 hold 112.5 rows of content.
    drafted = 2.0 ** -round(np.log2(camera.width / image.width))
    box = [drafted / scale * edge for edge in (left + x, top + y, right + x, bottom + y)]
    box = np.clip(box, 0, [image.width, image.height] * 2).tolist()
    image = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=tuple(box))
    if image.size != (width, height):
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image, (left, top))
        image = canvas
    if transform.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance, factor in (
        (ImageEnhance.Brightness, transform.brightness),
        (ImageEnhance.Contrast, transform.contrast),
        (ImageEnhance.Color, transform.saturation),
    ):
        if factor != 1.0:
            image = enhance(image).enhance(factor)
    return image
