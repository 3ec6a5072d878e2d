from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from distill.augment import Augmentation
from distill.errors import InputError
from distill.nuscenes.frames import FrameDataset, collate, to_device
from distill.nuscenes.index import load_index
from distill.nuscenes.points import depth_maps

STRONG = Augmentation(resize=(1.0, 1.3), image_flip=0.5, colour=0.2, bev_flip=0.5)  # leaves no black borders
SIZE, STRIDE = (48, 112), 16


def frames(index, augmentation=None, depth_stride=STRIDE, lidar=True, labels=True, seed=0):
    return FrameDataset(index.keyframes("all"), SIZE, depth_stride, lidar, labels, augmentation, seed)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_everything_of_a_sample(index):
    sample = frames(index)[2]
    assert (sample["token"], sample["scene"], sample["labelled"]) == ("late", "scene-0002", False)
    shapes = {key: (value.dtype.name, value.shape) for key, value in sample.items() if isinstance(value, np.ndarray)}
    points = shapes.pop("points")
    assert points[0] == "float32" and points[1][1:] == (4,)
    assert shapes == {
        "images": ("uint8", (6, 3, 48, 112)),
        "intrinsics": ("float32", (6, 3, 3)),
        "cam2ego": ("float32", (6, 4, 4)),
        "depth": ("float32", (6, 3, 7)),
        "semantics": ("uint8", (200, 200, 16)),
        "mask_camera": ("bool", (200, 200, 16)),
        "mask_lidar": ("bool", (200, 200, 16)),
    }


def test_only_what_is_asked_for_is_read(dataroot, tmp_path):
    index = load_index(dataroot, "v1.0-tiny", tmp_path)
    for keyframe in index.keyframes("all"):
        keyframe.lidar_path.unlink()
    sample = frames(index, depth_stride=None, lidar=False, labels=False)[0]
    assert sample.keys() == {"token", "scene", "images", "intrinsics", "cam2ego"}
    with pytest.raises(InputError, match="LiDAR scan of keyframe alone is missing"):
        frames(index, lidar=False)[0]


def test_labels_are_joined_by_token(dataroot, tmp_path):
    index = load_index(dataroot, "v1.0-tiny", tmp_path)
    path = index.keyframe("early").labels_path
    path.parent.mkdir(parents=True)
    semantics = np.random.default_rng(0).integers(0, 18, (200, 200, 16), dtype=np.uint8)
    np.savez(path, semantics=semantics, mask_camera=semantics > 8, mask_lidar=semantics > 4)
    alone, early, late = frames(index)
    assert [sample["labelled"] for sample in (alone, early, late)] == [False, True, False]
    np.testing.assert_array_equal(early["semantics"], semantics)
    np.testing.assert_array_equal(early["mask_camera"], semantics > 8)


@pytest.mark.parametrize("epoch", range(4))
def test_depth_is_what_the_sample_itself_projects(index, epoch):
    """Points, cameras and depth stay consistent whatever is drawn."""
    dataset = frames(index, STRONG)
    dataset.set_epoch(epoch)
    whole = np.tile([0, 0, SIZE[1], SIZE[0]], (6, 1))
    for sample in dataset:
        again = depth_maps(sample["points"], sample["intrinsics"], sample["cam2ego"], whole, SIZE, STRIDE)
        assert (sample["depth"] > 0).mean() > 0.2
        # A point within float32 of a cell border may change cells.
        assert np.isclose(sample["depth"], again, rtol=1e-4).mean() > 0.98


def test_augmentation_depends_on_seed_epoch_and_index_alone(index):
    dataset, other = frames(index, STRONG), frames(index, STRONG)
    for data in (dataset, other):
        data.set_epoch(3)
    first = [dataset[i] for i in (0, 1, 2)]
    for i in (2, 0, 1):
        assert_equal(other[i], first[i])
    other.set_epoch(4)
    assert not np.array_equal(other[0]["intrinsics"], first[0]["intrinsics"])
    reseeded = frames(index, STRONG, seed=1)
    reseeded.set_epoch(3)
    assert not np.array_equal(reseeded[0]["intrinsics"], first[0]["intrinsics"])
    assert not np.array_equal(first[1]["intrinsics"], first[2]["intrinsics"])


def test_persistent_workers_follow_the_epoch(index):
    dataset = frames(index, STRONG, lidar=False, labels=False)
    loader = DataLoader(dataset, batch_size=3, num_workers=1, persistent_workers=True, collate_fn=collate)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        (batch,) = loader
        assert_equal(batch, collate([dataset[i] for i in range(3)]))


def test_collate(index):
    samples = list(frames(index, STRONG))
    batch = collate(samples)
    assert batch["token"] == ["alone", "early", "late"]
    assert [len(points) for points in batch["points"]] == [len(sample["points"]) for sample in samples]
    assert batch["labelled"].tolist() == [False, False, False]
    assert batch["semantics"].shape == (3, 200, 200, 16) and batch["semantics"].dtype == torch.uint8
    np.testing.assert_array_equal(batch["cam2ego"][1], samples[1]["cam2ego"])


def test_to_device_moves_tensors_and_lists_of_tensors(index):
    batch = collate(list(frames(index)))
    moved = to_device(batch, torch.device("meta"))
    assert moved.keys() == batch.keys()
    assert moved["images"].is_meta and all(points.is_meta for points in moved["points"])
    assert moved["token"] == batch["token"]


def test_image_size_must_fit_the_depth_stride(index):
    with pytest.raises(InputError, match=r"image_size=\[48, 112\] must be multiples of the depth stride 24"):
        frames(index, depth_stride=24)


def test_real_sample(real_data, tmp_path):
    """LiDAR depth agrees with the calibration: below the horizon the road gets farther towards the top."""
    index = load_index(real_data / "nuscenes", "v1.0-mini", tmp_path)
    front = FrameDataset(index.keyframes("mini_train"), (256, 704), 16, False, True, None, 0)[0]["depth"][1]
    road = [np.median(row[row > 0]) for row in front[8:, 18:26]]
    assert all(above > below for above, below in pairwise(road))
    assert 3 < road[-1] < 12
