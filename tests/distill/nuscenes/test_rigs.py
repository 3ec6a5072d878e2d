"""Rigs of other vehicles: as many cameras as they have, by their own names."""

import json

import numpy as np
import pytest
from tiny import FOCAL, HEIGHT, VERSION, WIDTH, write_dataroot

from distill.augment import Transform
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.nuscenes.images import read_images
from distill.nuscenes.index import load_index
from distill.nuscenes.inventory import SOURCES, sources_of, summary, take_stock
from distill.nuscenes.labels import Occ3DLabels
from distill.nuscenes.layout import CAMERAS
from distill.nuscenes.overlay import IMAGE_SIZE, draw_overlay

RIGS = {
    # as listed in the tables -> in order
    "four": (("vorne", "links", "hinten", "kamera für rechts"), ("hinten", "kamera für rechts", "links", "vorne")),
    "seven": (("ROOF", *reversed(CAMERAS)), (*CAMERAS, "ROOF")),
    "two of nuScenes and one": (("CAM_BACK", "A", "CAM_FRONT"), ("CAM_FRONT", "CAM_BACK", "A")),
    "three of nuScenes": (("CAM_BACK", "CAM_FRONT", "CAM_FRONT_LEFT"), CAMERAS),
}


@pytest.fixture(params=RIGS)
def rig(request, tmp_path):
    """An index of a tiny dataroot with this rig, and its channels in order."""
    listed, ordered = RIGS[request.param]
    root = write_dataroot(tmp_path / "nuscenes", cameras=listed)
    return load_index(root, VERSION, tmp_path / "cache"), listed, ordered


def stock_of(index, split="all"):
    labels = Occ3DLabels(index.root / "gts")
    return take_stock(index.keyframes(split), labels, OCC3D_CLASSES.free, cameras=True, lidar=True)


def test_channels_are_those_of_the_tables_in_a_stated_order(rig):
    index, listed, ordered = rig
    assert index.channels == index.keyframes("train").channels == ordered
    for keyframe in index.keyframes("all"):
        assert tuple(camera.channel for camera in keyframe.cameras) == ordered
        assert keyframe.cam2ego().shape == (len(ordered), 4, 4)
        for camera in keyframe.cameras:
            assert camera.present == (camera.channel in listed)
            if camera.present:
                assert camera.path.is_file() and camera.channel in camera.path.parts
                assert camera.cam2ego[1, 3] == pytest.approx(0.1 * (1 + listed.index(camera.channel)))
    assert index.keyframes("all").absent_cameras == {channel: 3 for channel in ordered if channel not in listed}


def test_images_are_read(rig):
    index, listed, ordered = rig
    transform = Transform.fit([(HEIGHT, WIDTH)] * len(ordered), (HEIGHT, WIDTH))
    images, intrinsics, shown = read_images(index.keyframe("late"), transform.images, (HEIGHT, WIDTH))
    assert (images.shape, shown.shape) == ((len(ordered), 3, HEIGHT, WIDTH), (len(ordered), HEIGHT, WIDTH))
    there = np.array([channel in listed for channel in ordered])
    assert (images.any((1, 2, 3)) == there).all() and (shown.all((1, 2)) == there).all()
    np.testing.assert_allclose(intrinsics[there, 0, 0], FOCAL)


def test_digests_have_a_column_for_each_camera(rig):
    index, listed, ordered = rig
    before = stock_of(index, "train")
    assert before.sources == sources_of(ordered) == (*ordered, "LIDAR_TOP", "calibration", "labels")
    absent = {name for name, digest in zip(before.sources, before.digests["late"], strict=True) if not digest}
    assert absent == {"labels", *ordered} - {*listed}
    image = next(camera for camera in index.keyframe("late").cameras if camera.channel == listed[0])
    image.path.write_bytes(image.path.read_bytes() + b"more")
    after = stock_of(index, "train")
    for token in ("early", "late"):
        changed = np.array(before.sources)[before.digests[token] != after.digests[token]].tolist()
        assert changed == ([listed[0]] if token == "late" else [])
    others = [source for source in before.sources if source != listed[0]]
    assert before.identity(others) == after.identity(others)
    assert before.identity(before.sources) != after.identity(before.sources)


def test_an_absent_camera_is_said_by_its_own_name(tmp_path):
    root = write_dataroot(tmp_path / "own", cameras=RIGS["four"][0])
    table = root / VERSION / "sample_data.json"
    rows = json.loads(table.read_text())
    table.write_text(json.dumps([row for row in rows if row["token"] != "late-links"]))
    stock = stock_of(load_index(root, VERSION, tmp_path / "cache"), "train")
    assert "1 of 2 keyframes of train have no links" in summary({"train": stock}, Occ3DLabels(root / "gts"), {})
    table.write_text(
        json.dumps([row for row in rows if not row["token"].startswith("late-") or "LIDAR" in row["token"]])
    )
    message = r"keyframe late has none of hinten, kamera für rechts, links, vorne in .* \(it has LIDAR_TOP\)"
    with pytest.raises(InputError, match=message):
        load_index(root, VERSION, tmp_path / "cache")


def test_the_digests_of_nuscenes_are_those_that_stores_and_checkpoints_keep():
    cameras = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
    assert SOURCES == sources_of(CAMERAS) == (*cameras, "LIDAR_TOP", "calibration", "labels")


def test_a_picture_of_any_rig(rig):
    index, _, ordered = rig
    sheet = draw_overlay(index.keyframe("late"), np.empty((0, 8, 3)))
    assert sheet.size == (3 * IMAGE_SIZE[1], -(-len(ordered) // 3) * IMAGE_SIZE[0])
