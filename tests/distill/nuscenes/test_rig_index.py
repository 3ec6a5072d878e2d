"""An index of one's own: it says what nuScenes' tables say, and every fault is told with its place."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image
from pypcd4 import Encoding, PointCloud
from tiny import VERSION, write_dataroot

from distill.errors import InputError
from distill.grids import SURROUNDOCC
from distill.nuscenes import rig as rig_module
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import load_index
from distill.nuscenes.inventory import settle_missing, take_stock
from distill.nuscenes.labels import Occ3DLabels
from distill.nuscenes.layout import CAMERAS
from distill.nuscenes.points import read_points
from distill.nuscenes.rig import entries_of, load_rig, read_rig
from distill.nuscenes.rig_format import RigIndex

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads(Path(rig_module.__file__).with_name("rig_index.schema.json").read_text())
EXAMPLE = json.loads(re.findall(r"```json\n(.+?)```", (ROOT / "docs/own_data.md").read_text(), re.DOTALL)[0])


def described(index) -> dict:
    """An index of nuScenes in one's own format: cameras shared by all frames, the LiDAR files of five columns."""
    keyframes = list(index.keyframes("all"))
    columns = ["x", "y", "z", "intensity", "ring"]
    return {
        "format": "occ-distill-rig",
        "version": 1,
        "cameras": {
            camera.channel: {
                "width": camera.width,
                "height": camera.height,
                "intrinsics": camera.intrinsics.tolist(),
                "cam2ego": camera.cam2ego.tolist(),
            }
            for camera in keyframes[0].cameras
        },
        "lidar": {"lidar2ego": keyframes[0].lidar2ego.tolist(), "columns": columns, "intensity_max": 255},
        "splits": {"train": ["scene-0002"], "val": ["scene-0001"]},
        "frames": [
            {
                "token": keyframe.token,
                "scene": keyframe.scene,
                "timestamp": keyframe.timestamp,
                "ego2global": keyframe.ego2global.tolist(),
                "cameras": {
                    camera.channel: {
                        "path": str(camera.path.relative_to(index.root)),
                        "ego2global": camera.ego2global.tolist(),
                    }
                    for camera in keyframe.cameras
                },
                "lidar": {"path": str(keyframe.lidar_path.relative_to(index.root))},
                "labels": f"labels/{keyframe.token}.npz",
            }
            for keyframe in reversed(keyframes)
        ],
    }


@pytest.fixture
def nuscenes(dataroot, tmp_path):
    return load_index(dataroot, VERSION, tmp_path / "cache")


@pytest.fixture
def own(nuscenes):
    """What the index of the tiny dataroot says, in one's own format."""
    return described(nuscenes)


def write(folder: Path, index: dict, lines: bool = False) -> Path:
    if not lines:
        (folder / "frames.json").write_text(json.dumps(index))
        return folder / "frames.json"
    header = {key: value for key, value in index.items() if key != "frames"}
    (folder / "frames.jsonl").write_text("\n".join(map(json.dumps, [header, *index["frames"]])))
    return folder / "frames.jsonl"


@pytest.mark.parametrize("lines", [False, True], ids=["json", "jsonl"])
def test_it_is_the_index_that_nuscenes_tables_make(nuscenes, own, tmp_path, lines):
    file = write(nuscenes.root, own, lines)
    for _ in range(2):  # read, then from what is kept of it
        index = load_rig(file, None, tmp_path / "cache")
        assert (index.tokens, index.scenes, index.splits) == (nuscenes.tokens, nuscenes.scenes, nuscenes.splits)
        assert index.channels == CAMERAS
        for split in ("train", "val", "all"):
            assert index.keyframes(split).tokens == nuscenes.keyframes(split).tokens
    for ours, theirs in zip(index.keyframes("all"), nuscenes.keyframes("all"), strict=True):
        assert (ours.previous, ours.next, ours.lidar_path) == (theirs.previous, theirs.next, theirs.lidar_path)
        assert ours.labels == nuscenes.root / f"labels/{ours.token}.npz"
        np.testing.assert_allclose(ours.cam2ego(), theirs.cam2ego(), atol=1e-9)
        np.testing.assert_array_equal(read_points(ours), read_points(theirs))
    assert [k.token for k in index.before("late", 3)] == ["early"]


def test_frames_digests_and_pasts_are_those_of_nuscenes(nuscenes, own, tmp_path):
    index = load_rig(write(nuscenes.root, own), None, tmp_path / "cache")
    ours, theirs = (
        FrameDataset(each.keyframes("all"), (64, 160), 16, True, None, None, seed=0, history=1)[2]
        for each in (index, nuscenes)
    )
    for name in ("images", "intrinsics", "cam2ego", "lidar2ego", "depth", "points"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_array_equal(ours.past[0].ego2present, theirs.past[0].ego2present)
    stocks = [
        take_stock(each.keyframes("all"), Occ3DLabels(nuscenes.root / "gts"), 17, True, True)
        for each in (index, nuscenes)
    ]
    assert stocks[0].identity(stocks[0].sources) == stocks[1].identity(stocks[1].sources)


def test_a_frame_may_lack_what_others_have(nuscenes, own, tmp_path):
    """A camera, its scan, its labels; and the rig its LiDAR."""
    late = next(frame for frame in own["frames"] if frame["token"] == "late")
    del late["cameras"]["CAM_BACK"], late["lidar"], late["labels"]
    keyframe = load_rig(write(nuscenes.root, own), None, tmp_path / "cache").keyframe("late")
    assert [camera.channel for camera in keyframe.cameras if not camera.present] == ["CAM_BACK"]
    assert (keyframe.lidar_path, keyframe.labels) == (None, None)
    np.testing.assert_allclose(keyframe.lidar2ego, nuscenes.keyframe("late").lidar2ego)
    for frame in own["frames"]:
        frame.pop("lidar", None)
    del own["lidar"]
    index = load_rig(write(nuscenes.root, own), None, tmp_path / "cache")
    assert index.keyframe("early").lidar2ego is None
    assert FrameDataset(index.keyframes("all"), (64, 160), None, False, None, None, seed=0)[0].lidar2ego is None


def test_cameras_are_those_of_the_index_in_its_order(nuscenes, own, tmp_path):
    names = {"CAM_BACK": "hinten", "CAM_FRONT": "Kamera vorn"}
    own["cameras"] = {name: own["cameras"][channel] for channel, name in names.items()}
    for frame in own["frames"]:
        frame["cameras"] = {name: frame["cameras"][channel] for channel, name in reversed(names.items())}
    assert load_rig(write(nuscenes.root, own), None, tmp_path / "cache").channels == ("hinten", "Kamera vorn")


def test_a_frame_says_anew_what_the_header_says(nuscenes, own, tmp_path):
    own["cameras"] = {}
    known = described(nuscenes)["cameras"]
    for frame in own["frames"]:
        for name, camera in frame["cameras"].items():
            camera |= known[name]
    changed = own["frames"][0]["cameras"]["CAM_BACK"]
    changed["intrinsics"] = [[130.0, 0, 120], [0, 130, 70], [0, 0, 1]]
    index = load_rig(write(nuscenes.root, own), None, tmp_path / "cache")
    back = {key.token: key.cameras[CAMERAS.index("CAM_BACK")] for key in index.keyframes("all")}
    focal = {token: camera.intrinsics[0, 0] for token, camera in back.items()}
    assert focal == {"alone": 120, "early": 120, "late": 120} | {own["frames"][0]["token"]: 130}


def test_scans_are_read_by_their_columns(nuscenes, own, tmp_path):
    """The same points as rows of float32, as an array of other columns, and as point cloud files of either kind."""
    expected = read_points(nuscenes.keyframe("late"))
    scan = np.fromfile(nuscenes.keyframe("late").lidar_path, np.float32).reshape(-1, 5)[:, :4]
    frame = next(frame for frame in own["frames"] if frame["token"] == "late")
    own["lidar"] |= {"columns": ["ring", "z", "y", "x", "intensity"]}
    mixed = np.column_stack([np.zeros(len(scan)), scan[:, [2, 1, 0, 3]]])
    mixed.astype(np.float32).tofile(nuscenes.root / "mixed.bin")
    np.save(nuscenes.root / "mixed.npy", mixed)
    cloud = PointCloud.from_points(np.vstack([scan, [[np.nan] * 4]]), ("x", "y", "z", "intensity"), (np.float32,) * 4)
    for encoding in Encoding:
        cloud.save(nuscenes.root / f"{encoding.name}.pcd", encoding=encoding)
    for path in ("mixed.bin", "mixed.npy", *(f"{encoding.name}.pcd" for encoding in Encoding)):
        frame["lidar"] = {"path": path}
        index = load_rig(write(nuscenes.root, own), None, tmp_path / "cache")
        np.testing.assert_allclose(read_points(index.keyframe("late")), expected, rtol=1e-6)
    del own["lidar"]["columns"][4]
    np.save(nuscenes.root / "mixed.npy", mixed[:, :4])
    frame["lidar"] = {"path": "mixed.npy"}
    index = load_rig(write(nuscenes.root, own), None, tmp_path / "cache")
    np.testing.assert_allclose(read_points(index.keyframe("late"))[:, 3], 0)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("a.npy", np.zeros((4, 3)), r"is float64 \(4, 3\), not \(points, 5\): x, y, z, intensity, ring"),
        ("a.npy", np.zeros((4, 5)), "holds no points with a finite x"),
        ("a.npy", b"no array", r"is no \.npy array"),
        ("a.npy", np.full((4, 5), 300.0), "intensity of 300: they should be 0 to 255"),
        ("a.bin", b"12345", r"is damaged, not rows of float32 x, y, z, intensity, ring \(lidar.columns\)"),
        ("a.pcd", b"VERSION .7", r"cannot be read as \.pcd"),
        ("a.bin", None, "is missing"),
    ],
)
def test_a_bad_scan_is_named(nuscenes, own, tmp_path, path, content, message):
    file = nuscenes.root / path
    if isinstance(content, np.ndarray):
        np.save(file, content)
    elif content is not None:
        file.write_bytes(content)
    for frame in own["frames"]:
        frame["lidar"] = {"path": path}
    keyframe = load_rig(write(nuscenes.root, own), None, tmp_path / "cache").keyframe("late")
    with pytest.raises(InputError, match=message):
        read_points(keyframe)


def test_what_needs_a_lidar_says_that_there_is_none(nuscenes, own, tmp_path, capsys):
    del own["lidar"]
    late = next(frame for frame in own["frames"] if frame["token"] == "late")
    (nuscenes.root / late["cameras"]["CAM_BACK"]["path"]).unlink()
    for frame in own["frames"]:
        del frame["lidar"]
    index = load_rig(write(nuscenes.root, own), None, tmp_path / "cache")
    stock = take_stock(index.keyframes("all"), Occ3DLabels(None), 17, cameras=True, lidar=True)
    listing = tmp_path / "missing.txt"
    message = (
        "1 of 3 keyframes of all lack files: 1 .*; 2 of 3 keyframes of all have no LiDAR scan.*; get them; say so$"
    )
    with pytest.raises(InputError, match=message):
        settle_missing({"all": stock}, "error", listing, "; say so")
    whole = take_stock(index.keyframes("all"), Occ3DLabels(None), 17, cameras=True, lidar=False)
    assert whole.keyframes.tokens == ["alone", "early"]
    settle_missing({"all": whole}, "skip", listing)
    assert "left out: 1 of 3 keyframes of all lack files" in capsys.readouterr().out
    for asked, message in (
        (index.lidarseg, "only the nuScenes devkit"),
        (lambda: index.sweeps("late", "x", 1), "only"),
    ):
        with pytest.raises(InputError, match=message):
            asked()
    with pytest.raises(InputError, match="lies in the frame of the LiDAR, and the data have none"):
        SURROUNDOCC.from_ego(index.keyframe("late").lidar2ego)


def harmed(own: dict, path: str, value) -> dict:
    """A copy in which one value is another one, or gone (None)."""
    index = copy.deepcopy(own)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    node = index
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return index


CAMERA = "frames/0/cameras/CAM_BACK"
FAULTS = [
    ("version", 2, "header: version: should be 1 (it is 2)"),
    ("format", "coco", "header: format: should be 'occ-distill-rig'"),
    ("frames/0/token", None, "frames[0]: token: it must be given"),
    ("frames/0/token", "a/b", "frames[0]: token: should be a plain name"),
    ("frames/1/token", "late", "frames[1]: token: late is that of frames[0], too"),
    ("frames/0/timestamp", 1.5, "frames[0]: timestamp: should be a valid integer (it is 1.5)"),
    ("frames/0/timestamp", 1_000_000, "frames[0]: timestamp: frames[1] is of the same scene (scene-0002)"),
    ("frames/0/speed", 3, "frames[0]: speed: there is no such value"),
    ("frames/0/ego2global", [[1, 0, 0, 0]] * 4, "frames[0]: ego2global: should be a pose"),
    ("frames/0/ego2global", np.diag([2, 1, 1, 1]).tolist(), "frames[0]: ego2global: should be a pose"),
    ("frames/0/ego2global", np.diag([-1, 1, 1, 1]).tolist(), "frames[0]: ego2global: should be a pose"),
    ("frames/0/cameras", {}, "frames[0]: cameras: Dictionary should have at least 1 item"),
    (f"{CAMERA}/path", None, "frames[0]: cameras.CAM_BACK.path: it must be given"),
    (f"{CAMERA}/model", "fisheye", "cameras.CAM_BACK.model: a camera of model fisheye is not supported: undistort"),
    (f"{CAMERA}/distortion", [0.1, 0], "cameras.CAM_BACK.distortion: distortion is not supported: undistort"),
    ("cameras/CAM_BACK/distortion", [0.1], "header: cameras.CAM_BACK.distortion: distortion is not supported"),
    (f"{CAMERA}/intrinsics", [[1, 0], [0, 1]], "frames[0]: cameras.CAM_BACK.intrinsics.0: List should have at least 3"),
    (f"{CAMERA}/intrinsics", [[0, 0, 1], [0, 1, 1], [0, 0, 1]], "cameras.CAM_BACK.intrinsics: should be [[fx, 0, cx]"),
    (f"{CAMERA}/width", 50, "frames[0]: cameras.CAM_BACK: intrinsics are not of an image of 50x141 pixels"),
    ("cameras/CAM_BACK", None, "frames[0]: cameras.CAM_BACK: neither the header nor the frame says its width, height"),
    (f"{CAMERA}/ego2global", np.eye(4).tolist(), "cameras.CAM_BACK: it is 1"),
    ("lidar", None, "frames[0]: lidar: the header says nothing of scans"),
    ("lidar/columns", ["x", "y"], "header: lidar.columns: should name each column once, x, y and z among them (z)"),
    ("frames/0/lidar/path", "scan.las", "frames[0]: lidar.path: should be a .bin, .npy, .pcd file"),
    ("splits/train", ["scene-9"], "header: splits.train: no frame is of scene scene-9"),
    ("splits/all", [], 'header: splits.all.[key]: "all" stands for every frame'),
    ("frames", [], "frames: there is none"),
    ("frames", None, "frames: should be a list of frames"),
]


@pytest.mark.parametrize(("path", "value", "fault"), FAULTS, ids=[f"{path}={value}"[:40] for path, value, _ in FAULTS])
def test_every_fault_is_told_with_its_place(nuscenes, own, tmp_path, path, value, fault):
    own["frames"].sort(key=lambda frame: ("late", "early", "alone").index(frame["token"]))
    file = write(tmp_path, harmed(own, path, value))
    reading = read_rig(file)
    entries_of(reading)
    told = [f"{place}: {what}" for place, what in reading.faults]
    assert any(fault in each for each in told), told
    with pytest.raises(InputError, match=r"frames\.json: .*\(python -m distill\.nuscenes\.check_index .*lists all\)"):
        load_rig(file, nuscenes.root, tmp_path / "cache")
    if path.startswith(("frames/", "splits/train", "lidar")):
        lines = read_rig(write(tmp_path, harmed(own, path, value), lines=True))
        entries_of(lines)
        where = re.sub(r"frames\[(\d)\]", lambda found: f"line {int(found[1]) + 2}", fault).replace(
            "header:", "line 1:"
        )
        assert any(where in f"{place}: {what}" for place, what in lines.faults), lines.faults


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.json", '{"format":\n "x",,}', ("line 2", "not valid JSON")),
        ("a.json", "[]", ("frames", "should be a list of frames")),
        ("a.jsonl", "", ("line 1", "the file is empty")),
        ("a.jsonl", '{"format": "occ-distill-rig", "version": 1}\n\n{"token"\n', ("line 3", "not valid JSON")),
    ],
)
def test_what_is_no_json_is_told_with_its_line(tmp_path, name, content, fault):
    (tmp_path / name).write_text(content)
    (place, said), *_ = read_rig(tmp_path / name).faults
    assert (place, said[: len(fault[1])]) == fault


def test_the_program_lists_all_faults_and_all_files_that_are_not_there(nuscenes, own, tmp_path):
    def check(file: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "distill.nuscenes.check_index", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    for frame in own["frames"]:
        del frame["labels"]
    good = check(write(nuscenes.root, own, lines=True))
    assert good.returncode == 0, good.stderr
    assert "3 frames of 2 scenes" in good.stdout
    assert "splits: train (2), val (1)" in good.stdout
    assert "LiDAR: 3 frames; labels: 0 frames" in good.stdout
    lost, small = (nuscenes.root / own["frames"][n]["cameras"]["CAM_BACK"]["path"] for n in (0, 1))
    lost.unlink()
    Image.new("RGB", (10, 10)).save(small)
    own["frames"][2]["timestamp"] = "noon"
    own["frames"][2]["cameras"]["CAM_FRONT"]["model"] = "fisheye"
    bad = check(write(nuscenes.root, own, lines=True))
    assert bad.returncode == 2
    told = bad.stdout.splitlines()
    assert len(told) == 5  # the scene of the frame that is faulty has no other
    for place, what in (
        ("line 2", "CAM_BACK.path: .*No such file"),
        ("line 3", "CAM_BACK.path: .*10x10 pixels, calibrated are 250x141"),
        ("line 4", "timestamp: should be a valid integer"),
        ("line 4", "cameras.CAM_FRONT.model: .*fisheye is not supported"),
        ("line 1", "splits.val: no frame is of scene scene-0001"),
    ):
        assert any(re.search(f"frames.jsonl: {place}: .*{what}", line) for line in told), (place, what, told)
    assert "5 faults, listed above (2 about files: data.missing=skip" in bad.stderr


def test_the_documented_index_is_right_and_the_schema_is_that_of_the_reader(tmp_path):
    reading = read_rig(write(tmp_path, EXAMPLE))
    (entry,) = entries_of(reading).values()
    assert (reading.faults, entry.token) == ([], "drive-1-000000")
    jsonschema.validate(EXAMPLE, SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    kinds = {"RigIndex": SCHEMA, **SCHEMA["$defs"]}
    ours = RigIndex.model_json_schema()
    for name, kind in {"RigIndex": ours, **ours["$defs"]}.items():
        assert kinds[name]["properties"].keys() == kind["properties"].keys(), f"{name} of rig_index.schema.json is old"
        assert kinds[name].get("required") == kind.get("required")
        assert kinds[name]["description"] == kind["description"]
    assert kinds.keys() == {"RigIndex", *ours["$defs"]}
    for path, value in (("version", 2), ("frames/0/token", None), ("frames/0/cameras", {}), ("frames/0/speed", 1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(harmed(EXAMPLE, path, value), SCHEMA)


def test_an_index_that_is_not_there_names_the_value(tmp_path):
    with pytest.raises(InputError, match=r"no index of frames at .*: say where it is with data\.index="):
        load_rig(tmp_path / "frames.json", None, tmp_path)


def test_no_split_names_what_to_do(tmp_path):
    root = write_dataroot(tmp_path / "nuscenes")
    own = described(load_index(root, VERSION, tmp_path / "cache"))
    del own["splits"]
    index = load_rig(write(root, own), None, tmp_path / "cache")
    assert len(index.keyframes("all")) == 3
    with pytest.raises(
        InputError, match=r"split 'train' has no scenes in .*use one of all, or .*`splits` of frames\.json"
    ):
        index.keyframes("train")
