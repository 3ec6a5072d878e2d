"""Each corruption does what its name says to what the network is given, and nothing else."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from torch.utils.data import DataLoader, Dataset

from distill.errors import InputError
from distill.frame import Frame, stack
from distill.nuscenes.layout import CAMERAS
from student.evaluation.robustness import (
    Blur,
    Brightness,
    CorruptedFrames,
    DroppedCamera,
    Jpeg,
    MovedCameras,
    Noise,
    TurnedCameras,
    corruptions,
    rotations,
    with_worst,
)

HEIGHT, WIDTH = 32, 200
RANDOM = (Noise(20.0, seed=0), TurnedCameras(1.0, seed=0), MovedCameras(10.0, seed=0))
ALL = (DroppedCamera("CAM_BACK"), Blur(5.0), Brightness(0.5), Brightness(2.0), Jpeg(10), *RANDOM)


def random_frame(token="a" * 32):
    rng = np.random.default_rng(int(token, 16) % 2**32)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 3, 3)))
    cam2ego = np.tile(np.eye(4, dtype=np.float32), (6, 1, 1))
    cam2ego[:, :3, :3] = rotation * np.linalg.det(rotation)[:, None, None]
    cam2ego[:, :3, 3] = rng.uniform(-2, 2, (6, 3))
    return Frame(
        token=token,
        channels=CAMERAS,
        images=rng.integers(0, 256, (6, 3, HEIGHT, WIDTH), dtype=np.uint8),
        intrinsics=np.tile(np.array([[60, 0, 100], [0, 60, 16], [0, 0, 1]], np.float32), (6, 1, 1)),
        cam2ego=cam2ego,
        semantics=rng.integers(0, 18, (4, 4, 2), dtype=np.uint8),
    )


def grey(level):
    return replace(random_frame(), images=np.full((6, 3, HEIGHT, WIDTH), level, np.uint8))


def assert_equal(a, b):
    for field in fields(Frame):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


class Frames(Dataset):
    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return random_frame(self.tokens[index])


@pytest.mark.parametrize("corruption", ALL, ids=lambda corruption: corruption.name)
def test_one_thing_changes_and_the_frame_given_does_not(corruption):
    frame = random_frame()
    given = copy.deepcopy(frame)
    worse = corruption.apply(frame)
    assert_equal(frame, given)
    changed = "cam2ego" if "calibration" in corruption.name else "images"
    before, after = getattr(frame, changed), getattr(worse, changed)
    assert not np.array_equal(after, before)
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    assert_equal(replace(worse, **{changed: None}), replace(frame, **{changed: None}))


@pytest.mark.parametrize("corruption", RANDOM, ids=lambda corruption: corruption.name)
def test_chance_depends_on_the_keyframe_and_the_seed_alone(corruption):
    tokens = [f"{i:032x}" for i in range(4)]
    forwards = [corruption.apply(frame) for frame in Frames(tokens)]
    frames = CorruptedFrames(Frames(tokens[::-1]), corruption)
    assert len(frames) == 4
    backwards = DataLoader(frames, batch_size=None, num_workers=2)
    for expected, found in zip(forwards, list(backwards)[::-1], strict=True):
        assert_equal(found, expected)
    same_world = replace(random_frame(tokens[0]), token=tokens[1])
    other_seed = type(corruption)(*list(vars(corruption).values())[:-1], seed=1)
    for other in (corruption.apply(same_world), other_seed.apply(random_frame(tokens[0]))):
        assert any(
            not np.array_equal(getattr(other, name), getattr(forwards[0], name)) for name in ("images", "cam2ego")
        )


class WithPast(Frames):
    def __getitem__(self, index):
        past = tuple(map(random_frame, self.tokens[:index]))
        return replace(random_frame(self.tokens[index]), past=past)


@pytest.mark.parametrize("corruption", ALL, ids=lambda corruption: corruption.name)
def test_the_past_is_as_bad_as_the_present(corruption):
    """Each of its keyframes is made worse as by itself."""
    tokens = [f"{i:032x}" for i in range(3)]
    frame = CorruptedFrames(WithPast(tokens), corruption)[2]
    for token, found in zip(tokens, (*frame.past, frame), strict=True):
        assert_equal(replace(found, past=None), corruption.apply(random_frame(token)))


def test_corrupted_frames_make_a_batch():
    frames = [corruption.apply(random_frame()) for corruption in ALL]
    np.testing.assert_array_equal(stack(frames).images.numpy(), np.stack([frame.images for frame in frames]))


@pytest.mark.parametrize("index", range(6))
def test_the_named_camera_is_black_and_the_others_see(index):
    worse = DroppedCamera(CAMERAS[index]).apply(grey(100)).images
    assert not worse[index].any()
    assert (np.delete(worse, index, axis=0) == 100).all()


def test_an_edge_blurs_to_the_integral_of_a_gaussian():
    frame = grey(0)
    frame.images[..., WIDTH // 2 :] = 200
    profile = Blur(15.0).apply(frame).images.astype(float)
    sigma = 0.015 * WIDTH  # 3 pixels
    distance = np.arange(WIDTH) + 0.5 - WIDTH // 2
    expected = [100 * (1 + math.erf(d / sigma / math.sqrt(2))) for d in distance]
    np.testing.assert_allclose(profile, np.broadcast_to(expected, profile.shape), atol=3)


def test_blur_does_not_depend_on_the_resolution():
    def edge_width(width):
        """Share of the image width on which a step from black to white lies between a quarter and three quarters."""
        image = np.zeros((6, 3, 8, width), np.uint8)
        image[..., width // 2 :] = 255
        row = Blur(10.0).apply(Frame(images=image)).images[0, 0, 4]
        return ((row > 64) & (row < 191)).sum() / width

    assert edge_width(1600) == pytest.approx(2 * 0.6745 * 0.010, rel=0.1)
    assert edge_width(800) == pytest.approx(edge_width(1600), rel=0.1)


def test_noise_has_the_stated_strength_in_every_pixel_and_channel():
    noise = Noise(10.0, seed=0).apply(grey(128)).images.astype(float) - 128
    assert noise.std() == pytest.approx(10, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.2)
    pairs = [(noise[:3], noise[3:]), (noise[:, 0], noise[:, 1]), (noise[..., :-1], noise[..., 1:])]
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03 for a, b in pairs)


def test_noise_and_brightness_stop_at_black_and_white():
    for level in (0, 255):
        noisy = Noise(10.0, seed=0).apply(grey(level)).images.astype(int)
        assert 0.4 < (noisy == level).mean() < 0.6
        assert abs(noisy - level).max() < 60


@pytest.mark.parametrize(("factor", "level", "expected"), [(0.3, 101, 30), (2.0, 101, 202), (2.0, 200, 255)])
def test_brightness_multiplies(factor, level, expected):
    assert (Brightness(factor).apply(grey(level)).images == expected).all()


def test_jpeg_keeps_a_plain_image_and_loses_more_at_lower_quality():
    assert (abs(Jpeg(10).apply(grey(128)).images.astype(int) - 128) <= 1).all()
    frame = random_frame()
    errors = [
        np.square(Jpeg(quality).apply(frame).images - frame.images.astype(float)).mean() for quality in (95, 50, 10)
    ]
    assert 1 < errors[0] < errors[1] < errors[2]
    ramp = np.broadcast_to(np.arange(WIDTH, dtype=np.uint8), (6, 3, HEIGHT, WIDTH))
    assert abs(Jpeg(90).apply(replace(frame, images=ramp)).images.astype(int) - ramp).max() < 8  # rows stay rows


def turns(degrees, keyframes=200):
    """Rotation of every camera of many keyframes in its own axes, float64 (keyframes * 6, 3, 3)."""
    matrices = []
    for token in range(keyframes):
        frame = random_frame(f"{token:032x}")
        worse = TurnedCameras(degrees, seed=0).apply(frame)
        np.testing.assert_array_equal(worse.cam2ego[:, :, 3], frame.cam2ego[:, :, 3])
        matrices.append(np.linalg.inv(frame.cam2ego.astype(float)) @ worse.cam2ego)
    return np.concatenate(matrices)[:, :3, :3]


def test_cameras_turn_by_the_stated_angle_about_their_own_axes():
    matrices = turns(2.0)
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (1200, 3, 3)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-5)
    # of a small rotation, the off-diagonal elements are the angles
    angles = np.degrees(np.stack([matrices[:, 2, 1], matrices[:, 0, 2], matrices[:, 1, 0]], 1))
    np.testing.assert_allclose(angles.std(0), 2.0, rtol=0.08)
    np.testing.assert_allclose(angles.mean(0), 0.0, atol=0.25)
    assert abs(np.corrcoef(angles.T) - np.eye(3)).max() < 0.15


def test_a_stronger_turn_is_the_same_turn_by_more():
    small, large = (turns(degrees, keyframes=3) for degrees in (0.5, 1.0))
    np.testing.assert_allclose(small @ small, large, atol=1e-5)


def test_cameras_move_by_the_stated_distance():
    moves = []
    for token in range(200):
        frame = random_frame(f"{token:032x}")
        worse = MovedCameras(5.0, seed=0).apply(frame)
        np.testing.assert_array_equal(worse.cam2ego[:, :3, :3], frame.cam2ego[:, :3, :3])
        moves.append(worse.cam2ego[:, :3, 3] - frame.cam2ego[:, :3, 3])
    moves = np.concatenate(moves)
    np.testing.assert_allclose(moves.std(0), 0.05, rtol=0.08)
    np.testing.assert_allclose(moves.mean(0), 0.0, atol=0.006)


def test_rotation_vectors():
    quarter = np.pi / 2
    found = rotations(np.array([[0.0, 0, 0], [quarter, 0, 0], [0, quarter, 0], [0, 0, quarter], [0, 0, 2 * np.pi]]))
    np.testing.assert_allclose(found[0], np.eye(3))
    for axis in range(3):  # a quarter turn takes the next axis to the one after it
        np.testing.assert_allclose(found[1 + axis] @ np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3], atol=1e-12)
        np.testing.assert_allclose(found[1 + axis] @ np.eye(3)[axis], np.eye(3)[axis], atol=1e-12)
    np.testing.assert_allclose(found[4], np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Blur, {"sigma": 0.0}, "Blur.sigma=0.0 must be"),
        (Noise, {"sigma": -1, "seed": 0}, "Noise.sigma=-1 must be"),
        (Brightness, {"factor": float("nan")}, "Brightness.factor=nan must be"),
        (Brightness, {"factor": "dark"}, "Brightness.factor=dark must be"),
        (Jpeg, {"quality": 0}, "Jpeg.quality=0 must be"),
        (Jpeg, {"quality": 101}, "Jpeg.quality=101 must be"),
        (Jpeg, {"quality": 9.5}, "Jpeg.quality=9.5 must be"),
        (TurnedCameras, {"degrees": float("inf"), "seed": 0}, "TurnedCameras.degrees=inf must be"),
        (MovedCameras, {"centimetres": 0, "seed": 0}, "MovedCameras.centimetres=0 must be"),
    ],
)
def test_impossible_strengths_are_refused(kind, values, message):
    with pytest.raises(InputError, match=message):
        kind(**values)


def configured(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return corruptions(compose("computing", list(overrides)).robustness, CAMERAS)


def test_a_camera_that_the_rig_lacks_is_refused():
    top = "+robustness.top={_target_: student.evaluation.robustness.DroppedCamera, camera: CAM_TOP}"
    with pytest.raises(InputError, match=r"robustness\.top: no camera CAM_TOP: choose from CAM_FRONT_LEFT"):
        configured("+robustness=standard", top)


def test_the_standard_conditions():
    found = configured("+robustness=standard", "seed=7")
    names = [corruption.name for corruption in found]
    assert names[:6] == [f"dropped {camera}" for camera in CAMERAS]
    assert [name.split()[0].rstrip(",") for name in names[6:]] == [
        *("blur", "noise", "darker", "brighter", "JPEG", "calibration", "calibration"),
    ]
    assert names[-2].endswith(" degrees")
    assert names[-1].endswith(" cm")
    assert {corruption.seed for corruption in found if hasattr(corruption, "seed")} == {7}
    for corruption in found:
        corruption.apply(random_frame())


def test_none_is_no_condition_and_any_can_be_added_changed_or_left_out():
    assert configured("+robustness=none") == []
    added = "+robustness.heavy={_target_: student.evaluation.robustness.Blur, sigma: 6}"
    found = configured("+robustness=standard", added, "~robustness.noise", "robustness.blur.sigma=2")
    assert [corruption for corruption in found if isinstance(corruption, Blur)] == [Blur(2), Blur(6)]
    assert not any(isinstance(corruption, Noise) for corruption in found)


def test_the_same_condition_twice_is_refused():
    with pytest.raises(InputError, match=r"robustness.brighter: 'darker, grey levels x 0.3' is there already"):
        configured("+robustness=standard", "robustness.brighter.factor=0.3")


def rows(**miou):
    return [
        {"condition": name.replace("_", " ", 1), "miou": value, "geometric_iou": 1.0} for name, value in miou.items()
    ]


def test_the_worst_dropped_camera_stands_behind_the_others():
    table = rows(clean=30.0, dropped_CAM_FRONT=20.0, dropped_CAM_BACK=12.0, dropped_CAM_BACK_LEFT=None, noise_x=5.0)
    table[2]["geometric_iou"] = 40.0
    found = with_worst(table)
    assert [row for row in found if row["condition"] != "worst dropped camera"] == table
    assert found[4] == {"condition": "worst dropped camera", "miou": 12.0, "geometric_iou": 40.0}


@pytest.mark.parametrize("table", [rows(clean=30.0, noise_x=5.0), rows(clean=None, dropped_CAM_FRONT=None), []])
def test_without_a_score_of_a_dropped_camera_there_is_no_worst(table):
    assert with_worst(table) == table
