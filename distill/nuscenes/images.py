"""Camera images decoded straight to the network's input size, and the intrinsics that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL import ExifTags, Image, ImageEnhance, ImageFile

from distill.augment import ImageTransform
from distill.errors import InputError
from distill.nuscenes.keyframe import Camera, Keyframe

# Pillow's modes of 8 bits a channel whose conversion to RGB is beyond doubt
_MODES = frozenset({"RGB", "L", "P", "RGBA", "LA", "PA", "RGBX", "CMYK", "YCbCr"})


def read_images(
    keyframe: Keyframe, transforms: Sequence[ImageTransform], image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images of a keyframe, their intrinsics and where they show anything; of absent cameras black images.

    Args:
        keyframe: whose images.
        transforms: one per camera.
        image_size: (H, W) of the result.

    Returns:
        images: RGB uint8 (N, 3, H, W), in the order of the keyframe's cameras.
        intrinsics: float32 (N, 3, 3) after the transform; a mirrored image has a negative focal length fx.
        shown: bool (N, H, W), which pixels show what the camera saw; the others are black.

    Raises:
        InputError: an image is missing, cannot be decoded, is not of the size the calibration is for, not of 8 bits a
            channel without transparency, or turned by its EXIF orientation.
    """
    height, width = image_size
    images = np.zeros((len(keyframe.cameras), 3, height, width), dtype=np.uint8)
    intrinsics = np.empty((len(keyframe.cameras), 3, 3), dtype=np.float32)
    shown = np.zeros((len(keyframe.cameras), height, width), dtype=bool)
    for i, (camera, transform) in enumerate(zip(keyframe.cameras, transforms, strict=True)):
        intrinsics[i] = transform.matrix(image_size) @ camera.intrinsics
        if camera.path is None:
            continue
        window = transform.window((camera.height, camera.width), image_size)
        image = open_image(camera, keyframe.token, 1.0 if transform.bicubic else transform.scale)
        images[i] = np.asarray(_transformed(image, camera, transform, window, image_size)).transpose(2, 0, 1)
        shown[i] = _shown(transform, window, image_size)
    return images, intrinsics, shown


def open_image(camera: Camera, token: str, scale: float) -> Image.Image:
    """The RGB image of a camera, decoded no larger than `scale` needs: libjpeg skips the DCT of finer scales.

    Args:
        camera: whose image; black if it is absent.
        token: of its keyframe, for messages.
        scale: pixels that are needed per pixel of the file.

    Raises:
        InputError: as in `read_images`.
    """
    size = (ceil(scale * camera.width), ceil(scale * camera.height))
    if camera.path is None:
        return Image.new("RGB", size)
    named = f"{camera.path}: image of keyframe {token}"
    try:
        with Image.open(camera.path) as image:
            if image.size != (camera.width, camera.height):
                raise InputError(
                    f"{camera.path}: {image.width}x{image.height} pixels, but keyframe {token} is calibrated for "
                    f"{camera.width}x{camera.height}: put the original file back"
                )
            kind = _kind(image)
            if kind not in _MODES:
                raise InputError(f"{named} is of kind {kind}, not 8 bits a channel: convert it to 8-bit RGB")
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1
            if turned != 1:  # OpenCV turns it, Pillow does not, and the calibration fits one of the two
                raise InputError(
                    f"{named} is to be turned (EXIF orientation {turned}), and nothing says whether the calibration is "
                    "for that: save it as it was calibrated, without the tag"
                )
            image.draft("RGB", size)
            image.load()
            if image.has_transparency_data and len(set(image.convert("RGBA").getchannel("A").getextrema())) > 1:
                raise InputError(f"{named} is transparent in places, which has no meaning here: convert it to RGB")
            return image if image.mode == "RGB" else image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"{named} is missing") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's for damaged files
        raise InputError(f"{named} cannot be decoded ({error})") from error


def _kind(image: ImageFile.ImageFile) -> str:
    """Pillow's mode of the file; of a deeper one that Pillow would cut to its upper 8 bits, how it is stored."""
    stored = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in image.tile]
    return next((str(part) for args in stored for part in args if ";16" in str(part)), image.mode)


def _transformed(
    image: Image.Image,
    camera: Camera,
    transform: ImageTransform,
    window: tuple[int, int, int, int],
    image_size: tuple[int, int],
) -> Image.Image:
    """Resize (antialiased) and crop, mirror, turn, recolour."""
    left, top, right, bottom = window
    height, width = image_size
    in_source = np.sort((np.linalg.inv(transform.upright(width)) @ [[left, right], [top, bottom], [1, 1]])[:2])
    if transform.bicubic:
        image = image.resize(transform.scaled((camera.height, camera.width))[::-1], Image.Resampling.BICUBIC)
        image = image.crop(tuple(np.rint(transform.scale * in_source).astype(int).T.ravel().tolist()))
    else:
        # Decoded columns per source column. Rounded up by libjpeg: 113 rows of 900/8 hold 112.5 rows of content.
        drafted = 2.0 ** -round(np.log2(camera.width / image.width))
        box = (drafted * in_source).clip(0, [[image.width], [image.height]]).T.ravel()
        image = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=tuple(box.tolist()))
    if transform.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if image.size != (width, height):
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image, (left, top))
        image = canvas
    image = image.rotate(transform.rotation)
    for enhance, factor in (
        (ImageEnhance.Brightness, transform.brightness),
        (ImageEnhance.Contrast, transform.contrast),
        (ImageEnhance.Color, transform.saturation),
    ):
        if factor != 1.0:
            image = enhance(image).enhance(factor)
    return image


def _shown(transform: ImageTransform, window: tuple[int, int, int, int], image_size: tuple[int, int]) -> np.ndarray:
    """Which pixels of the result show anything, bool (H, W)."""
    left, top, right, bottom = window
    upright = np.zeros(image_size, dtype=np.uint8)
    upright[top:bottom, left:right] = 1
    return np.asarray(Image.fromarray(upright).rotate(transform.rotation)) > 0
