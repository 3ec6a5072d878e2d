"""The demo world: the official devkit reads it, its sensors and labels agree, it is made once, whole or not at all."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.lidarseg.utils import LidarsegClassMapper
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_io import load_bin_file
from PIL import Image

from distill.classes import OCC3D_CLASSES
from distill.demo import WorldConfig, ensure_world, generate, sensors
from distill.demo.keyframe import SceneId
from distill.demo.scene import PERIOD, Scene
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC
from distill.nuscenes.index import load_index

CONFIG = WorldConfig(
    seed=3, train_scenes=1, val_scenes=1, keyframes_per_scene=2, image_size=(320, 180), jpeg_quality=85
)
FREE = OCC3D_CLASSES.free


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "demo"
    ensure_world(root, CONFIG, workers=2)
    return root


@pytest.fixture(scope="module")
def devkit(root):
    return NuScenes("v1.0-demo", str(root), verbose=False)


@pytest.fixture(scope="module")
def scene():
    identity = SceneId(CONFIG.seed, "train", 0)
    return Scene(identity.entropy, identity.number, CONFIG.keyframes_per_scene, CONFIG.image_size)


def test_devkit_reads_the_classes_of_points(root, devkit, tmp_path):
    """Its own mapping to the 16 classes of lidarseg finds what the scene has drawn."""
    coarse = LidarsegClassMapper(devkit)
    sample = devkit.get("sample", devkit.get("scene", devkit.scene[0]["token"])["first_sample_token"])
    record = devkit.get("lidarseg", sample["data"]["LIDAR_TOP"])
    found = coarse.convert_label(load_bin_file(str(root / record["filename"]), type="lidarseg"))
    identity = SceneId(CONFIG.seed, devkit.get("scene", sample["scene_token"])["name"].split("-")[1], 0)
    drive = Scene(identity.entropy, identity.number, CONFIG.keyframes_per_scene, CONFIG.image_size)
    np.testing.assert_array_equal(found, drive.sweep(0).classes)
    assert len(np.unique(found)) > 5
    index = load_index(root, "v1.0-demo", tmp_path)
    ours = index.lidarseg().read(sample["token"], len(found))
    np.testing.assert_array_equal(ours, found)


def labels_of(root, devkit, sample):
    name = devkit.get("scene", sample["scene_token"])["name"]
    return np.load(root / "gts" / name / sample["token"] / "labels.npz")


def test_devkit_reads_everything(root, devkit):
    assert {s["name"] for s in devkit.scene} == {"demo-train-000", "demo-val-000"}
    assert json.loads((root / "v1.0-demo" / "splits.json").read_text())["val"] == ["demo-val-000"]
    for sample in devkit.sample:
        assert sorted(sample["data"]) == sorted(["LIDAR_TOP", *(c.channel for c in sensors.CAMERAS)])
        for channel, token in sample["data"].items():
            path, boxes, intrinsics = devkit.get_sample_data(token)
            if channel != "LIDAR_TOP":
                assert Image.open(path).size == CONFIG.image_size
                assert intrinsics.shape == (3, 3)
        assert len(boxes) > 5
    points, _, _ = devkit.explorer.map_pointcloud_to_image(sample["data"]["LIDAR_TOP"], sample["data"]["CAM_FRONT"])
    assert points.shape[1] > 1000


def test_map_mask_is_drivable_under_the_ego_vehicle(devkit):
    for sample in devkit.sample:
        frame = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        x, y, _ = devkit.get("ego_pose", frame["ego_pose_token"])["translation"]
        log = devkit.get("log", devkit.get("scene", sample["scene_token"])["log_token"])
        mask = devkit.get("map", log["map_token"])["mask"]
        assert mask.is_on_mask(x, y)[0]
        assert 0.1 < (mask.mask() > 0).mean() < 0.6


def test_boxes_move_with_their_velocity(devkit):
    speeds = [np.linalg.norm(devkit.box_velocity(a["token"])) for a in devkit.sample_annotation if a["prev"]]
    moving = {devkit.get("attribute", t)["name"] for a in devkit.sample_annotation for t in a["attribute_tokens"]}
    assert {"vehicle.moving", "vehicle.parked", "pedestrian.moving"} <= moving
    assert max(speeds) > 3.0
    for annotation in devkit.sample_annotation:
        names = [devkit.get("attribute", t)["name"] for t in annotation["attribute_tokens"]]
        if annotation["prev"] and "vehicle.parked" in names:
            assert np.linalg.norm(devkit.box_velocity(annotation["token"])) < 1e-6


def test_lidar_points_lie_in_their_boxes(devkit):
    """num_lidar_pts counts what is in the box: the points, through all tables and files, are inside."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    sample = devkit.sample[0]
    path, boxes, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
    cloud = LidarPointCloud.from_file(path)
    assert 20_000 < cloud.points.shape[1] < 32 * 1084
    for box in boxes:
        counted = devkit.get("sample_annotation", box.token)["num_lidar_pts"]
        inside = points_in_box(box, cloud.points[:3], wlh_factor=1.05).sum()
        assert inside >= 0.9 * counted - 2  # noise pushes a few returns through the surface


def test_lidar_cameras_and_labels_see_the_same_world(scene):
    """LiDAR returns fall on their voxels and, in pictures taken at the LiDAR's time, on their own pixels and depths."""
    sweep, labels = scene.sweep(1), scene.labels(1)
    ego = sweep.points[:, :3] @ sensors.lidar2ego()[:3, :3].T + sensors.lidar2ego()[:3, 3]
    index = np.floor((ego - OCC3D.lower) / OCC3D.voxel_size).astype(int)
    inside = ((index >= 0) & (index < OCC3D.shape)).all(1)
    voxels = labels.semantics[tuple(index[inside].T)]
    assert (voxels != FREE).mean() > 0.85  # the rest hits what fills less than a ninth of its voxel
    assert (voxels == sweep.classes[inside])[voxels != FREE].mean() > 0.9

    town = ego @ scene.ego(PERIOD)[:3, :3].T + scene.ego(PERIOD)[:3, 3]
    mount = dataclasses.replace(sensors.CAMERAS[1], delay_us=0)
    picture = scene.photograph(mount, 1)
    x, y, z = (np.linalg.inv(picture.camera2town) @ np.c_[town, np.ones(len(town))].T)[:3]
    u, v, _ = picture.intrinsics @ np.stack([x / z, y / z, np.ones_like(z)])
    seen = (z > 1) & (u >= 0) & (u < CONFIG.image_size[0]) & (v >= 0) & (v < CONFIG.image_size[1])
    row, column = np.floor(v[seen]).astype(int), np.floor(u[seen]).astype(int)
    assert seen.sum() > 1000
    assert np.median(np.abs(picture.depth[row, column] / z[seen] - 1)) < 0.01
    same = picture.instances[row, column] == sweep.instances[seen]
    assert same.mean() > 0.9
    assert same[sweep.instances[seen] >= 0].mean() > 0.75  # the sensors look past edges from different places


def test_surroundocc_labels_are_where_the_scan_is(root, devkit):
    """The files, read with the scans they are named after: no pose in between."""
    for sample in devkit.sample:
        path = Path(devkit.get("sample_data", sample["data"]["LIDAR_TOP"])["filename"])
        points = np.fromfile(root / path, np.float32).reshape(-1, 5)[:, :3]
        rows = np.load(root / "surroundocc/samples" / f"{path.name}.npy")
        semantics = np.full(SURROUNDOCC.shape, FREE)
        semantics[tuple(rows[:, :3].T)] = rows[:, 3]
        assert (semantics != FREE).sum() == len(rows)
        index = np.floor((points - SURROUNDOCC.lower) / SURROUNDOCC.voxel_size).astype(int)
        inside = ((index >= 0) & (index < SURROUNDOCC.shape)).all(1)
        assert (semantics[tuple(index[inside].T)] != FREE).mean() > 0.85


def test_both_grids_show_the_same_world(scene):
    """Classes at the centres of SurroundOcc voxels, looked up on the Occ3D grid."""
    rows, labels = scene.surroundocc(1), scene.labels(1)
    lidar = SURROUNDOCC.centres()[tuple(rows[:, :3].T)]
    ego = lidar @ sensors.lidar2ego()[:3, :3].T + sensors.lidar2ego()[:3, 3]
    index = np.floor((ego - OCC3D.lower) / OCC3D.voxel_size).astype(int)
    inside = ((index >= 0) & (index < OCC3D.shape)).all(1)
    there = labels.semantics[tuple(index[inside].T)]
    assert inside.mean() > 0.3
    assert (there == rows[inside, 3]).mean() > 0.6


def test_cameras_are_exposed_at_their_own_time(devkit):
    sample = devkit.sample[1]
    poses = {}
    for channel, token in sample["data"].items():
        frame = devkit.get("sample_data", token)
        poses[channel] = np.array(devkit.get("ego_pose", frame["ego_pose_token"])["translation"])
        assert abs(frame["timestamp"] - sample["timestamp"]) < 50_000
    travelled = np.linalg.norm(poses["CAM_FRONT_LEFT"] - poses["LIDAR_TOP"])
    assert 0.1 < travelled < 0.5  # 43 ms at 4 to 9 m/s


def test_masks_are_what_rays_see(root, devkit):
    for sample in devkit.sample:
        labels = labels_of(root, devkit, sample)
        semantics, camera, lidar = labels["semantics"], labels["mask_camera"], labels["mask_lidar"]
        assert semantics.shape == OCC3D.shape
        assert semantics.dtype == camera.dtype == lidar.dtype == np.uint8
        assert 0.04 < camera.mean() < 0.35
        assert 0.05 < lidar.mean() < 0.45
        assert 0.6 < (semantics[camera == 1] == FREE).mean() < 0.95
        assert not camera[..., :2].any()  # nobody sees under the ground
        hidden = (semantics[1:-1, 1:-1, 3:-1] != FREE) & (camera[1:-1, 1:-1, 3:-1] == 1)
        neighbours = [np.roll(semantics, step, axis)[1:-1, 1:-1, 3:-1] for axis in range(3) for step in (-1, 1)]
        buried = np.all([n != FREE for n in neighbours], axis=0)
        assert not (hidden & buried).any()  # what is walled in on all sides is seen by no camera


def test_every_class_occurs_in_both_splits():
    for split in (0, 1):
        seen = set()
        for number in range(2):
            scene = Scene((0, split, number), number, 1, (64, 36))
            labels = scene.labels(0)
            seen |= set(np.unique(labels.semantics[labels.mask_camera == 1]))
        assert seen == set(range(len(OCC3D_CLASSES)))


def test_same_seed_same_bytes(root, tmp_path):
    again = tmp_path / "again"
    ensure_world(again, CONFIG, workers=1)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((root / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_finished_world_is_reused_and_others_are_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "_generate", None)  # nothing may be rendered here
    ensure_world(root, CONFIG, workers=1)
    with pytest.raises(InputError, match="other settings"):
        ensure_world(root, dataclasses.replace(CONFIG, seed=4), workers=1)
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "photo.jpg").touch()
    with pytest.raises(InputError, match="not a demo world"):
        ensure_world(foreign, CONFIG, workers=1)
    assert (foreign / "photo.jpg").exists()


def test_killed_generation_leaves_no_world(tmp_path):
    """A process killed in the middle leaves neither a world nor a lock; the next one makes the world."""
    root, building = tmp_path / "demo", tmp_path / ".demo.building"
    config = dataclasses.replace(CONFIG, val_scenes=0, image_size=(64, 36))
    process = multiprocessing.get_context("fork").Process(target=ensure_world, args=(root, config, 1))
    process.start()
    while not any(building.glob("samples/*/*.jpg")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not root.exists()
    ensure_world(root, config, workers=1)
    assert len(NuScenes("v1.0-demo", str(root), verbose=False).sample) == 2
    assert not building.exists()


def test_processes_started_together_make_one_world(tmp_path, monkeypatch):
    """As torchrun ranks do: one renders, the others wait and find its world."""
    root, log = tmp_path / "demo", tmp_path / "log"

    def slow(building, config, workers):
        with open(log, "a") as stream:
            stream.write("made\n")
        time.sleep(0.3)
        (building / generate.MANIFEST).write_text(json.dumps(config.manifest()))

    monkeypatch.setattr(generate, "_generate", slow)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=ensure_world, args=(root, CONFIG, 1)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert log.read_text() == "made\n"
