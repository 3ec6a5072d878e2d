import multiprocessing
import os

import numpy as np
import pytest
from pyquaternion import Quaternion

from distill.errors import InputError
from distill.nuscenes.index import load_index
from distill.nuscenes.layout import CAMERAS, nuscenes_scans

VERSION = "v1.0-tiny"


def test_order_is_scene_then_time_and_neighbours_stay_within_the_scene(index):
    assert index.tokens == ["alone", "early", "late"]
    assert index.scenes == ["scene-0001", "scene-0002", "scene-0002"]
    assert [(k.previous, k.next) for k in index.keyframes("all")] == [("", ""), ("", "late"), ("early", "")]


def test_neighbours_do_not_depend_on_the_selection(index):
    (late,) = index.keyframes("train")[1:]
    assert (late.token, late.previous) == ("late", "early")


def test_before(dataroot, edit, tmp_path):
    """The nearest first, as many as the scene has; nothing of another scene, whatever was selected."""
    edit("sample", lambda rows: rows[1].update(scene_token="scene-0002-token", timestamp=1_250_000))
    edit("scene", lambda rows: rows.append({"token": "first", "name": "scene-0000"}))
    edit("sample", lambda rows: rows.append(rows[0] | {"token": "elsewhere", "scene_token": "first"}))
    edit(
        "sample_data",
        lambda rows: rows.extend(
            row | {"token": f"{row['token']}-2", "sample_token": "elsewhere"} for row in rows[: len(rows) // 3]
        ),
    )
    index = load_index(dataroot, VERSION, tmp_path)
    assert index.tokens == ["elsewhere", "early", "alone", "late"]
    for token, n, tokens in (
        ("late", 1, ["alone"]),
        ("late", 2, ["alone", "early"]),
        ("late", 9, ["alone", "early"]),
        ("late", 0, []),
        ("early", 3, []),
        ("elsewhere", 3, []),
    ):
        assert index.before(token, n).tokens == tokens
        past = index.select(["elsewhere", token]).before(1, n)
        assert [keyframe.token for keyframe in past] == tokens
    with pytest.raises(InputError, match="no keyframe 'lat'"):
        index.before("lat", 1)


def test_splits(index):
    assert index.keyframes("train").tokens == ["early", "late"]
    assert index.keyframes("val").tokens == ["alone"]
    with pytest.raises(InputError, match=r"'mini_val' has no scenes in .* use one of train, val, all"):
        index.keyframes("mini_val")


def test_own_splits_go_by_their_own_names(dataroot, tmp_path):
    """Whatever the version calls its own; and it is said what a split lists."""
    (dataroot / VERSION).rename(dataroot / "v1.0-mini")
    index = load_index(dataroot, "v1.0-mini", tmp_path)
    assert index.keyframes("train").tokens == ["early", "late"]
    (dataroot / "v1.0-mini/splits.json").write_text('{"val": ["late"]}')
    with pytest.raises(
        InputError, match=r"'mini_val' has no scenes .* list names of scenes, such as scene-0001, under"
    ):
        load_index(dataroot, "v1.0-mini", tmp_path).keyframes("val")


def test_keyframe_by_token(index):
    assert index.keyframe("late").timestamp == 1_500_000
    with pytest.raises(InputError, match="no keyframe 'lat'"):
        index.keyframe("lat")


def test_paths(index):
    keyframe = index.keyframe("late")
    assert [camera.channel for camera in keyframe.cameras] == list(CAMERAS)
    assert all(camera.path.is_file() and camera.channel in str(camera.path) for camera in keyframe.cameras)
    assert keyframe.lidar_path.is_file()


def test_camera_to_ego_includes_the_motion_between_the_exposures(index):
    """The car drives at 10 m/s along global x, turned by 30 degrees; camera i is exposed (i + 1) * 10 ms early."""
    keyframe = index.keyframe("late")
    for i, (camera, cam2ego) in enumerate(zip(keyframe.cameras, keyframe.cam2ego(), strict=True)):
        backwards = Quaternion(axis=(0, 0, 1), degrees=-30).rotate(np.array([-0.1 * (i + 1), 0, 0]))
        np.testing.assert_allclose(cam2ego[:3, 3], np.array([1.0, 0.1 * (i + 1), 1.5]) + backwards, atol=1e-9)
        np.testing.assert_allclose(cam2ego[:3, :3], camera.cam2ego[:3, :3], atol=1e-12)


def test_second_opening_reads_no_tables(dataroot, tmp_path):
    first = load_index(dataroot, VERSION, tmp_path / "cache")
    for table in (dataroot / VERSION).glob("*.json"):
        state = table.stat()
        table.write_bytes(b" " * state.st_size)
        os.utime(table, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = load_index(dataroot, VERSION, tmp_path / "cache")
    assert second.tokens == first.tokens
    np.testing.assert_array_equal(second.keyframe("late").cam2ego(), first.keyframe("late").cam2ego())


def test_changed_table_is_read_anew(dataroot, tmp_path):
    load_index(dataroot, VERSION, tmp_path)
    # The size stays the same: the modification time must tell.
    table = dataroot / VERSION / "sample.json"
    table.write_text(table.read_text().replace("1000000", "1900000"))
    assert load_index(dataroot, VERSION, tmp_path).tokens == ["alone", "late", "early"]


def test_a_crash_while_caching_leaves_no_index(dataroot, tmp_path, monkeypatch):
    def crash(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(KeyboardInterrupt):
            load_index(dataroot, VERSION, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))
    assert load_index(dataroot, VERSION, tmp_path / "cache").tokens == ["alone", "early", "late"]


def test_processes_starting_together_read_the_tables_once(dataroot, tmp_path, capfd):
    starts = multiprocessing.get_context("fork")
    ranks = [starts.Process(target=load_index, args=(dataroot, VERSION, tmp_path / "cache")) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert capfd.readouterr().err.count("reading the nuScenes tables") == 1


def test_version_without_split_lists_offers_all_keyframes_only(dataroot, tmp_path):
    (dataroot / VERSION / "splits.json").unlink()
    index = load_index(dataroot, VERSION, tmp_path)
    assert len(index.keyframes("all")) == 3
    with pytest.raises(InputError, match="use one of all"):
        index.keyframes("train")


def test_damaged_cache_is_named(dataroot, tmp_path):
    load_index(dataroot, VERSION, tmp_path)
    (cached,) = tmp_path.glob("*.npy")
    cached.write_bytes(cached.read_bytes()[:-10])
    with pytest.raises(InputError, match=f"{cached.name}: not an index of keyframes any more .* delete this file"):
        load_index(dataroot, VERSION, tmp_path)


def test_unwritable_cache_is_named(dataroot, tmp_path):
    (tmp_path / "file").touch()
    message = r"cannot keep the index of keyframes in .*/file/cache .*data\.cache_dir= .*OCC_DISTILL_CACHE"
    with pytest.raises(InputError, match=message):
        load_index(dataroot, VERSION, tmp_path / "file/cache")


def test_the_columns_of_scans_belong_to_the_dataroot(dataroot, tmp_path):
    assert load_index(dataroot, VERSION, tmp_path).keyframe("late").scan == nuscenes_scans(5)
    index = load_index(dataroot, VERSION, tmp_path, 4)
    assert {
        len(k.scan.columns) for k in (index.keyframe("late"), *index.keyframes("train"), *index.keyframes("all")[1:])
    } == {4}


def test_some_keyframes_are_chosen(index):
    chosen = index.keyframes("train").where([False, True])
    assert (chosen.tokens, chosen[0].previous) == (["late"], "early")


def test_real_keyframes_agree_with_the_devkit(real_data, tmp_path):
    from nuscenes import NuScenes

    index = load_index(real_data / "nuscenes", "v1.0-mini", tmp_path)
    assert index.splits == ["mini_train", "mini_val"]
    assert len(index.keyframes("mini_train")) == 1
    first, second = index.keyframes("mini_val")
    assert (first.next, second.previous) == (second.token, first.token)

    nusc = NuScenes("v1.0-mini", str(real_data / "nuscenes"), verbose=False)
    for keyframe in index.keyframes("all"):
        data = nusc.get("sample", keyframe.token)["data"]
        _, boxes, _ = nusc.get_sample_data(data["LIDAR_TOP"])
        for camera, cam2ego in zip(keyframe.cameras, keyframe.cam2ego(), strict=True):
            path, in_camera, intrinsics = nusc.get_sample_data(data[camera.channel], box_vis_level=0)
            assert str(camera.path) == path
            np.testing.assert_array_equal(camera.intrinsics, intrinsics)
            # A box the devkit brings from the map to the camera must be where we bring it from LiDAR over ego.
            lidar2cam = np.linalg.inv(cam2ego) @ keyframe.lidar2ego
            by_token = {box.token: box.center for box in boxes}
            for box in in_camera:
                ours = lidar2cam[:3, :3] @ by_token[box.token] + lidar2cam[:3, 3]
                np.testing.assert_allclose(ours, box.center, atol=1e-9)


def test_real_matrices_are_the_devkits(real_data, tmp_path):
    from nuscenes import NuScenes

    nusc = NuScenes("v1.0-mini", str(real_data / "nuscenes"), verbose=False)

    def matrix(table, token):
        pose = nusc.get(table, token)
        expected = np.eye(4)
        expected[:3, :3] = Quaternion(pose["rotation"]).rotation_matrix
        expected[:3, 3] = pose["translation"]
        return expected

    for keyframe in load_index(real_data / "nuscenes", "v1.0-mini", tmp_path).keyframes("all"):
        data = nusc.get("sample", keyframe.token)["data"]
        for sensor, sensor2ego, ego2global in (
            ("LIDAR_TOP", keyframe.lidar2ego, keyframe.ego2global),
            *((camera.channel, camera.cam2ego, camera.ego2global) for camera in keyframe.cameras),
        ):
            record = nusc.get("sample_data", data[sensor])
            calibrated, pose = record["calibrated_sensor_token"], record["ego_pose_token"]
            np.testing.assert_allclose(sensor2ego, matrix("calibrated_sensor", calibrated), atol=1e-12)
            np.testing.assert_allclose(ego2global, matrix("ego_pose", pose), atol=1e-12)
