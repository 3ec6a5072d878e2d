"""Rays of keyframes and their neighbours: upstream's numbers, where they end, which are drawn, and bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import VERSION

from distill.augment import Augmentation
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import stack
from distill.grids import OCC3D, SURROUNDOCC
from distill.nuscenes.frames import Draw, FrameDataset
from distill.nuscenes.index import load_index
from distill.nuscenes.rays import MOVING, RayDraw, camera_rays, ray_weights, sample, seen_rays

CAR, ROAD = (OCC3D_CLASSES.names.index(name) for name in ("car", "driveable_surface"))
CATEGORIES = ("noise", "vehicle.car", "flat.driveable_surface", "animal")


@pytest.fixture
def seen(dataroot, edit, tmp_path):
    """An index of the tiny dataroot with lidarseg: points in turn of no class, cars, road, and an animal."""
    rows = [{"token": name, "name": name, "index": n} for n, name in enumerate(CATEGORIES)]
    edit("category", lambda table: table.__setitem__(slice(None), rows))
    records = []
    for token in ("alone", "early", "late"):
        file = f"lidarseg/{VERSION}/{token}-LIDAR_TOP_lidarseg.bin"
        (dataroot / file).parent.mkdir(parents=True, exist_ok=True)
        (np.arange(400) % 4).astype(np.uint8).tofile(dataroot / file)
        data = f"{token}-LIDAR_TOP"
        records.append({"token": data, "sample_data_token": data, "filename": file})
    (dataroot / VERSION / "lidarseg.json").write_text(json.dumps(records))
    return load_index(dataroot, VERSION, tmp_path / "cache")


def ray_draw(index, **changed):
    given = {"count": 50, "neighbours": 1, "neighbour_weight": 0.3, "balance": 0.25, "farthest": 52.0}
    return RayDraw(**{**given, **changed}, grid=OCC3D, classes=OCC3D_CLASSES, points=index.lidarseg())


def dataset(index, augmentation=None, **changed):
    draw = ray_draw(index, **changed)
    return FrameDataset(index.keyframes("all"), (48, 112), None, False, None, augmentation, 0, rays=draw)


class TestUpstream:
    @pytest.fixture
    def golden(self, shared, inputs):
        golden = np.load(shared / "fixtures/signals/render_rays.npz")
        return golden, inputs.case_rig(int(golden["seed"]))["frames"]

    @pytest.mark.parametrize("pose", ["camera", "one"])
    def test_rays(self, golden, pose):
        """Upstream's key frame is the ego frame when the camera of this name exposes; ours is one for all."""
        golden, frames = golden
        rows = []
        for number in (1, 0, 2):
            for n, camera in enumerate(frames[number]):
                key = frames[1][n if pose == "camera" else 0]["ego2global"]
                cam2key = np.linalg.inv(key) @ camera["ego2global"] @ camera["sensor2ego"]
                seen = camera["uv"] + 0.5, camera["depth"], camera["cls"]
                rows.append(camera_rays(*seen, camera["intrinsic"], cam2key))
        expected = golden[f"rays64_{pose}_pose"]
        rays = np.concatenate(rows)
        np.testing.assert_allclose(rays[:, :6], expected[:, 4:10], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(rays[:, 6:], expected[:, 2:4])
        unit = rays[:, 3:6] / np.linalg.norm(rays[:, 3:6], axis=1, keepdims=True)
        np.testing.assert_allclose(unit, expected[:, 10:], rtol=0, atol=1e-9)

    def test_weights(self, golden):
        golden, _ = golden
        classes = golden["rays64_one_pose"][:, 3].astype(int)
        moving = {0, 1, 3, 4, 5, 7, 9, 10}  # upstream's
        found = ray_weights(classes, np.arange(240) >= 80, golden["balance"], 0.3, moving)
        np.testing.assert_allclose(found, golden["weights_dataset"], rtol=3e-7)


def test_rays_end_at_the_points_of_the_scan(seen):
    keyframe = seen.keyframe("early")
    rays = seen_rays(keyframe, keyframe, seen.lidarseg(), 52.0)
    ends = rays[:, :3] + rays[:, 6:7] * rays[:, 3:6]
    scan = np.fromfile(keyframe.lidar_path, np.float32).reshape(-1, 5)[:, :3] + keyframe.lidar2ego[:3, 3]
    distance = np.linalg.norm(ends[:, None] - scan[None], axis=2)
    assert len(rays) > 100 and distance.min(1).max() < 1e-3
    classes = np.array([0, CAR, ROAD, 0])[distance.argmin(1) % 4]
    np.testing.assert_array_equal(rays[:, 7], classes)
    np.testing.assert_allclose(np.unique(rays[:, :3], axis=0), np.unique(keyframe.cam2ego()[:, :3, 3], axis=0))


def test_a_pixel_sees_the_nearest_point(seen, monkeypatch):
    """Two points on the axis of the second camera, which looks along x, and one aside: the nearer hides the other."""
    keyframe = seen.keyframe("alone")
    x, y, z = keyframe.cam2ego()[1, :3, 3]
    scan = np.array([[x + 20, y, z, 0], [x + 10, y, z, 0], [x + 10, y + 1, z, 0]], np.float32)
    monkeypatch.setattr("distill.nuscenes.rays.read_scan", lambda _: scan)
    points = seen.lidarseg()
    monkeypatch.setattr(points, "read", lambda *_: np.array([1, 2, 3], np.uint8))
    rays = seen_rays(keyframe, keyframe, points, 52.0)
    assert sorted(map(tuple, rays[:, 6:].round(3))) == [(10.0, 2.0), (10.0, 3.0)]


def test_neighbours_add_what_does_not_move(seen):
    keyframes = seen.keyframes("all")
    own, more = (dataset(seen, count=10_000, neighbours=n) for n in (0, 1))
    early = keyframes.tokens.index("early")
    assert (own[early].rays[:, 7] == CAR).any()
    added = len(more[early].rays) - len(own[early].rays)
    cars = [(each[early].rays[:, 7] == CAR).sum() for each in (own, more)]
    assert added > 50 and cars[0] == cars[1]
    alone = keyframes.tokens.index("alone")  # without any
    np.testing.assert_array_equal(own[alone].rays, more[alone].rays)


def test_a_neighbour_that_is_left_out_is_not_read(seen):
    """As where its files are missing, with data.missing=skip."""
    keyframes = seen.keyframes("all")
    left = keyframes.where([token != "late" for token in keyframes.tokens])
    early = left.tokens.index("early")
    seen.lidarseg().path("late").unlink()
    own, more = (
        FrameDataset(left, (48, 112), None, False, None, None, 0, rays=ray_draw(seen, count=10_000, neighbours=n))
        for n in (0, 1)
    )
    np.testing.assert_array_equal(own[early].rays, more[early].rays)


def test_rays_end_within_the_grid(seen):
    rays = dataset(seen, count=10_000)[0].rays
    ends = rays[:, :3] + rays[:, 6:7] * rays[:, 3:6]
    assert rays.dtype == np.float32 and (ends >= np.array(OCC3D.lower) - 1e-3).all()
    assert (ends < np.array(OCC3D.upper) + 1e-3).all()


def test_on_the_grid_of_the_lidar_frame(seen):
    """The same rays as seen from LIDAR_TOP."""
    keyframe = seen.keyframe("alone")
    draw = ray_draw(seen, count=10_000)
    draw.grid = SURROUNDOCC
    rays = draw.draw(keyframe, [], np.random.default_rng(0))
    ego = seen_rays(keyframe, keyframe, seen.lidarseg(), 52.0)
    origins = ego[:, :3] - keyframe.lidar2ego[:3, 3]
    np.testing.assert_allclose(np.unique(rays[:, :3], axis=0), np.unique(origins, axis=0), atol=1e-5)


def test_the_draw_depends_on_seed_turn_and_frame_alone(seen):
    frames = dataset(seen)
    first = frames[Draw(1, 3)].rays
    assert len(first) == 50
    np.testing.assert_array_equal(dataset(seen)[Draw(1, 3)].rays, first)
    assert not np.array_equal(frames[Draw(1, 4)].rays, first)


def test_rays_are_mirrored_with_the_world(seen):
    mirrors = Augmentation(resize=(1.0, 1.0), image_flip=0.5, rotation=0.0, colour=0.0, bev_flip=1.0)
    rays, mirrored = dataset(seen)[0].rays, dataset(seen, mirrors)[0].rays
    np.testing.assert_array_equal(mirrored, rays * [-1, -1, 1, -1, -1, 1, 1, 1])
    batch = stack([dataset(seen)[0], dataset(seen)[1]])
    assert [len(each) for each in batch.rays] == [50, 50]


def test_draws_follow_the_weights_and_leave_out_zeros():
    weights = np.array([0.0, 1, 3, 0])
    draws = [sample(weights, 1, np.random.default_rng(seed))[0] for seed in range(400)]
    assert 270 < draws.count(2) < 330 and draws.count(1) == 400 - draws.count(2)
    assert sample(weights, 9, np.random.default_rng(0)).tolist() == [1, 2]
    assert len(sample(np.zeros(3), 9, np.random.default_rng(0))) == 0


def test_what_moves():
    assert {OCC3D_CLASSES.names[n] for n in MOVING} >= {"bicycle", "motorcycle", "pedestrian"}
    assert not {OCC3D_CLASSES.names[n] for n in MOVING} & {"others", "barrier", "traffic_cone", "manmade"}


class TestRefusals:
    def test_no_lidarseg_at_all(self, dataroot, tmp_path):
        index = load_index(dataroot, VERSION, tmp_path / "cache")
        with pytest.raises(InputError, match=r"lidarseg.json is missing: .* or set objective=default"):
            index.lidarseg()

    def test_a_keyframe_without(self, seen):
        file = seen.lidarseg().path("late")
        file.unlink()
        draw = ray_draw(seen)
        with pytest.raises(InputError, match="no lidarseg labels of keyframe late"):
            draw.check(seen.keyframes("all"))
        with pytest.raises(InputError, match="lidarseg labels of keyframe late cannot be read"):
            draw.draw(seen.keyframe("late"), [], np.random.default_rng(0))

    def test_of_another_scan(self, seen):
        seen.lidarseg().path("late").write_bytes(b"\1" * 399)
        with pytest.raises(InputError, match=r"399 lidarseg labels of keyframe late, whose scan has 400 points"):
            ray_draw(seen).draw(seen.keyframe("late"), [], np.random.default_rng(0))

    def test_categories_without_index(self, seen, edit):
        edit("category", lambda table: table[0].pop("index"))
        with pytest.raises(InputError, match="index of record 'noise' is missing"):
            seen.lidarseg()
