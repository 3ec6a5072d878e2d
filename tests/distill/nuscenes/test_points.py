import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import InputError
from distill.nuscenes.index import load_index
from distill.nuscenes.layout import nuscenes_scans
from distill.nuscenes.points import depth_maps, project, read_points

FORWARD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])  # camera along ego x, 1.5 m up
WHOLE = np.ones((1, 64, 128), bool)
INTRINSICS = np.array([[100.0, 0, 64], [0, 100, 32], [0, 0, 1]])


def write_scan(keyframe, path, rows):
    np.array(rows, dtype=np.float32).tofile(path)
    return dataclasses.replace(keyframe, lidar_path=path)


def test_points_are_in_the_ego_frame_with_intensity_up_to_one(index, tmp_path):
    keyframe = index.keyframe("late")  # its LiDAR stands at (1, 0, 1.5), not turned
    scan = write_scan(keyframe, tmp_path / "scan.bin", [[10, 20, -1, 255, 3], [-5, 0, 0, 51, 31]])
    np.testing.assert_allclose(read_points(scan), [[11, 20, 0.5, 1], [-4, 0, 1.5, 0.2]], atol=1e-6)


def test_returns_of_the_recording_car_are_dropped(index, tmp_path):
    roof, bonnet, kerb = [0.0, 0, -0.1, 0, 0], [2.0, 0.5, -0.8, 0, 0], [0.0, 1.2, -1.5, 0, 0]
    scan = write_scan(index.keyframe("late"), tmp_path / "scan.bin", [roof, bonnet, kerb])
    np.testing.assert_allclose(read_points(scan)[:, :3], [[1, 1.2, 0]], atol=1e-6)


def scan_of(*columns):
    """A made-up scan of 1200 points: x, y, z, intensity, ring, time, or the columns that are wanted."""
    rng = np.random.default_rng(0)
    xyz = rng.normal(0, 10, (1200, 3))
    full = np.column_stack([xyz, rng.integers(0, 256, 1200), rng.integers(0, 32, 1200), rng.uniform(0, 0.05, 1200)])
    return full[:, list(columns) or slice(5)].astype(np.float32)


def refusal(keyframe, path, content, columns=5):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_points(dataclasses.replace(keyframe, lidar_path=path, scan=nuscenes_scans(columns)))
    assert str(caught.value).startswith(f"{path}: LiDAR scan of keyframe late ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nan_at(place):
    scan = scan_of()
    scan[place] = np.nan
    return scan


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "is empty (0 bytes)"),
        (bytes(24_000), "holds nothing but points at 0, 0, 0 (1200)"),
        (
            np.column_stack([np.zeros((1200, 3)), scan_of()[:, 3:]]).astype("<f4").tobytes(),
            "nothing but points at 0, 0, 0",
        ),
        (scan_of().tobytes()[:-3], "is damaged, not rows of data.lidar_columns=5"),
        (nan_at((7, 0)).tobytes(), "is damaged"),
        (nan_at((slice(None), 3)).tobytes(), "is damaged"),
        (scan_of().astype(np.float64).tobytes(), "is damaged"),
        (scan_of(0, 1, 2).tobytes(), "is damaged"),
        (b"<html>not found</html>", "is damaged"),
    ],
)
def test_damaged_scan_is_named(index, tmp_path, content, message):
    assert message in refusal(index.keyframe("late"), tmp_path / "scan.bin", content)


@pytest.mark.parametrize(
    ("factors", "shift", "message"),
    [
        ([1000, 1000, 1000, 1, 1], 0, " m: x, y, z should be metres from LIDAR_TOP, not millimetres"),
        (1, [691_000, 5_334_000, 0, 0, 0], "has a coordinate of 5.3340"),
        ([1, 1, 1, 257, 1], 0, "has an intensity of 65535: they should be 0 to 255"),
    ],
    ids=["millimetres", "on a map", "16 bits"],
)
def test_other_units_are_refused(index, tmp_path, factors, shift, message):
    other = (scan_of() * factors + shift).astype("<f4")
    assert message in refusal(index.keyframe("late"), tmp_path / "scan.bin", other.tobytes())


def test_a_folder_is_no_scan(index, tmp_path):
    assert "cannot be read (Is a directory)" in refusal(index.keyframe("late"), tmp_path, None)


@pytest.mark.parametrize("columns", [4, 5, 6])
def test_scans_of_as_many_columns_as_are_said(index, tmp_path, columns):
    keyframe = index.keyframe("late")
    scan_of().tofile(tmp_path / "five.bin")
    scan_of(*range(columns)).tofile(tmp_path / "scan.bin")
    as_told = dataclasses.replace(keyframe, lidar_path=tmp_path / "scan.bin", scan=nuscenes_scans(columns))
    expected = read_points(dataclasses.replace(keyframe, lidar_path=tmp_path / "five.bin"))
    np.testing.assert_array_equal(read_points(as_told), expected)


@pytest.mark.parametrize(("written", "told"), [(4, 5), (5, 4), (6, 5), (5, 6), (4, 6), (6, 4)])
def test_another_number_of_columns_is_recognised(index, tmp_path, written, told):
    """1200 points: the length of the file fits both ways."""
    message = refusal(index.keyframe("late"), tmp_path / "scan.bin", scan_of(*range(written)).tobytes(), told)
    assert f"does not hold rows of data.lidar_columns={told} " in message
    assert f"but rows of {written}: set data.lidar_columns={written}" in message


def test_real_scans_are_read_as_five_columns_and_as_nothing_else(real_data, tmp_path):
    """One has no intensities, one is empty."""
    sizes = []
    for keyframe in load_index(real_data / "nuscenes", "v1.0-mini", tmp_path).keyframes("all"):
        if not keyframe.lidar_path.stat().st_size:
            with pytest.raises(InputError, match=f"{keyframe.token} is empty"):
                read_points(keyframe)
            continue
        sizes.append(len(read_points(keyframe)))
        content = keyframe.lidar_path.read_bytes()
        for columns in (4, 6, 7, 8):
            cut = dataclasses.replace(keyframe, lidar_path=tmp_path / "scan.bin", scan=nuscenes_scans(columns))
            cut.lidar_path.write_bytes(content[: len(content) // (20 * columns) * 20 * columns])
            with pytest.raises(InputError, match=r"set data\.lidar_columns=5"):
                read_points(cut)
    assert sizes == [26162, 20321]


def test_projection_of_a_known_point():
    seen = project(np.array([[10.0, 1.0, 2.5]]), INTRINSICS[None], FORWARD[None])
    np.testing.assert_allclose(seen, [[[64 - 10]], [[32 - 10]], [[10]]], rtol=1e-6)


def test_depth_map_cells():
    points = np.array(
        [
            [10.0, 1.0, 2.5],  # pixel (54, 22): row 2, column 6 at stride 8
            [5.0, 0.5, 2.0],  # the same pixel, nearer
            [20.0, 12.79, 1.4],  # pixel (0.05, 32.5): row 4, column 0
            [20.0, 12.81, 1.4],  # u = -0.05: outside
            [20.0, -12.81, 1.4],  # u = 128.05: outside
            [-10.0, 1.0, 2.5],  # behind
        ]
    )
    expected = np.zeros((1, 8, 16), dtype=np.float32)
    expected[0, 2, 6] = 5
    expected[0, 4, 0] = 20
    depth = depth_maps(points, INTRINSICS[None], FORWARD[None], WHOLE, 8)
    np.testing.assert_allclose(depth, expected, rtol=1e-6)
    assert depth.dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), stride=st.sampled_from([4, 8, 16]))
def test_depth_maps_against_a_plain_loop(seed, stride):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-20, 20, (60, 4)).astype(np.float32)
    cam2ego = np.stack([FORWARD, FORWARD @ np.diag([-1.0, 1, -1, 1])])
    intrinsics = np.stack([INTRINSICS, INTRINSICS * [[-1], [1], [1]] + [[0, 0, 128], [0, 0, 0], [0, 0, 0]]])
    expected = np.zeros((2, 64 // stride, 128 // stride))
    for n in range(2):
        for point in points:
            x, y, z = (np.linalg.inv(cam2ego[n]) @ [*point[:3], 1])[:3]
            u, v, _ = intrinsics[n] @ [x / z, y / z, 1]
            if z > 0 and 0 <= u < 128 and 0 <= v < 64:
                cell = expected[n, int(v // stride), int(u // stride)]
                expected[n, int(v // stride), int(u // stride)] = min(cell, z) if cell else z
    found = depth_maps(points, intrinsics, cam2ego, WHOLE.repeat(2, axis=0), stride)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_black_borders_see_nothing():
    points = np.array([[10.0, 0.95, 2.45]])  # pixel (54.5, 22.5)
    for rows, columns, seen in ((22, 54, True), (slice(64), slice(55, 128), False), (slice(22), slice(128), False)):
        shown = np.zeros((1, 64, 128), bool)
        shown[0, rows, columns] = True
        depth = depth_maps(points, INTRINSICS[None], FORWARD[None], shown, 8)
        assert depth.any() == seen
