"""One keyframe on disk: six pictures, a LiDAR file and its classes, two label files; and the facts the tables need."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from distill.demo import sensors
from distill.demo.materials import KERB
from distill.demo.models import LIDARSEG
from distill.demo.scene import PERIOD, Picture, Scene

VERSION = "v1.0-demo"
FIRST_TIMESTAMP = 1_700_000_000_000_000  # microseconds
SCENE_SPACING = 600_000_000
ANNOTATION_RANGE = 75.0  # metres
_CORNER_STEPS = np.array([-0.8, -0.3, 0.3, 0.8])


@dataclass(frozen=True)
class SceneId:
    """Which scene of a world: its split ("train", "val"), its number within it, and the world's seed."""

    seed: int
    split: str
    number: int

    @property
    def name(self) -> str:
        """Scene name, as in scene.json."""
        return f"demo-{self.split}-{self.number:03d}"

    @property
    def entropy(self) -> tuple[int, ...]:
        """Seed of everything in the scene; splits never share one."""
        return (self.seed, ("train", "val").index(self.split), self.number)

    @property
    def map_file(self) -> str:
        """The scene's map mask, relative to the root."""
        return f"maps/{self.token('map')}.png"

    def lidarseg_file(self, keyframe: int) -> str:
        """The classes of a keyframe's LiDAR points, relative to the root."""
        return f"lidarseg/{VERSION}/{self.token('sample_data', 'LIDAR_TOP', keyframe)}_lidarseg.bin"

    def timestamp(self, keyframe: int) -> int:
        """LiDAR time of a keyframe, microseconds."""
        order = ("train", "val").index(self.split) * 10_000 + self.number
        return FIRST_TIMESTAMP + SCENE_SPACING * order + round(1e6 * PERIOD * keyframe)

    def token(self, *parts: object) -> str:
        """A 32-hex token of something in this scene."""
        return make_token(self.seed, self.name, *parts)


def make_token(*parts: object) -> str:
    """A 32-hex token that follows from what it stands for."""
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Annotation:
    """A box of one keyframe.

    Attributes:
        instance: number of the thing within its scene.
        category, attribute: nuScenes names; the attribute may be "".
        size: (width, length, height), metres.
        pose: bottom centre to town, float64 (4, 4).
        points: LiDAR returns from it.
        visible: share seen by the cameras, 0 to 1.
    """

    instance: int
    category: str
    attribute: str
    size: tuple[float, float, float]
    pose: np.ndarray
    points: int
    visible: float


@dataclass(frozen=True)
class SensorFrame:
    """One file of one sensor: channel, file relative to the root, microseconds, ego pose float64 (4, 4) then."""

    channel: str
    file: str
    timestamp: int
    ego: np.ndarray


@dataclass(frozen=True)
class KeyframeFacts:
    """What the tables need to know about a written keyframe: its files, its boxes and its weather's name."""

    sensors: list[SensorFrame]
    annotations: list[Annotation]
    weather: str


def write_keyframe(root: Path, identity: SceneId, scene: Scene, keyframe: int, jpeg_quality: int) -> KeyframeFacts:
    """Render one keyframe into a dataroot; the first of a scene also writes the scene's map."""
    frames, pictures = [], []
    for mount in sensors.CAMERAS:
        picture = scene.photograph(mount, keyframe)
        frame = _frame(identity, scene, keyframe, mount.channel, mount.delay_us, "jpg")
        Image.fromarray(picture.image).save(_prepare(root / frame.file), quality=jpeg_quality)
        frames.append(frame)
        pictures.append(picture)
    sweep = scene.sweep(keyframe)
    frame = _frame(identity, scene, keyframe, "LIDAR_TOP", 0, "pcd.bin")
    sweep.points.tofile(_prepare(root / frame.file))
    frames.append(frame)
    LIDARSEG[sweep.classes].tofile(_prepare(root / identity.lidarseg_file(keyframe)))
    labels = scene.labels(keyframe)
    file = root / "gts" / identity.name / identity.token("sample", keyframe) / "labels.npz"
    np.savez_compressed(
        _prepare(file), semantics=labels.semantics, mask_lidar=labels.mask_lidar, mask_camera=labels.mask_camera
    )
    np.save(_prepare(root / "surroundocc/samples" / f"{Path(frame.file).name}.npy"), scene.surroundocc(keyframe))
    points = np.bincount(sweep.instances[sweep.instances >= 0], minlength=len(scene.actors))
    if keyframe == 0:
        _write_map(_prepare(root / identity.map_file), scene)
    return KeyframeFacts(frames, _annotations(scene, keyframe, points, pictures), scene.weather.name)


def _write_map(file: Path, scene: Scene) -> None:
    """The drivable area as a nuScenes map mask: 0.1 m per pixel, y up."""
    drivable = (scene.town.ground.materials < KERB).T[::-1]
    Image.fromarray(np.where(drivable, 255, 0).astype(np.uint8)).save(file)


def _prepare(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _frame(identity: SceneId, scene: Scene, keyframe: int, channel: str, delay_us: int, suffix: str) -> SensorFrame:
    timestamp = identity.timestamp(keyframe) + delay_us
    file = f"samples/{channel}/{identity.name}__{channel}__{timestamp}.{suffix}"
    return SensorFrame(channel, file, timestamp, scene.ego(PERIOD * keyframe + 1e-6 * delay_us))


def _annotations(scene: Scene, keyframe: int, points: np.ndarray, pictures: list[Picture]) -> list[Annotation]:
    """Boxes that hold LiDAR points, as nuScenes annotates them."""
    time = PERIOD * keyframe
    ego, found = scene.ego(time)[:2, 3], []
    for number, actor in enumerate(scene.actors):
        pose = actor.pose(scene.town, time)
        if points[number] and np.linalg.norm(pose[:2, 3] - ego) < ANNOTATION_RANGE:
            model, count = actor.model, int(points[number])
            visible = _visible_share(pose, model.size, pictures)
            found.append(Annotation(number, model.category, actor.attribute, model.size, pose, count, visible))
    return found


def _visible_share(pose: np.ndarray, size: tuple[float, float, float], pictures: list[Picture]) -> float:
    """Share of test points in a box that some picture shows unhidden."""
    width, length, height = size
    grid = np.stack(np.meshgrid(_CORNER_STEPS, _CORNER_STEPS, _CORNER_STEPS), axis=-1).reshape(-1, 3)
    local = (grid * 0.5 + [0.0, 0.0, 0.5]) * [length, width, height]
    points = local @ pose[:3, :3].T + pose[:3, 3]
    slack = 0.5 * float(np.linalg.norm(size))
    shown = np.zeros(len(points), bool)
    for picture in pictures:
        camera = np.linalg.inv(picture.camera2town)
        x, y, z = (points @ camera[:3, :3].T + camera[:3, 3]).T
        depth = np.maximum(z, 0.1)
        column = np.floor(picture.intrinsics[0, 0] * x / depth + picture.intrinsics[0, 2]).astype(int)
        row = np.floor(picture.intrinsics[1, 1] * y / depth + picture.intrinsics[1, 2]).astype(int)
        rows, columns = picture.depth.shape
        inside = (z > 0.1) & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        shown[inside] |= picture.depth[row[inside], column[inside]] > z[inside] - slack
    return float(shown.mean())
