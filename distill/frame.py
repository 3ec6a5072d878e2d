"""What is known about one keyframe, typed: every field declares its geometry once, and all that moves frames obeys it.

A frame as loaded holds NumPy arrays; a batch of frames is a frame, too, whose fields hold tensors with a leading axis
(or lists, where the parts differ in size). `stack`, `to` and `mirrored` walk the fields, so that nothing can stay
behind: a record with a field of no declared geometry cannot be defined.

Letters: B batch, N cameras, H W image rows and columns, P points, R rays, X Y Z voxel axes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError

# a NumPy array in a frame as loaded, a tensor (or a list of them) in a batch; None: it was not asked for
Array: TypeAlias = Any


@dataclass(frozen=True)
class Mirror:
    """A mirrored world: the ego frame with x -> -x and/or y -> -y."""

    x: bool = False
    y: bool = False

    def signs_4(self, like: Array) -> Array:
        """What it does to homogeneous coordinates, or to x, y, z and intensity; of the kind and device of `like`."""
        signs = [-1 if self.x else 1, -1 if self.y else 1, 1, 1]
        return like.new_tensor(signs) if isinstance(like, Tensor) else np.array(signs, like.dtype)


@dataclass(frozen=True)
class Geometry:
    """How a field behaves.

    Attributes:
        name: in words.
        mirrored: (value, mirror, first axis of the frame: 1 in a batch) -> the value in the mirrored world.
        stacked: values of several frames -> that of their batch.
    """

    name: str
    mirrored: Callable[[Any, Mirror, int], Any]
    stacked: Callable[[list[Any]], Any]


def _stays(value: Any, mirror: Mirror, first: int) -> Any:
    return value


def _flipped(value: Array, mirror: Mirror, first: int) -> Array:
    axes = [first + axis for axis, flips in enumerate((mirror.x, mirror.y)) if flips]
    return value.flip(axes) if isinstance(value, Tensor) else np.flip(value, axes)


def _planes_flipped(value: Array, mirror: Mirror, first: int) -> Array:
    return _flipped(value, mirror, first + 1)


def _placed(value: Array, mirror: Mirror, first: int) -> Array:
    return mirror.signs_4(value)[:, None] * value  # sensors stay as recorded, the frame they are placed in is mirrored


def _conjugated(value: Array, mirror: Mirror, first: int) -> Array:
    signs_4 = mirror.signs_4(value)
    return signs_4[:, None] * value * signs_4


def _scattered(value: Array, mirror: Mirror, first: int) -> Array:
    if isinstance(value, list):
        return [_scattered(points, mirror, first) for points in value]
    return value * mirror.signs_4(value)


def _aimed(value: Array, mirror: Mirror, first: int) -> Array:
    if isinstance(value, list):
        return [_aimed(rays, mirror, first) for rays in value]
    signs = mirror.signs_4(value)[:3].tolist()
    factors = [*signs, *signs, 1, 1]
    return value * (value.new_tensor(factors) if isinstance(value, Tensor) else np.array(factors, value.dtype))


def _nested(value: Any, mirror: Mirror, first: int) -> Any:
    return _each_record(value, lambda record: record._moved(mirror, first))


def _tensor(values: list[Any]) -> Any:
    return values if isinstance(values[0], str | tuple) else torch.from_numpy(np.stack(values))


def _padded(values: list[Any]) -> Any:
    batch = np.zeros((len(values), max(map(len, values)), *values[0].shape[1:]), values[0].dtype)
    for one, value in zip(batch, values, strict=True):
        one[: len(value)] = value
    return torch.from_numpy(batch)


def _tensors(values: list[Any]) -> list[Any]:
    return [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in values]


def _stacked_records(values: list[Any]) -> Any:
    if isinstance(values[0], Mapping):
        _check_alike([list(value) for value in values])
        return {name: stack([value[name] for value in values]) for name in values[0]}
    return tuple(map(stack, zip(*values, strict=True)))


FACT = Geometry("a fact, the same in every world", _stays, _tensor)
FACTS = Geometry("more facts or fewer, filled up with zeros, (K, ...)", _stays, _padded)
PER_IMAGE = Geometry("what the cameras see, (N, ...)", _stays, _tensor)
POSE = Geometry("sensor to ego frame, (..., 4, 4)", _placed, _tensor)
MOTION = Geometry("one ego frame to another, (..., 4, 4)", _conjugated, _tensor)
GRID = Geometry("an array over the ego frame, (X, Y, ...)", _flipped, _tensor)
PLANES = Geometry("arrays over the ego frame, filled up with zeros, (K, X, Y, ...)", _planes_flipped, _padded)
POINTS = Geometry("x, y, z, intensity in the ego frame, (P, 4)", _scattered, _tensors)
RAYS = Geometry("origin, direction, and two facts, in the ego frame, (R, 8)", _aimed, _tensors)
IN_SENSOR = Geometry("what lies in the frame of a sensor, whose pose moves", _stays, _tensors)
RECORDS = Geometry("further records, in a dict or a tuple", _nested, _stacked_records)
RECORD = Geometry("one further record", lambda value, mirror, first: value._moved(mirror, first), lambda v: stack(v))


def declared(geometry: Geometry, default: Any = None) -> Any:
    """A field of a `Record`."""
    return field(default=default, metadata={"geometry": geometry}, kw_only=True)


class Record:
    """A frozen dataclass all of whose fields are `declared`.

    Raises:
        TypeError: where it is defined: a field is not.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls, **_: Any) -> None:
        for name, kind in inspect.get_annotations(cls).items():
            value = cls.__dict__.get(name)
            if "ClassVar" not in str(kind) and not (isinstance(value, Field) and "geometry" in value.metadata):
                raise TypeError(f"{cls.__name__}.{name} declares no geometry: write {name}: ... = declared(GEOMETRY)")

    @property
    def is_batch(self) -> bool:
        """Whether this is a batch."""
        return any(isinstance(value, Tensor | list) for _, value in self._present())

    def mirrored(self, mirror: Mirror) -> Self:
        """The same in a mirrored world; arrays on grids are views of the old ones where they can be."""
        return self._moved(mirror, 1 if self.is_batch else 0) if mirror.x or mirror.y else self

    def _moved(self, mirror: Mirror, first: int) -> Self:
        return self._changed(lambda geometry, value: geometry.mirrored(value, mirror, first))

    def to(self, device: torch.device) -> Self:
        """The batch on `device`; copies from pinned memory do not block."""
        return self._changed(lambda _, value: _each_leaf(value, lambda leaf: _on(leaf, device)))

    def pin_memory(self) -> Self:
        """The batch in memory from which copies to a GPU do not block; called by PyTorch's loader."""
        return self._changed(lambda _, value: _each_leaf(value, _pinned))

    def _present(self) -> list[tuple[Field[Any], Any]]:
        values = [(each, getattr(self, each.name)) for each in fields(self)]
        return [(each, value) for each, value in values if value is not None]

    def _changed(self, change: Callable[[Geometry, Any], Any]) -> Self:
        return replace(self, **{each.name: change(each.metadata["geometry"], value) for each, value in self._present()})


R = TypeVar("R", bound=Record)


def stack(records: Sequence[R]) -> R:
    """A batch of records with the same fields: arrays stacked to tensors; text, scans and Gaussians in lists.

    Raises:
        ValueError: one has a field, or a record in one, that another lacks.
    """
    first = records[0]
    _check_alike([[each.name for each, _ in record._present()] for record in records])
    stacked = {
        each.name: each.metadata["geometry"].stacked([getattr(record, each.name) for record in records])
        for each, _ in first._present()
    }
    return replace(first, **stacked)


def _check_alike(names: list[list[str]]) -> None:
    for others in names:
        if set(others) != set(names[0]):
            odd = ", ".join(sorted(set(others) ^ set(names[0])))
            raise ValueError(f"records of one batch hold different fields: some have {odd}, some have not")


def _each_record(value: Any, change: Callable[[Record], Record]) -> Any:
    if isinstance(value, Mapping):
        return {name: change(record) for name, record in value.items()}
    return tuple(map(change, value))


def _each_leaf(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_each_leaf(item, change) for item in value)
    if isinstance(value, Mapping):
        return {name: _each_leaf(item, change) for name, item in value.items()}
    return change(value)


def _on(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.to(device, non_blocking=True)
    return leaf.to(device) if hasattr(leaf, "to") else leaf  # records, Gaussians


def _pinned(leaf: Any) -> Any:
    return leaf.pin_memory() if isinstance(leaf, Tensor | Record) else leaf


@dataclass(frozen=True)
class Told(Record):
    """What one teacher says about a frame.

    Attributes:
        taught: bool; False: it says nothing of this frame, and all below is empty.
        covered: bool (X, Y, Z), the voxels that it has modelled; None where that follows from its signals.
        in_columns: bool (X, Y, Z), the voxels that what it says of columns is made of; None: those.
        signals: name -> what its signal decodes to (`distill.signals`).
    """

    taught: Array = declared(FACT)
    covered: Array = declared(GRID)
    in_columns: Array = declared(GRID)
    signals: Mapping[str, Any] = declared(RECORDS)


@dataclass(frozen=True)
class Calibration(Record):
    """What is known of the cameras part by part, and what was done to their images and to the world.

    Attributes:
        intrinsics: float32 (N, 3, 3) of the images as recorded.
        source2image: float32 (N, 3, 3), pixels as recorded to pixels of `Frame.images`.
        cam2ego: float32 (N, 4, 4), each camera to the vehicle's ego frame at the time of its exposure.
        ego2global: float32 (N, 4, 4), that ego frame to the map.
        world: float32 (4, 4), the world as recorded to the world of the frame: the identity until it is mirrored.
    """

    intrinsics: Array = declared(PER_IMAGE)
    source2image: Array = declared(PER_IMAGE)
    cam2ego: Array = declared(PER_IMAGE)
    ego2global: Array = declared(PER_IMAGE)
    world: Array = declared(POSE)


@dataclass(frozen=True)
class Frame(Record):
    """One keyframe, or a batch of them; what was not asked for is None.

    "Ego" is the frame of the grid: the keyframe's ego frame for Occ3D and without labels, the LIDAR_TOP frame for
    SurroundOcc, where `lidar2ego` is the identity.

    Attributes:
        token, scene: str.
        channels: names of the N cameras, a tuple of str.
        images: uint8 (N, 3, H, W) RGB; a camera that the keyframe lacks is black and looks into the sky.
        intrinsics: float32 (N, 3, 3) of these images.
        cam2ego: float32 (N, 4, 4), each camera at its own time.
        calibration: what `intrinsics` and `cam2ego` are made of.
        lidar2ego: float32 (4, 4); a LIDAR_TOP point is seen at intrinsics @ (inv(cam2ego) @ lidar2ego)[:3]; None: the
            data have no LiDAR.
        points: float32 (P, 4) x, y, z in metres, intensity in [0, 1].
        depth: float32 (N, H / stride, W / stride) metres, 0 = no return.
        rays: float32 (R, 8), what LiDAR and cameras see along rays: origin, direction (1 along the optical axis of the
            camera), depth (metres along that axis), class id of what is there (0: not known).
        semantics: uint8 (X, Y, Z); without a label all free.
        mask_camera, mask_lidar: bool (X, Y, Z), what the cameras see and what the LiDAR observed; without a label none,
            or, where a term asks for it, as `mask_camera` what cameras see as a rule.
        labelled: bool, whether there is a label.
        teachers: name -> what it says.
        proposals: uint8 (X / 2, Y / 2, Z / 2), which blocks of 2^3 voxels a teacher finds occupied (1) or free (0), 255
            where it says nothing; of a batch, for a network with `proposals_of`.
        past: earlier keyframes of the scene, the latest first, each with its own ego frame.
        ego2present: float32 (4, 4), of a frame in the past: its ego frame to that of the frame whose past it is.
    """

    token: Any = declared(FACT)
    scene: Any = declared(FACT)
    channels: Any = declared(FACT)
    images: Array = declared(PER_IMAGE)
    intrinsics: Array = declared(PER_IMAGE)
    cam2ego: Array = declared(POSE)
    calibration: Calibration | None = declared(RECORD)
    lidar2ego: Array = declared(POSE)
    points: Array = declared(POINTS)
    depth: Array = declared(PER_IMAGE)
    rays: Array = declared(RAYS)
    semantics: Array = declared(GRID)
    mask_camera: Array = declared(GRID)
    mask_lidar: Array = declared(GRID)
    labelled: Array = declared(FACT)
    teachers: Mapping[str, Told] = declared(RECORDS)
    proposals: Array = declared(GRID)
    past: tuple[Frame, ...] = declared(RECORDS)
    ego2present: Array = declared(MOTION)

    def lidar_pose(self) -> Array:
        """`lidar2ego`, for who cannot do without.

        Raises:
            InputError: the data have no LiDAR.
        """
        if self.lidar2ego is None:
            raise InputError("this teacher says what it says in the frame of the LiDAR, and the data have none")
        return self.lidar2ego

    def seen_through(self, mapping: Array) -> Self:
        """The frame whose pixels have moved by `mapping` (3, 3), its calibration with them; `images` stay."""
        frame = replace(self, intrinsics=mapping @ self.intrinsics)
        if (parts := self.calibration) is None:
            return frame
        return replace(frame, calibration=replace(parts, source2image=mapping @ parts.source2image))

    def with_cameras_at(self, cam2ego: np.ndarray) -> Self:
        """The frame as loaded with other poses of its cameras, float32 (N, 4, 4); its calibration with them."""
        frame = replace(self, cam2ego=cam2ego)
        if (parts := self.calibration) is None:
            return frame
        moved = np.linalg.inv(self.cam2ego.astype(np.float64)) @ cam2ego
        return replace(frame, calibration=replace(parts, cam2ego=(parts.cam2ego @ moved).astype(np.float32)))

    def __getitem__(self, name: str) -> Any:
        """A field by its name, as teachers of anyone's ask that were written for a dict."""
        return getattr(self, name)
