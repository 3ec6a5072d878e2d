"""The past that a frame brings along: what the keyframes before it say, in poses that lead to the present."""

from dataclasses import replace

import numpy as np
import pytest
from same import assert_same
from tiny import HEIGHT, VERSION, WIDTH
from torch.utils.data import DataLoader

from distill.augment import Augmentation, ImageTransform
from distill.classes import OCC3D_CLASSES
from distill.demo import WorldConfig, ensure_world
from distill.frame import Mirror, stack
from distill.grids import OCC3D
from distill.nuscenes.frames import Draw, FrameDataset
from distill.nuscenes.index import load_index
from distill.nuscenes.labels import Occ3DLabels, SurroundOccLabels

SIZE, UNKNOWN = (48, 112), 255
STRONG = Augmentation(resize=(1.0, 1.3), image_flip=0.5, rotation=9.0, colour=0.2, bev_flip=0.5)
MIRRORS = [Mirror(x=True), Mirror(y=True), Mirror(x=True, y=True)]
WORLD = WorldConfig(seed=3, train_scenes=1, val_scenes=1, keyframes_per_scene=3, image_size=(160, 90), jpeg_quality=85)


def frames(keyframes, history, augmentation=None, lidar=False, labels=None, depth_stride=None):
    return FrameDataset(keyframes, SIZE, depth_stride, lidar, labels, augmentation, 0, history=history)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The index of a demo world: two scenes of three keyframes."""
    folder = tmp_path_factory.mktemp("history")
    ensure_world(folder / "demo", WORLD, workers=2)
    return load_index(folder / "demo", "v1.0-demo", folder / "cache")


@pytest.mark.parametrize("labels", [None, SurroundOccLabels(None)], ids=["ego", "lidar"])
def test_the_past_is_what_the_keyframes_before_say(demo, labels):
    """Whatever split is loaded: the keyframes before need not be in it."""
    alone = {frame.token: frame for frame in frames(demo.keyframes("all"), 0, lidar=True, labels=labels)}
    latest = demo.select([token for token in demo.tokens if not demo.keyframe(token).next])
    assert len(latest) == 2
    for frame in frames(latest, 2, lidar=True, labels=labels):
        assert [past.token for past in frame.past] == demo.before(frame.token, 2).tokens
        for past in frame.past:
            recorded = alone[past.token]
            if labels is not None:
                nothing = dict.fromkeys(("semantics", "mask_camera", "mask_lidar", "labelled"))
                recorded = replace(recorded, **nothing)
            assert_same(replace(past, ego2present=None), recorded)
        assert_same(replace(frame, past=None), alone[frame.token])


@pytest.mark.parametrize("labels", [None, SurroundOccLabels(None)], ids=["ego", "lidar"])
def test_a_point_of_the_static_world_is_where_the_past_saw_it(demo, labels):
    """From the map into an image of the past by its own calibration, and into the present by the frame's poses."""
    rng = np.random.default_rng(0)
    checked = 0
    for frame in frames(demo.keyframes("all"), 2, labels=labels):
        present = demo.keyframe(frame.token)
        points_P4 = np.pad(rng.uniform((-40, -40, -1), (40, 40, 5), (300, 3)), ((0, 0), (0, 1)), constant_values=1.0)
        global_P4 = points_P4 @ present.ego2global.T
        if labels is not None:
            points_P4 = points_P4 @ np.linalg.inv(present.lidar2ego).T
        for past in frame.past:
            for camera, intrinsics, cam2ego in zip(
                demo.keyframe(past.token).cameras, past.intrinsics, past.cam2ego, strict=True
            ):
                fit = ImageTransform.fit((camera.height, camera.width), SIZE).matrix(SIZE)
                recorded_P3 = (global_P4 @ np.linalg.inv(camera.ego2global @ camera.cam2ego).T)[:, :3]
                seen_P3 = (points_P4 @ np.linalg.inv(past.ego2present.astype(float) @ cam2ego).T)[:, :3]
                np.testing.assert_allclose(seen_P3, recorded_P3, atol=1e-3)
                front = recorded_P3[:, 2] > 1
                pixels = recorded_P3[front] @ (fit @ camera.intrinsics).T
                found = seen_P3[front] @ intrinsics.astype(float).T
                np.testing.assert_allclose(found[:, :2] / found[:, 2:], pixels[:, :2] / pixels[:, 2:], atol=0.1)
                checked += front.sum()
    assert checked > 1000


def test_houses_and_trees_stay_where_they_are(demo):
    """What the past has scanned of them has the same label in the present, unless it is brought there the wrong way."""
    labels = Occ3DLabels(demo.root / "gts")
    alone = {frame.token: frame for frame in frames(demo.keyframes("all"), 0, labels=labels)}
    latest = demo.select([token for token in demo.tokens if not demo.keyframe(token).next])
    for frame in frames(latest, 2, lidar=True, labels=labels):
        for past in frame.past:
            then_P = labels_at(alone[past.token], past.points[:, :3])
            stays_P = np.isin(then_P, [OCC3D_CLASSES.names.index(name) for name in ("manmade", "vegetation")])
            for pose, share in ((past.ego2present, (0.8, 1)), (np.linalg.inv(past.ego2present), (0, 0.5))):
                now_P = labels_at(frame, past.points[:, :3] @ pose[:3, :3].T + pose[:3, 3])
                known_P = stays_P & (now_P != UNKNOWN)
                assert known_P.sum() > 1000
                assert share[0] < (now_P == then_P)[known_P].mean() < share[1]


def labels_at(frame, points_P3):
    """The classes of the voxels that points lie in; `UNKNOWN` off the grid and where the LiDAR observed nothing."""
    index_P3 = np.floor((points_P3 - OCC3D.lower) / OCC3D.voxel_size).astype(int)
    inside_P = ((index_P3 >= 0) & (index_P3 < OCC3D.shape)).all(1)
    labels_P, index = np.full(len(points_P3), UNKNOWN), tuple(index_P3[inside_P].T)
    labels_P[inside_P] = np.where(frame.mask_lidar[index], frame.semantics[index], UNKNOWN)
    return labels_P


# --- the tiny dataroot, whose car drives along global x at 10 m/s, turned by 30 degrees, and whose images are all alike


def test_the_way_to_the_present_is_the_way_driven(index):
    """5 m in half a second: in an ego frame that is turned to the left, behind and to the left."""
    (frame,) = frames(index.select(["late"]), 1)
    expected = np.eye(4)
    expected[:2, 3] = -5 * np.cos(np.pi / 6), 5 * np.sin(np.pi / 6)
    np.testing.assert_allclose(frame.past[0].ego2present, expected, atol=1e-4)
    assert frame.past[0].ego2present.dtype == np.float32


def test_at_the_start_of_a_scene_the_earliest_stands_in(index):
    alone, early, late = frames(index.keyframes("all"), 2)
    assert [past.token for past in late.past] == ["early", "early"]
    assert_same(*late.past)
    for frame in (alone, early):
        assert [past.token for past in frame.past] == [frame.token] * 2
        for past in frame.past:
            np.testing.assert_allclose(past.ego2present, np.eye(4), atol=1e-6)
            assert_same(replace(past, ego2present=None), replace(frame, past=None))


def test_without_history_there_is_no_past(index):
    assert all(frame.past is None for frame in frames(index.keyframes("all"), 0))


@pytest.mark.parametrize("epoch", range(4))
def test_images_of_the_past_are_transformed_as_those_of_the_present(index, epoch):
    late = frames(index.keyframes("all"), 1, STRONG)[Draw(2, epoch)]
    assert (late.token, late.past[0].token) == ("late", "early")
    np.testing.assert_array_equal(late.past[0].images, late.images)
    np.testing.assert_array_equal(late.past[0].intrinsics, late.intrinsics)
    assert not np.array_equal(late.images[0], late.images[1])  # each camera is transformed in its own way
    plain = frames(index.keyframes("all"), 1)[2]
    assert not np.allclose(late.past[0].intrinsics, plain.past[0].intrinsics)


@pytest.mark.parametrize("mirror", MIRRORS)
def test_the_past_is_mirrored_with_the_world(index, mirror):
    """Its cameras and its scan are, in the present, the mirror image of where they were."""
    (plain,) = frames(index.select(["late"]), 1, lidar=True)
    signs_4 = np.array([-1 if mirror.x else 1, -1 if mirror.y else 1, 1, 1])
    (was,), (now,) = plain.past, plain.mirrored(mirror).past
    np.testing.assert_allclose(
        now.ego2present @ now.cam2ego, signs_4[:, None] * (was.ego2present @ was.cam2ego), atol=1e-5
    )
    np.testing.assert_allclose(
        now.points[:, :3] @ now.ego2present[:3, :3].T + now.ego2present[:3, 3],
        (was.points[:, :3] @ was.ego2present[:3, :3].T + was.ego2present[:3, 3]) * signs_4[:3],
        atol=1e-4,
    )
    forward, left = now.ego2present[:2, 3] * signs_4[:2]
    assert (forward, left) == pytest.approx((-4.330, 2.5), abs=1e-3)
    assert np.linalg.det(now.ego2present) == pytest.approx(1)  # a motion still, no mirror
    assert_same(now.images, was.images)


def test_what_is_drawn_for_the_world_mirrors_the_past_too(index):
    both = Augmentation(resize=(1.0, 1.0), image_flip=0.0, rotation=0.0, colour=0.0, bev_flip=1.0)
    drawn, plain = (frames(index.keyframes("all"), 1, augmentation)[2] for augmentation in (both, None))
    assert_same(drawn, plain.mirrored(Mirror(x=True, y=True)))


def test_scans_of_the_past_are_read_for_those_who_ask_for_points_alone(dataroot, tmp_path):
    index = load_index(dataroot, VERSION, tmp_path)
    scan = index.keyframe("early").lidar_path
    recorded = len(np.fromfile(scan, np.float32)) // 5
    (frame,) = frames(index.select(["late"]), 1, lidar=True, depth_stride=16)
    assert 0 < len(frame.past[0].points) <= recorded
    scan.unlink()
    (frame,) = frames(index.select(["late"]), 1, depth_stride=16)
    assert frame.depth.any() and frame.past[0].depth is None
    assert frame.points is None and frame.past[0].points is None


def test_cameras_that_the_past_lacks_are_black(dataroot, edit, tmp_path):
    """And look into the sky, as in the present."""
    edit(
        "sample_data",
        lambda rows: rows.__setitem__(
            slice(None), [row for row in rows if row["filename"] != "samples/CAM_FRONT/early.jpg"]
        ),
    )
    (frame,) = frames(load_index(dataroot, VERSION, tmp_path).select(["late"]), 1)
    assert [i for i in range(6) if not frame.past[0].images[i].any()] == [1]
    assert all(image.any() for image in frame.images)


def test_a_batch_has_a_batch_for_each_step_into_the_past(index):
    dataset = frames(index.keyframes("all"), 2, STRONG, lidar=True)
    loaded = list(dataset)
    batch = stack(loaded)
    assert len(batch.past) == 2
    for step, past in enumerate(batch.past):
        assert past.is_batch and past.past is None
        assert past.images.shape == (3, 6, 3, *SIZE) and past.ego2present.shape == (3, 4, 4)
        assert past.token == [frame.past[step].token for frame in loaded]
        for k, frame in enumerate(loaded):
            np.testing.assert_array_equal(past.cam2ego[k], frame.past[step].cam2ego)
            np.testing.assert_array_equal(past.points[k], frame.past[step].points)
    (of_worker,) = DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=stack)
    assert_same(of_worker, batch)


def test_images_of_the_tiny_dataroot_are_alike(index):
    """Which the comparisons above rest on."""
    cameras = [camera for keyframe in index.keyframes("all") for camera in keyframe.cameras]
    assert len({camera.path.read_bytes() for camera in cameras}) == 1
    assert {(camera.height, camera.width) for camera in cameras} == {(HEIGHT, WIDTH)}
