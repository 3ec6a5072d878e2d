"""Images and scans between keyframes."""

import multiprocessing

import numpy as np
import pytest
from tiny import HEIGHT, VERSION, WIDTH, ego_pose

from distill.errors import InputError
from distill.nuscenes.index import NuScenesIndex, load_index
from distill.nuscenes.layout import CAMERAS, LIDAR
from distill.nuscenes.tables import Tables, read_tables

FRONT = "CAM_FRONT"


@pytest.fixture
def swept(dataroot, edit):
    """A function that adds sweeps to `dataroot`: sample token, channel and milliseconds since 0."""

    def add(*sweeps):
        for sample, channel, time in sweeps:
            token = f"{sample}-{channel}-{time}"
            translation, rotation = ego_pose(1000 * time)
            pose = {"token": token, "translation": list(translation), "rotation": list(rotation)}
            of_keyframe = {"token": f"{sample}-{channel}", "filename": f"sweeps/{channel}/{time}"}
            edit("ego_pose", lambda rows, pose=pose: rows.append(pose))
            edit(
                "sample_data",
                lambda rows, same=of_keyframe, token=token, time=time: rows.append(
                    next(row for row in rows if row["token"] == same["token"])
                    | {**same, "token": token, "ego_pose_token": token, "timestamp": 1000 * time, "is_key_frame": False}
                ),
            )
        return dataroot

    return add


SWEEPS = (
    ("early", FRONT, 980),  # before the first keyframe, at 1.0 s
    ("late", FRONT, 1400),
    ("late", FRONT, 1200),  # not in the order of time
    ("late", LIDAR, 1450),
    ("late", LIDAR, 1550),  # after the last keyframe
    ("late", "CAM_BACK", 1300),
    ("alone", FRONT, 8900),  # of another scene
)


def times(sweeps):
    return [sweep.timestamp // 1000 for sweep in sweeps]


def test_the_nearest_come_first_and_none_of_another_scene(swept, tmp_path):
    index = load_index(swept(*SWEEPS), VERSION, tmp_path)
    for token, channel, n, expected in (
        ("late", FRONT, 1, [1400]),
        ("late", FRONT, 9, [1400, 1200, 980]),
        ("late", FRONT, 0, []),
        ("late", LIDAR, 9, [1450]),
        ("late", "CAM_BACK_LEFT", 9, []),
        ("early", FRONT, 9, [980]),
        ("early", LIDAR, 9, []),
        ("alone", FRONT, 9, [8900]),
    ):
        assert times(index.sweeps(token, channel, n)) == expected
        assert times(index.select(["alone", token]).sweeps(1, channel, n)) == expected


def test_what_a_sweep_knows(swept, tmp_path):
    index = load_index(swept(*SWEEPS), VERSION, tmp_path)
    camera = index.keyframe("late").cameras[CAMERAS.index(FRONT)]
    (image,) = index.sweeps("late", FRONT, 1)
    (scan,) = index.sweeps("late", LIDAR, 1)
    assert (image.channel, image.path) == (FRONT, index.root / f"sweeps/{FRONT}/1400")
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(image.intrinsics, camera.intrinsics)
    np.testing.assert_array_equal(image.sensor2ego, camera.cam2ego)
    translation, rotation = ego_pose(1_400_000)
    np.testing.assert_allclose(image.ego2global[:3, 3], translation)
    np.testing.assert_allclose(image.ego2global[:3, :3], rotation.rotation_matrix, atol=1e-12)
    assert (scan.width, scan.height, scan.intrinsics) == (0, 0, None)
    np.testing.assert_array_equal(scan.sensor2ego, index.keyframe("late").lidar2ego)


def test_a_dataroot_without_sweeps_has_none(index):
    assert index.sweeps("late", FRONT, 5) == index.sweeps("late", LIDAR, 5) == []
    with pytest.raises(InputError, match=r"no channel 'CAM_FRNT' in .*: it has CAM_FRONT_LEFT, .*, LIDAR_TOP"):
        index.sweeps("late", "CAM_FRNT", 5)


def test_radar_is_none_of_them(swept, edit, tmp_path):
    root = swept(*SWEEPS)
    edit("sensor", lambda rows: rows.append({"token": "radar", "channel": "RADAR_FRONT", "modality": "radar"}))
    edit("calibrated_sensor", lambda rows: rows.append({"token": "radar", "sensor_token": "radar"}))
    edit("sample_data", lambda rows: rows[-2].update(calibrated_sensor_token="radar"))
    index = load_index(root, VERSION, tmp_path)
    assert index.channels == CAMERAS
    assert times(index.sweeps("late", "CAM_BACK", 9)) == []
    assert times(index.sweeps("late", FRONT, 9)) == [1400, 1200, 980]


def test_they_are_read_when_they_are_asked_for_and_once(swept, tmp_path, capfd):
    """By whichever of the loader's workers comes first; an index that nobody asks is none the larger."""
    index = load_index(swept(*SWEEPS), VERSION, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 1
    starts = multiprocessing.get_context("fork")
    workers = [starts.Process(target=index.keyframes("all").sweeps, args=(2, FRONT, 1)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert times(load_index(index.root, VERSION, tmp_path).sweeps("late", FRONT, 1)) == [1400]
    assert capfd.readouterr().err.count("reading the sweeps of") == 1


def test_an_index_that_is_not_kept_has_them_too(swept):
    tables = Tables(swept(*SWEEPS), VERSION)
    index = NuScenesIndex(tables.folder.parent, VERSION, read_tables(tables))
    assert times(index.sweeps("late", FRONT, 2)) == [1400, 1200]


@pytest.mark.parametrize(
    ("table", "fields", "message"),
    [
        ("ego_pose", {"rotation": [0, 0, 0, 0]}, r"ego_pose\.json: rotation of record 'late-CAM_FRONT-1400'"),
        ("sample_data", {"width": 0}, r"sample_data\.json: width of record 'late-CAM_FRONT-1400'"),
        ("sample_data", {"ego_pose_token": "gone"}, r"ego_pose_token of record 'late-CAM_FRONT-1400'"),
        ("sample_data", {"timestamp": "noon"}, r"timestamp of record 'late-CAM_FRONT-1400' is 'noon'"),
    ],
)
def test_what_is_wrong_with_them_is_told_to_who_asks(swept, edit, tmp_path, table, fields, message):
    root = swept(("late", FRONT, 1400))
    edit(table, lambda rows: rows[-1].update(fields))
    index = load_index(root, VERSION, tmp_path)
    assert len(index.keyframe("late").cameras) == 6
    with pytest.raises(InputError, match=message):
        index.sweeps("late", FRONT, 1)
