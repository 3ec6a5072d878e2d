from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion
from same import assert_same, held

from distill.augment import Augmentation
from distill.errors import InputError
from distill.frame import stack
from distill.nuscenes.frames import Draw, FrameDataset
from distill.nuscenes.index import load_index
from distill.nuscenes.labels import Occ3DLabels, SurroundOccLabels
from distill.nuscenes.layout import CAMERAS
from distill.nuscenes.points import depth_maps, project

STRONG = Augmentation(
    resize=(1.0, 1.3), image_flip=0.5, rotation=0.0, colour=0.2, bev_flip=0.5
)  # leaves no black borders
SIZE, STRIDE = (48, 112), 16


def frames(index, augmentation=None, depth_stride=STRIDE, lidar=True, labels=True, seed=0):
    source = Occ3DLabels(index.root / "gts") if labels is True else labels
    return FrameDataset(index.keyframes("all"), SIZE, depth_stride, lidar, source, augmentation, seed)


def test_everything_of_a_frame(index):
    frame = frames(index)[2]
    assert (frame.token, frame.scene, frame.labelled) == ("late", "scene-0002", False)
    assert frame.channels == CAMERAS
    shapes = {
        key: (value.dtype.name, value.shape) for key, value in held(frame).items() if isinstance(value, np.ndarray)
    }
    points = shapes.pop("points")
    assert points[0] == "float32" and points[1][1:] == (4,)
    assert shapes == {
        "images": ("uint8", (6, 3, 48, 112)),
        "intrinsics": ("float32", (6, 3, 3)),
        "cam2ego": ("float32", (6, 4, 4)),
        "lidar2ego": ("float32", (4, 4)),
        "depth": ("float32", (6, 3, 7)),
        "semantics": ("uint8", (200, 200, 16)),
        "mask_camera": ("bool", (200, 200, 16)),
        "mask_lidar": ("bool", (200, 200, 16)),
    }


def test_only_what_is_asked_for_is_read(dataroot, tmp_path):
    index = load_index(dataroot, "v1.0-tiny", tmp_path)
    for keyframe in index.keyframes("all"):
        keyframe.lidar_path.unlink()
    frame = frames(index, depth_stride=None, lidar=False, labels=None)[0]
    assert held(frame).keys() == {"token", "scene", "channels", "images", "intrinsics", "cam2ego", "lidar2ego"}
    with pytest.raises(InputError, match="LiDAR scan of keyframe alone is missing"):
        frames(index, lidar=False)[0]


def test_labels_are_joined_by_token(dataroot, tmp_path):
    index = load_index(dataroot, "v1.0-tiny", tmp_path)
    path = dataroot / "gts/scene-0002/early/labels.npz"
    path.parent.mkdir(parents=True)
    semantics = np.random.default_rng(0).integers(0, 18, (200, 200, 16), dtype=np.uint8)
    np.savez(path, semantics=semantics, mask_camera=semantics > 8, mask_lidar=semantics > 4)
    alone, early, late = frames(index)
    assert [frame.labelled for frame in (alone, early, late)] == [False, True, False]
    np.testing.assert_array_equal(early.semantics, semantics)
    np.testing.assert_array_equal(early.mask_camera, semantics > 8)


@pytest.mark.parametrize("epoch", range(4))
def test_depth_is_what_the_frame_itself_projects(index, epoch):
    """Points, cameras and depth stay consistent whatever is drawn."""
    dataset = frames(index, STRONG)
    whole = np.ones((6, *SIZE), bool)
    for at in range(3):
        frame = dataset[Draw(at, epoch)]
        again = depth_maps(frame.points, frame.intrinsics, frame.cam2ego, whole, STRIDE)
        assert (frame.depth > 0).mean() > 0.2
        # A point within float32 of a cell border may change cells.
        assert np.isclose(frame.depth, again, rtol=1e-4).mean() > 0.98


@pytest.mark.parametrize("epoch", range(4))
def test_in_turned_images_depth_is_where_its_points_are_and_not_in_black_corners(index, epoch):
    dataset, lost = frames(index, replace(STRONG, rotation=40.0), depth_stride=4), 0
    for at in range(3):
        frame = dataset[Draw(at, epoch)]
        everywhere = np.ones((6, *SIZE), bool)
        again = depth_maps(frame.points, frame.intrinsics, frame.cam2ego, everywhere, 4)
        black = ~frame.images.any(1).reshape(6, SIZE[0] // 4, 4, -1, 4).any((2, 4))
        assert not frame.depth[black].any()
        seen = frame.depth > 0
        assert seen.mean() > 0.05
        assert (again[seen] <= frame.depth[seen] * 1.0001).all()  # of more points, those in black corners
        assert np.isclose(frame.depth, again, rtol=1e-4)[seen].mean() > 0.85
        lost += (again[black] > 0).sum()
    assert lost > 0


def test_augmentation_depends_on_seed_turn_and_index_alone(index):
    dataset, other = frames(index, STRONG), frames(index, STRONG)
    first = [dataset[Draw(i, 3)] for i in (0, 1, 2)]
    for i in (2, 0, 1):
        assert_same(other[Draw(i, 3)], first[i])
    assert not np.array_equal(other[Draw(0, 4)].intrinsics, first[0].intrinsics)
    reseeded = frames(index, STRONG, seed=1)
    assert not np.array_equal(reseeded[Draw(0, 3)].intrinsics, first[0].intrinsics)
    assert not np.array_equal(first[1].intrinsics, first[2].intrinsics)
    assert_same(dataset[1], dataset[Draw(1, 0)])


def test_stack(index):
    loaded = list(frames(index, STRONG))
    batch = stack(loaded)
    assert batch.token == ["alone", "early", "late"]
    assert [len(points) for points in batch.points] == [len(frame.points) for frame in loaded]
    assert batch.labelled.tolist() == [False, False, False]
    assert batch.semantics.shape == (3, 200, 200, 16) and batch.semantics.dtype == torch.uint8
    np.testing.assert_array_equal(batch.cam2ego[1], loaded[1].cam2ego)


def test_to_moves_tensors_and_lists_of_tensors(index):
    batch = stack(list(frames(index)))
    moved = batch.to(torch.device("meta"))
    assert held(moved).keys() == held(batch).keys()
    assert moved.images.is_meta and all(points.is_meta for points in moved.points)
    assert moved.token == batch.token


def test_image_size_must_fit_the_depth_stride(index):
    with pytest.raises(InputError, match=r"image_size=\[48, 112\] must be multiples of the depth stride 24"):
        frames(index, depth_stride=24)


def test_real_frame(real_data, tmp_path):
    """LiDAR depth agrees with the calibration: below the horizon the road gets farther towards the top."""
    index = load_index(real_data / "nuscenes", "v1.0-mini", tmp_path)
    front = FrameDataset(index.keyframes("mini_train"), (256, 704), 16, False, None, None, 0)[0]["depth"][1]
    road = [np.median(row[row > 0]) for row in front[8:, 18:26]]
    assert all(above > below for above, below in pairwise(road))
    assert 3 < road[-1] < 12


# --- the LIDAR_TOP frame


def with_surroundocc(dataroot, cache):
    """An index whose keyframe "early" has one SurroundOcc voxel, and frames with those labels."""
    (dataroot / "surroundocc/samples").mkdir(parents=True)
    np.save(dataroot / "surroundocc/samples/early.pcd.bin.npy", np.array([[30, 150, 2, 4], [31, 150, 2, 0]]))
    index = load_index(dataroot, "v1.0-tiny", cache)
    return index, SurroundOccLabels(dataroot / "surroundocc")


def test_surroundocc_labels_are_joined_by_lidar_file(dataroot, tmp_path):
    index, source = with_surroundocc(dataroot, tmp_path)
    alone, early, _ = frames(index, labels=source)
    assert [alone.labelled, early.labelled] == [False, True]
    assert early.semantics[30, 150, 2] == 4
    assert (early.semantics != 17).sum() == 2
    assert np.argwhere(~early.mask_camera).tolist() == [[31, 150, 2]]
    assert not alone.mask_camera.any()


@pytest.mark.parametrize("epoch", range(3))
def test_on_the_lidar_grid_everything_is_in_the_lidar_frame(dataroot, tmp_path, epoch):
    """Points fall into the same pixels and depth cells as in the ego frame, but are what the scan file holds."""
    index, source = with_surroundocc(dataroot, tmp_path)
    ego, lidar = frames(index, STRONG), frames(index, STRONG, labels=source)
    for at in range(3):
        frame, reference = lidar[Draw(at, epoch)], ego[Draw(at, epoch)]
        np.testing.assert_array_equal(frame.images, reference.images)
        pixels = [project(s.points, s.intrinsics, s.cam2ego) for s in (frame, reference)]
        front = pixels[0][2] > 0.5
        for found, expected in zip(*pixels, strict=True):
            np.testing.assert_allclose(found[front], expected[front], rtol=1e-4, atol=1e-2)
        assert np.isclose(frame.depth, reference.depth, rtol=1e-4).mean() > 0.98
    scan = np.fromfile(index.keyframe("early").lidar_path, np.float32).reshape(-1, 5)[:, :3]
    unmoved = FrameDataset([index.keyframe("early")], SIZE, None, True, source, None, 0)[0]
    np.testing.assert_allclose(unmoved.lidar2ego, np.eye(4), atol=1e-6)
    distance = np.abs(unmoved.points[:, None, :3] - scan[None]).max(-1).min(1)
    assert len(distance) > 300
    assert distance.max() < 1e-5


@pytest.mark.parametrize("labels", ["occ3d", "surroundocc"])
def test_a_lidar_point_keeps_its_pixel_whatever_is_drawn(dataroot, tmp_path, labels):
    """intrinsics @ (inv(cam2ego) @ lidar2ego)[:3] does not know about mirrored worlds, only about the image."""
    index, source = with_surroundocc(dataroot, tmp_path)
    source = True if labels == "occ3d" else source
    mirrored = frames(index, Augmentation((1.0, 1.0), 0.0, 0.0, 0.0, bev_flip=1.0), labels=source)[1]
    plain = frames(index, labels=source)[1]
    assert not np.allclose(mirrored.lidar2ego, plain.lidar2ego)
    ours, recorded = (lidar2img(frame) for frame in (mirrored, plain))
    np.testing.assert_allclose(ours, recorded, rtol=1e-5, atol=1e-3)


def lidar2img(frame):
    return frame.intrinsics @ (np.linalg.inv(frame.cam2ego) @ frame.lidar2ego)[:, :3]


def test_lidar2img_is_upstreams(real_data, tmp_path):
    """inv(img2global) @ lidar2global with each sensor's own ego pose (docs/formulas.md 8.2), to 1e-3 pixels."""
    root = real_data / "nuscenes"
    nusc = NuScenes("v1.0-mini", str(root), verbose=False)

    def to_global(sample_data):
        sensor = nusc.get("calibrated_sensor", sample_data["calibrated_sensor_token"])
        ego = nusc.get("ego_pose", sample_data["ego_pose_token"])
        poses = (transform_matrix(pose["translation"], Quaternion(pose["rotation"])) for pose in (ego, sensor))
        return next(poses) @ next(poses), sensor["camera_intrinsic"]

    grid = np.stack(np.meshgrid(*(np.arange(-48.0, 50.0, 8), np.arange(-48.0, 50.0, 8), (-4.0, 0.0, 2.0))), -1)
    points = np.pad(grid.reshape(-1, 3), ((0, 0), (0, 1)), constant_values=1.0)
    keyframes = load_index(root, "v1.0-mini", tmp_path).keyframes("all")
    checked = 0
    for source in (None, SurroundOccLabels(None)):
        for frame in FrameDataset(keyframes, (864, 1600), None, False, source, None, 0):
            data = nusc.get("sample", frame.token)["data"]
            lidar2global, _ = to_global(nusc.get("sample_data", data["LIDAR_TOP"]))
            for channel, found in zip(CAMERAS, lidar2img(frame).astype(np.float64), strict=True):
                camera2global, intrinsics = to_global(nusc.get("sample_data", data[channel]))
                crop = np.array([[1.0, 0, 0], [0, 1, -36], [0, 0, 1]])
                expected = crop @ intrinsics @ (np.linalg.inv(camera2global) @ lidar2global)[:3]
                uvd = points @ expected.T
                uv = uvd[:, :2] / uvd[:, 2:]
                seen = (uvd[:, 2] > 1) & (uv >= 0).all(1) & (uv < (1600, 864)).all(1)
                ours = points @ found.T
                assert np.abs((ours[:, :2] / ours[:, 2:] - uv)[seen]).max() < 1e-3
                checked += seen.sum()
    assert checked > 500
