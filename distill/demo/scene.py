"""A scene of the demo world: one town, one drive, its traffic and weather; renders keyframes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distill.demo import sensors
from distill.demo.materials import GROUND_CLASS, REFLECTANCE
from distill.demo.shading import ABOVE_SCALE, develop, map_matrix, shade
from distill.demo.shapes import CLASS, FAR, INSTANCE, MATERIAL, Shapes, joined
from distill.demo.streets import plan_arrays
from distill.demo.town import Town, build_town
from distill.demo.traffic import Actor, Drive, lane_choice, populate
from distill.demo.visibility import SKY, View, camera_view, draw, draw_ground, parallel_view, scan
from distill.demo.voxels import FREE, observe_picture, observe_rays, voxelise
from distill.demo.weather import Weather, draw_weather
from distill.grids import OCC3D, SURROUNDOCC

PERIOD = 0.5  # seconds between keyframes
SHADOW_SCALE = 6.0  # texels per metre
MASK_SIZE = (560, 315)  # rays per camera that decide mask_camera, whatever the image size


@dataclass(frozen=True)
class Picture:
    """What one camera took.

    Attributes:
        image: uint8 (H, W, 3).
        depth: float32 (H, W), metres along the optical axis; 1e9 in the sky.
        instances: int32 (H, W), instance numbers, -1 elsewhere.
        camera2town: float64 (4, 4) at the camera's time.
        intrinsics: float64 (3, 3).
    """

    image: np.ndarray
    depth: np.ndarray
    instances: np.ndarray
    camera2town: np.ndarray
    intrinsics: np.ndarray


@dataclass(frozen=True)
class Sweep:
    """One LiDAR revolution.

    Attributes:
        points: float32 (P, 5): x, y, z in the LiDAR frame (metres), intensity 0-255, ring.
        instances: int32 (P,), instance number of each point, -1 for the town.
        classes: uint8 (P,), class id of each point.
    """

    points: np.ndarray
    instances: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Labels:
    """Occ3D labels: semantics, mask_lidar, mask_camera, each uint8 (200, 200, 16)."""

    semantics: np.ndarray
    mask_lidar: np.ndarray
    mask_camera: np.ndarray


class Scene:
    """One drive of `keyframes` keyframes through a town of its own; everything follows from `seed`.

    Args:
        seed: entropy of the scene, e.g. (world seed, split, number).
        number: decides the weather.
        keyframes: how many keyframes the drive has, PERIOD apart.
        size: (width, height) of images, pixels.
    """

    def __init__(self, seed: tuple[int, ...], number: int, keyframes: int, size: tuple[int, int]) -> None:
        rng = np.random.default_rng(seed)
        self.seed, self.size, self.keyframes = seed, size, keyframes
        duration = PERIOD * (keyframes - 1)
        speed = rng.uniform(4.0, 9.0)
        self.town: Town = build_town(rng, speed * duration)
        self.weather: Weather = draw_weather(rng, number)
        self.drive = Drive(-0.5 * speed * duration, speed, lane_choice(rng, self.town.streets[0]))
        self.actors: list[Actor] = populate(rng, self.town, self.drive, duration)
        self._plan = plan_arrays(self.town.streets, self.town.crossings)
        self._models = [a.model.shapes.of_instance(n) for n, a in enumerate(self.actors)]
        extent = self.town.ground.extent
        centre = np.array([0.5 * extent, 0.5 * extent, 0.0])
        self._sun = parallel_view(self.weather.towards_sun, centre, 1.2 * extent, SHADOW_SCALE)
        self._above = parallel_view(np.array([0.0, 0.0, 1.0]), centre, extent, ABOVE_SCALE)

    def ego(self, time: float) -> np.ndarray:
        """Ego frame to town, float64 (4, 4)."""
        return self.drive.pose(self.town, time)

    def moving_shapes(self, time: float) -> Shapes:
        """All actors' shapes in the town's frame."""
        return joined([m.moved(a.pose(self.town, time)) for m, a in zip(self._models, self.actors, strict=True)])

    # --- cameras ----------------------------------------------------------------------------------------------------

    @cached_property
    def _town_shadows(self) -> tuple[np.ndarray, np.ndarray]:
        """Depth maps of the town from the sun and from above: the same in every picture."""
        return self._shadow(self._sun, self.town.shapes), self._shadow(self._above, self.town.shapes)

    @staticmethod
    def _shadow(view: View, shapes: Shapes) -> np.ndarray:
        depth = np.full(view.size[::-1], FAR, np.float32)
        draw(depth, np.empty(depth.shape, np.int32), view, shapes, 0)
        return depth

    def _with_shadows_of(self, actors: Shapes) -> tuple[np.ndarray, np.ndarray]:
        shadow, above = (depth.copy() for depth in self._town_shadows)
        draw(shadow, np.empty(shadow.shape, np.int32), self._sun, actors, 0)
        draw(above, np.empty(above.shape, np.int32), self._above, actors, 0)
        return shadow, above

    def photograph(self, mount: sensors.CameraMount, keyframe: int) -> Picture:
        """The picture a camera takes for a keyframe, at its own time."""
        time = PERIOD * keyframe + 1e-6 * mount.delay_us
        actors = self.moving_shapes(time)
        shapes = joined([self.town.shapes, actors])
        camera2town = self.ego(time) @ mount.camera2ego()
        intrinsics = mount.intrinsics(self.size)
        view = camera_view(intrinsics, camera2town, self.size)
        depth = np.full(self.size[::-1], FAR, np.float32)
        drawn = np.full(self.size[::-1], SKY, np.int32)
        ground = self.town.ground.materials
        draw(depth, drawn, view, shapes, 0)
        draw_ground(depth, drawn, view.rays, ground)
        shadow, above = self._with_shadows_of(actors)
        light = np.empty((*depth.shape, 3), np.float32)
        tables = (shapes.solid, shapes.look, shapes.tags)
        maps = (shadow, map_matrix(self._sun), above, map_matrix(self._above))
        shade(light, depth, drawn, view.rays, tables, (ground, *self._plan), maps, self.weather.row())
        grain = 1000 * keyframe + abs(mount.delay_us) + self.seed[-1]
        image = develop(light, drawn, self.weather.darkness, grain)
        instances = np.where(drawn >= 0, shapes.tags[drawn, INSTANCE], -1)
        return Picture(image, depth, instances, camera2town, intrinsics)

    # --- LiDAR ------------------------------------------------------------------------------------------------------

    def sweep(self, keyframe: int) -> Sweep:
        """The LiDAR revolution of a keyframe, frozen at its time stamp."""
        time = PERIOD * keyframe
        lidar2town = self.ego(time) @ sensors.lidar2ego()
        shapes = joined([self.town.shapes, self.moving_shapes(time)])
        directions, origin = sensors.lidar_directions(), lidar2town[:3, 3]
        ranges = np.empty(directions.shape[:2])
        seen = np.empty(directions.shape[:2], np.int32)
        ground = self.town.ground
        scan(ranges, seen, origin, directions, sensors.ELEVATIONS, shapes.solid, shapes.tags, ground.materials)
        rng = np.random.default_rng((*self.seed, keyframe, 1))
        hit = origin + ranges[..., None] * directions
        under = ground.at(hit[..., 0], hit[..., 1])
        material = np.where(seen >= 0, shapes.tags[seen, MATERIAL], under)
        classes = np.where(seen >= 0, shapes.tags[seen, CLASS], GROUND_CLASS[under])
        strength = REFLECTANCE[material] * np.exp(-ranges / 90.0)
        returned = (seen != SKY) & (ranges < sensors.LIDAR_RANGE) & (ranges > 1.0)
        returned &= rng.random(ranges.shape) < np.clip(0.6 + 0.05 * strength, 0.0, 0.98)
        intensity = np.clip(strength * rng.normal(1.0, 0.15, ranges.shape), 0, 255)
        noisy = origin + (ranges + rng.normal(0.0, 0.015, ranges.shape))[..., None] * directions
        local = (noisy - origin) @ lidar2town[:3, :3]
        rings = np.broadcast_to(np.arange(sensors.RINGS)[:, None], ranges.shape)
        columns = [local[..., 0], local[..., 1], local[..., 2], np.round(intensity), rings]
        points = np.stack(columns, axis=-1)[returned].astype(np.float32)
        instances = np.where(seen >= 0, shapes.tags[seen, INSTANCE], -1)[returned]
        return Sweep(points, instances, classes[returned].astype(np.uint8))

    # --- labels -----------------------------------------------------------------------------------------------------

    def labels(self, keyframe: int) -> Labels:
        """Occ3D labels of a keyframe: the LiDAR mask accumulates all keyframes' revolutions."""
        time = PERIOD * keyframe
        town2ego = np.linalg.inv(self.ego(time))
        shapes = joined([self.town.shapes, self.moving_shapes(time)])
        semantics = voxelise(shapes, self.town.ground.materials, town2ego, GROUND_CLASS, OCC3D)
        mask_camera, mask_lidar = np.zeros_like(semantics), np.zeros_like(semantics)
        for mount in sensors.CAMERAS:
            camera2ego = town2ego @ self.ego(time + 1e-6 * mount.delay_us) @ mount.camera2ego()
            view = camera_view(mount.intrinsics(MASK_SIZE), camera2ego, MASK_SIZE)
            observe_picture(semantics, mask_camera, view.rays, MASK_SIZE)
        directions = sensors.lidar_directions()
        for other in range(self.keyframes):
            lidar2ego = town2ego @ self.ego(PERIOD * other) @ sensors.lidar2ego()
            observe_rays(semantics, mask_lidar, lidar2ego[:3, 3], directions @ town2ego[:3, :3].T)
        return Labels(semantics, mask_lidar, mask_camera)

    def surroundocc(self, keyframe: int) -> np.ndarray:
        """SurroundOcc labels of a keyframe: rows x, y, z, class of its voxels that are not empty, uint8 (V, 4)."""
        time = PERIOD * keyframe
        town2lidar = np.linalg.inv(self.ego(time) @ sensors.lidar2ego())
        shapes = joined([self.town.shapes, self.moving_shapes(time)])
        semantics = voxelise(shapes, self.town.ground.materials, town2lidar, GROUND_CLASS, SURROUNDOCC)
        voxels = np.argwhere(semantics != FREE)
        return np.column_stack([voxels, semantics[tuple(voxels.T)]]).astype(np.uint8)
