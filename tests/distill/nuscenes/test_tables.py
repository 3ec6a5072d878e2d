"""What tables of converters look like: read where the meaning is beyond doubt, otherwise refused by name."""

import codecs
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from distill.errors import InputError
from distill.nuscenes.index import load_index

VERSION = "v1.0-tiny"
READ = {"calibrated_sensor", "ego_pose", "sample", "sample_data", "scene", "sensor"}


@pytest.fixture
def read(dataroot, tmp_path):
    """A function that opens `dataroot` and returns its keyframes."""
    return lambda: load_index(dataroot, VERSION, tmp_path / "cache").keyframes("all")


@pytest.fixture
def refusal(read):
    """A function that opens `dataroot`, which must fail, and returns the one line that says why."""

    def message():
        with pytest.raises(InputError) as caught:
            read()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message


# --- what nothing uses, and other ways to write a table


def test_only_tables_that_are_used_are_needed(dataroot, read, index):
    for table in (dataroot / VERSION).glob("*.json"):
        if table.stem not in {*READ, "splits"}:
            table.unlink()
    (dataroot / "maps/map.png").unlink()
    (dataroot / VERSION / "lidarseg.json").write_text("[]")  # without its folder of labels
    (dataroot / VERSION / "category.json").write_text("no JSON")
    assert read().tokens == index.tokens
    np.testing.assert_array_equal(read()[1].cam2ego(), index.keyframe("early").cam2ego())


@pytest.mark.parametrize("table", sorted(READ))
def test_a_missing_table_is_named(dataroot, refusal, table):
    (dataroot / VERSION / f"{table}.json").unlink()
    assert f"{table}.json" in refusal()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_may_begin_with_a_byte_order_mark(dataroot, read, index, encoding):
    for table in (dataroot / VERSION).glob("*.json"):
        table.write_text(table.read_text(), encoding=encoding)
    assert read().tokens == index.tokens


LOAD = """
import sys
from pathlib import Path
from distill.augment import Transform
from distill.nuscenes.images import read_images
from distill.nuscenes.index import load_index
from distill.nuscenes.labels import Occ3DLabels
root, cache = map(Path, sys.argv[1:])
keyframe = load_index(root, "v1.0-tiny", cache).keyframes("val")[0]
read_images(keyframe, Transform.fit([(141, 250)] * 6, (64, 112)).images, (64, 112))
assert Occ3DLabels(root / "gts").path(keyframe).exists()
print(ascii((keyframe.token, keyframe.scene)))
"""


@pytest.mark.parametrize("utf8_mode", ["0", "1"])
def test_names_of_any_script_in_any_locale(dataroot, edit, tmp_path, utf8_mode):
    scene, token, image = "münchen-雨天", "größte", "samples/CAM_FRONT/früh.jpg"
    (dataroot / "samples/CAM_FRONT/alone.jpg").rename(dataroot / image)
    (dataroot / "gts" / scene / token).mkdir(parents=True)
    (dataroot / "gts" / scene / token / "labels.npz").touch()
    edit("scene", lambda rows: rows[1].update(name=scene))
    edit("sample", lambda rows: rows[1].update(token=token))
    (dataroot / VERSION / "splits.json").write_text(json.dumps({"val": [scene]}, ensure_ascii=False), "utf-8")

    def rename(rows):
        for row in rows:
            if row["sample_token"] == "alone":
                row["sample_token"] = token
            if row["filename"] == "samples/CAM_FRONT/alone.jpg":
                row["filename"] = image

    edit("sample_data", rename)
    root = dataroot.rename(dataroot.with_name("Daten für 雨"))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": utf8_mode, "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", LOAD, root, tmp_path / "cache"], env=environment, capture_output=True, text=True
    )
    assert ended.stdout.strip() == ascii((token, scene)), ended.stderr


# --- what is no table


def overwrite(table, content):
    return lambda root, edit: (root / VERSION / f"{table}.json").write_bytes(content)


def change(table, row=0, remove=(), **fields):
    """Update one record of a table, and take fields away from it."""

    def alter(rows):
        rows[row].update(fields)
        for field in remove:
            del rows[row][field]

    return lambda root, edit: edit(table, alter)


NO_TABLE = {
    "no dataroot": (lambda root, edit: root.rename(root.with_name("moved")), "no nuScenes dataroot at "),
    "no version": (
        lambda root, edit: (root / VERSION).rename(root / "v1.0-mini"),
        f"no nuScenes version '{VERSION}' in ",
    ),
    "a folder": (
        lambda root, edit: [(root / VERSION / "scene.json").unlink(), (root / VERSION / "scene.json").mkdir()],
        "scene.json: cannot be read (Is a directory)",
    ),
    "cut": (overwrite("ego_pose", b'[{"tok'), "ego_pose.json: not valid JSON"),
    "empty": (overwrite("ego_pose", b""), "ego_pose.json: not valid JSON"),
    "Latin-1": (overwrite("scene", '[{"name": "münchen"}]'.encode("latin-1")), "scene.json: not a text in UTF-8"),
    "a dict": (overwrite("ego_pose", b'{"a": {"token": "a"}}'), "ego_pose.json: not a list of records"),
    "null": (overwrite("sensor", b"null"), "sensor.json: not a list of records"),
    "a list of numbers": (overwrite("sensor", b"[1, 2]"), "sensor.json: not a list of records"),
    "no keyframe": (
        lambda root, edit: [edit(table, lambda rows: rows.clear()) for table in ("sample", "sample_data")],
        "sample.json: no keyframe is in it",
    ),
    "a record is missing": (
        lambda root, edit: edit("ego_pose", lambda rows: rows.pop(0)),
        "sample_data.json: ego_pose_token of record 'late-LIDAR_TOP', LIDAR_TOP of keyframe late, is 'late-LIDAR_TOP',",
    ),
    "no scene": (change("sample", scene_token="x"), "sample.json: scene_token of record 'late' is 'x', and "),
    "no token": (change("ego_pose", remove=["token"]), "ego_pose.json: token of record None is missing"),
    "a token twice": (change("sample", token="early"), "sample.json: 1 of 3 records share their token"),
    "two scans": (
        lambda root, edit: edit("sample_data", lambda rows: rows.append(rows[0] | {"token": "second"})),
        "sample_data.json: two records are LIDAR_TOP of keyframe late",
    ),
    "a scene without name": (change("scene", name=None), "scene.json: name of record 'scene-0002-token' is null"),
    "a number as name": (change("scene", name=7), "scene.json: name of record 'scene-0002-token' is 7, not a text"),
    "half a character": (change("scene", name="\ud800"), "not a text in UTF-8"),
    "no file name": (change("sample_data", filename=""), "filename of record 'late-LIDAR_TOP'"),
    "a null link": (change("sample_data", ego_pose_token=None), "ego_pose_token of record 'late-LIDAR_TOP'"),
    "no flag": (change("sample_data", remove=["is_key_frame"]), "is_key_frame of record 'late-LIDAR_TOP' is missing"),
    "a flag in words": (change("sample_data", is_key_frame="false"), "is 'false', not true or false"),
    "a time in words": (change("sample", timestamp="noon"), "timestamp of record 'late' is 'noon', not a whole number"),
    "a time in seconds": (change("sample", timestamp=1.5), "timestamp of record 'late' is 1.5, not a whole number"),
    "two at a time": (change("sample", timestamp=1_000_000), "keyframes early and late of scene-0002 have the same"),
    "splits of all": (overwrite("splits", b'{"all": []}'), 'splits.json: "all" stands for every'),
    "odd splits": (overwrite("splits", b'{"train": "scene-0001"}'), "splits.json: must map"),
    "null splits": (overwrite("splits", b"null"), "splits.json: must map"),
    "null scenes": (overwrite("splits", b'{"train": null}'), "splits.json: must map"),
    "cut splits": (overwrite("splits", b"{"), "splits.json: not valid JSON"),
    "Latin-1 splits": (overwrite("splits", b'{"tr\xe4in": []}'), "splits.json: not a text in UTF-8"),
}


@pytest.mark.parametrize("fault", NO_TABLE)
def test_what_is_no_table_is_named(dataroot, edit, refusal, fault):
    harm, message = NO_TABLE[fault]
    harm(dataroot, edit)
    assert message in refusal()


def test_a_version_that_cannot_be_looked_at_is_named(dataroot, tmp_path):
    """Root may look into any folder, but no system takes such a name."""
    with pytest.raises(InputError, match=r"/v{300}: cannot be read \(File name too long\)"):
        load_index(dataroot, "v" * 300, tmp_path)


def test_splits_may_begin_with_a_byte_order_mark(dataroot, tmp_path):
    (dataroot / VERSION / "splits.json").write_bytes(codecs.BOM_UTF8 + b'{"val": ["scene-0001"]}')
    assert load_index(dataroot, VERSION, tmp_path).keyframes("val").tokens == ["alone"]


# --- what is no calibration, and no pose

NAN = float("nan")
FRONT_LEFT = "'calibrated-CAM_FRONT_LEFT', CAM_FRONT_LEFT of keyframe alone, is "


@pytest.mark.parametrize(
    ("intrinsics", "message"),
    [
        (
            [[120.0, 0, 125, 0], [0, 120, 70, 0], [0, 0, 1, 0]],
            "[[120.0, 0, 125, 0], [0, 120, 70, 0], [0, 0, 1, 0]], not 3 x",
        ),
        ([], "[], not 3 x 3 finite numbers"),
        (None, "null"),
        (
            [[NAN, 0, 125], [0, 120, 70], [0, 0, 1]],
            "[[nan, 0, 125], [0, 120, 70], [0, 0, 1]], not 3 x 3 finite numbers",
        ),
        ([[120, 0, 125], [0, 120], [0, 0, 1]], "[[120, 0, 125], [0, 120], [0, 0, 1]], not 3 x 3 finite numbers"),
        ([["120", 0, 125], [0, 120, 70], [0, 0, 1]], "[['120', 0, 125], [0, 120, 70], [0, 0, 1]], not 3 x 3"),
        ([[None, 0, 125], [0, 120, 70], [0, 0, 1]], "[[None, 0, 125], [0, 120, 70], [0, 0, 1]], not 3 x 3"),
        (
            [[-120, 0, 125], [0, 120, 70], [0, 0, 1]],
            "[[-120.0, 0.0, 125.0], [0.0, 120.0, 70.0], [0.0, 0.0, 1.0]], no pin",
        ),
        (
            [[120, 0, 125], [0, 0, 70], [0, 0, 1]],
            "[[120.0, 0.0, 125.0], [0.0, 0.0, 70.0], [0.0, 0.0, 1.0]], no pinhole",
        ),
        (
            [[120, 0, 0], [0, 120, 0], [125, 70, 1]],
            "[[120.0, 0.0, 0.0], [0.0, 120.0, 0.0], [125.0, 70.0, 1.0]], no pin",
        ),
    ],
)
def test_what_is_no_camera_is_named(dataroot, edit, refusal, intrinsics, message):
    change("calibrated_sensor", 1, camera_intrinsic=intrinsics)(dataroot, edit)
    assert f"calibrated_sensor.json: camera_intrinsic of record {FRONT_LEFT}{message}" in refusal()


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        (
            {"rotation": [0, 0, 0, 0]},
            "rotation of record {}[0, 0, 0, 0], no rotation (a quaternion w, x, y, z of norm 1)",
        ),
        ({"rotation": [2.0, 0, 0, 0]}, "rotation of record {}[2.0, 0, 0, 0], no rotation"),
        ({"rotation": [1, 0, 0]}, "rotation of record {}[1, 0, 0], not 4 finite numbers"),
        (
            {"rotation": np.eye(3).tolist()},
            "rotation of record {}[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], not",
        ),
        ({"rotation": [NAN] * 4}, "rotation of record {}[nan, nan, nan, nan], not 4 finite numbers"),
        ({"rotation": None}, "rotation of record {}null"),
        ({"translation": [NAN] * 3}, "translation of record {}[nan, nan, nan], not 3 finite numbers"),
        ({"translation": [1e400, 0, 0]}, "translation of record {}[inf, 0, 0], not 3 finite numbers"),
        ({"translation": [1, 2, 3, 1]}, "translation of record {}[1, 2, 3, 1], not 3 finite numbers"),
        ({"translation": "0 0 0"}, "translation of record {}'0 0 0', not 3 finite numbers"),
    ],
)
def test_what_is_no_pose_is_named(dataroot, edit, refusal, pose, message):
    """Of sensors in the ego frame, and of the ego frame in the map."""
    change("calibrated_sensor", 1, **pose)(dataroot, edit)
    assert f"calibrated_sensor.json: {message.format(FRONT_LEFT)}" in refusal()
    change("calibrated_sensor", 1, rotation=[1, 0, 0, 0], translation=[0, 0, 0])(dataroot, edit)
    change("ego_pose", 8, **pose)(dataroot, edit)
    found = message.format("'alone-CAM_FRONT_LEFT', CAM_FRONT_LEFT of keyframe alone, is ")
    assert f"ego_pose.json: {found}" in refusal()


@pytest.mark.parametrize("row", [0, 1])
def test_sensors_are_on_the_vehicle(dataroot, edit, refusal, row):
    """Millimetres; and an ego pose of another place."""
    channel = ["LIDAR_TOP", "CAM_FRONT_LEFT"][row]
    change("calibrated_sensor", row, translation=[1000, 0, 1500])(dataroot, edit)
    assert f"sample_data.json: {channel} of keyframe alone is 180" in refusal()


def test_poses_of_a_keyframe_are_of_one_moment(dataroot, edit, refusal):
    change("ego_pose", 8, translation=[0, 0, 0])(dataroot, edit)
    assert "CAM_FRONT_LEFT of keyframe alone is 1" in refusal()


@pytest.mark.parametrize(
    "intrinsics",
    [[[240, 0, 251], [0, 240, 141], [0, 0, 1]], [[0.48, 0, 0.5], [0, 0.85, 0.5], [0, 0, 1]]],
    ids=["of an image twice the size", "per side of the image"],
)
def test_intrinsics_of_another_image_are_refused(dataroot, edit, refusal, intrinsics):
    change("calibrated_sensor", 1, camera_intrinsic=intrinsics)(dataroot, edit)
    assert f"{FRONT_LEFT}{np.float64(intrinsics).tolist()}, not of an image of 250x141 pixels" in refusal()


def test_a_rounded_rotation_is_one(dataroot, edit, read):
    change("ego_pose", 7, rotation=[0.7071, 0, 0, 0.7071])(dataroot, edit)
    np.testing.assert_allclose(read()[0].ego2global[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("size", [0, -1, 1.5, NAN, True, "1600", 2**31, None])
@pytest.mark.parametrize("side", ["width", "height"])
def test_what_is_no_image_size_is_named(dataroot, edit, refusal, side, size):
    change("sample_data", 8, **{side: size})(dataroot, edit)
    found = "null" if size is None else f"{size!r}, not a whole number from 1 on"
    assert (
        f"sample_data.json: {side} of record 'alone-CAM_FRONT_LEFT', CAM_FRONT_LEFT of keyframe alone, is {found}"
        in refusal()
    )


def test_a_scan_needs_no_size_and_no_intrinsics(dataroot, edit, read):
    change("sample_data", remove=["width", "height"])(dataroot, edit)
    change("calibrated_sensor", remove=["camera_intrinsic"])(dataroot, edit)
    assert len(read()) == 3
