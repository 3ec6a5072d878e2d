"""What a network still sees when something is wrong with its cameras: keyframes made worse in one way at a time.

A corruption changes what the network is given (images as decoded to its input size, calibration) and nothing of what
it is scored against. What is random depends on the seed, the keyframe and the kind of corruption alone: not on the
order of keyframes, on loader workers or ranks. A stronger corruption of a kind draws the same noise, larger.

Letters: N cameras, H W image rows and columns.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from distill.errors import InputError
from distill.frame import Frame

_DROPPED = "dropped "


class Corruption(Protocol):
    """One way to make a keyframe worse."""

    @property
    def name(self) -> str:
        """What was done and how strongly, for a table."""
        ...

    def apply(self, frame: Frame) -> Frame:
        """A worse copy of a frame as loaded, which itself stays as it is."""
        ...


@dataclass(frozen=True)
class DroppedCamera:
    """One camera gives a black image.

    Attributes:
        camera: a name of the rig's.
    """

    camera: str

    @property
    def name(self) -> str:
        """Which camera gives nothing."""
        return f"{_DROPPED}{self.camera}"

    def apply(self, frame: Frame) -> Frame:
        """A copy in which that camera's image is black."""
        images_N3HW = frame.images.copy()
        images_N3HW[frame.channels.index(self.camera)] = 0
        return replace(frame, images=images_N3HW)


@dataclass(frozen=True)
class Blur:
    """Every image is out of focus: a Gaussian blur (Pillow's, three box filters in a row).

    Attributes:
        sigma: standard deviation in thousandths of the image width, so that it does not depend on the input size.

    Raises:
        InputError: sigma is not positive.
    """

    sigma: float

    def __post_init__(self) -> None:
        _check_positive("Blur.sigma", self.sigma)

    @property
    def name(self) -> str:
        """How far the images are out of focus."""
        return f"blur, sigma {self.sigma:g}/1000 of the width"

    def apply(self, frame: Frame) -> Frame:
        """A copy with blurred images."""
        blur = ImageFilter.GaussianBlur(self.sigma / 1000 * frame.images.shape[-1])
        images = [np.asarray(image.filter(blur)) for image in _pictures(frame.images)]
        return replace(frame, images=np.stack(images).transpose(0, 3, 1, 2))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, independent in every pixel and channel of the network's input.

    Attributes:
        sigma: standard deviation, grey levels of 255.
        seed: see the module.

    Raises:
        InputError: sigma is not positive.
    """

    sigma: float
    seed: int

    def __post_init__(self) -> None:
        _check_positive("Noise.sigma", self.sigma)

    @property
    def name(self) -> str:
        """How strong the noise is."""
        return f"noise, sigma {self.sigma:g} grey levels"

    def apply(self, frame: Frame) -> Frame:
        """A copy whose images are noisy."""
        images_N3HW = frame.images
        noise_N3HW = _random(self, self.seed, frame).standard_normal(images_N3HW.shape, dtype=np.float32)
        return replace(frame, images=_grey_levels(images_N3HW + np.float32(self.sigma) * noise_N3HW))


@dataclass(frozen=True)
class Brightness:
    """Every image is darker or brighter; what gets brighter than white is white.

    Attributes:
        factor: of all grey levels; below 1 darker, above 1 brighter.

    Raises:
        InputError: the factor is not positive.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_positive("Brightness.factor", self.factor)

    @property
    def name(self) -> str:
        """By what the grey levels are multiplied."""
        return f"{'darker' if self.factor < 1 else 'brighter'}, grey levels x {self.factor:g}"

    def apply(self, frame: Frame) -> Frame:
        """A copy with darker or brighter images."""
        table = _grey_levels(self.factor * np.arange(256))
        return replace(frame, images=table[frame.images])


@dataclass(frozen=True)
class Jpeg:
    """Every image is compressed, at the size the network gets it in.

    Attributes:
        quality: of libjpeg, 1 (worst) to 100.

    Raises:
        InputError: the quality is out of its range.
    """

    quality: int

    def __post_init__(self) -> None:
        if not isinstance(self.quality, int) or not 1 <= self.quality <= 100:
            raise InputError(f"robustness: Jpeg.quality={self.quality} must be a whole number from 1 to 100")

    @property
    def name(self) -> str:
        """How strongly the images are compressed."""
        return f"JPEG, quality {self.quality}"

    def apply(self, frame: Frame) -> Frame:
        """A copy whose images have been JPEG files."""
        images = [np.asarray(self._compressed(image)) for image in _pictures(frame.images)]
        return replace(frame, images=np.stack(images).transpose(0, 3, 1, 2))

    def _compressed(self, image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "jpeg", quality=self.quality)
        return Image.open(file)


@dataclass(frozen=True)
class TurnedCameras:
    """Every camera looks elsewhere than its calibration says: it is turned about its own centre.

    The rotation vector, in the axes of the camera, is Gaussian.

    Attributes:
        degrees: standard deviation of the angle about each axis.
        seed: see the module.

    Raises:
        InputError: the angle is not positive.
    """

    degrees: float
    seed: int

    def __post_init__(self) -> None:
        _check_positive("TurnedCameras.degrees", self.degrees)

    @property
    def name(self) -> str:
        """How far the calibration is turned."""
        return f"calibration turned, sigma {self.degrees:g} degrees"

    def apply(self, frame: Frame) -> Frame:
        """A copy whose calibration turns every camera by an angle it does not have."""
        cam2ego_N44 = frame.cam2ego.copy()
        vectors_N3 = _random(self, self.seed, frame).normal(0, math.radians(self.degrees), (len(cam2ego_N44), 3))
        cam2ego_N44[:, :3, :3] = cam2ego_N44[:, :3, :3] @ rotations(vectors_N3)
        return frame.with_cameras_at(cam2ego_N44)


@dataclass(frozen=True)
class MovedCameras:
    """Every camera sits elsewhere than its calibration says; its direction is right.

    Attributes:
        centimetres: standard deviation along each axis.
        seed: see the module.

    Raises:
        InputError: the distance is not positive.
    """

    centimetres: float
    seed: int

    def __post_init__(self) -> None:
        _check_positive("MovedCameras.centimetres", self.centimetres)

    @property
    def name(self) -> str:
        """How far the calibration is moved."""
        return f"calibration moved, sigma {self.centimetres:g} cm"

    def apply(self, frame: Frame) -> Frame:
        """A copy whose calibration moves every camera to where it is not."""
        cam2ego_N44 = frame.cam2ego.copy()
        metres_N3 = _random(self, self.seed, frame).normal(0, self.centimetres / 100, (len(cam2ego_N44), 3))
        cam2ego_N44[:, :3, 3] += metres_N3.astype(cam2ego_N44.dtype)
        return frame.with_cameras_at(cam2ego_N44)


class CorruptedFrames(Dataset[Frame]):
    """`frames`, each made worse by `corruption` where it is loaded."""

    def __init__(self, frames: Dataset[Frame], corruption: Corruption) -> None:
        self.frames, self.corruption = frames, corruption

    def __len__(self) -> int:
        return len(self.frames)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Frame:
        frame = self.corruption.apply(self.frames[index])
        return replace(frame, past=frame.past and tuple(map(self.corruption.apply, frame.past)))


def corruptions(config: DictConfig, channels: Sequence[str]) -> list[Corruption]:
    """The corruptions described in the group `robustness`, in its order.

    Args:
        config: the group.
        channels: names of the cameras there are.

    Raises:
        InputError: two of them are the same, or one drops a camera that there is not.
    """
    found: dict[str, Corruption] = {}
    for key, corruption in instantiate(config, _convert_="all").items():
        if corruption.name in found:
            raise InputError(f"robustness.{key}: {corruption.name!r} is there already: give it another strength")
        if isinstance(corruption, DroppedCamera) and corruption.camera not in channels:
            raise InputError(f"robustness.{key}: no camera {corruption.camera}: choose from {', '.join(channels)}")
        found[corruption.name] = corruption
    return list(found.values())


def with_worst(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table, and behind the dropped cameras the one that is missed most, by mIoU.

    Args:
        rows: `condition` (the corruption's name), `miou` (None where nothing was counted) and other scores.
    """
    dropped = [row for row in rows if row["condition"].startswith(_DROPPED) and row["miou"] is not None]
    if not dropped:
        return list(rows)
    worst = min(dropped, key=lambda row: row["miou"]) | {"condition": "worst dropped camera"}
    behind = 1 + max(i for i, row in enumerate(rows) if row["condition"].startswith(_DROPPED))
    return [*rows[:behind], worst, *rows[behind:]]


def rotations(vectors_N3: np.ndarray) -> np.ndarray:
    """Rotation vectors, radians, to matrices (N, 3, 3), float64: exp of the skew matrix (Rodrigues' formula)."""
    angles_N11 = np.linalg.norm(vectors_N3, axis=1)[:, None, None]
    skew_N33 = np.zeros((len(vectors_N3), 3, 3))
    x, y, z = vectors_N3.T
    skew_N33[:, 2, 1], skew_N33[:, 0, 2], skew_N33[:, 1, 0] = x, y, z
    skew_N33 -= skew_N33.transpose(0, 2, 1)
    # sin(a) / a and (1 - cos(a)) / a^2, which are exact at a = 0 too when written by NumPy's sinc(a / pi) = sin(a) / a
    first_N11, second_N11 = np.sinc(angles_N11 / np.pi), np.sinc(angles_N11 / (2 * np.pi)) ** 2 / 2
    return np.eye(3) + first_N11 * skew_N33 + second_N11 * (skew_N33 @ skew_N33)


def _random(corruption: Corruption, seed: int, frame: Frame) -> np.random.Generator:
    key = f"{type(corruption).__name__} {frame.token}".encode()
    return np.random.default_rng((seed, int.from_bytes(hashlib.sha256(key).digest())))


def _pictures(images_N3HW: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image_HW3) for image_HW3 in images_N3HW.transpose(0, 2, 3, 1)]


def _grey_levels(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _check_positive(name: str, value: float) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise InputError(f"robustness: {name}={value} must be a number above 0")
