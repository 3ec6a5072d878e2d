from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from same import assert_same

from distill.augment import Augmentation, ImageTransform, Transform
from distill.errors import InputError
from distill.frame import Frame, Mirror, Told
from distill.signals.bev import BevProbs
from distill.signals.gaussians import GaussiansTold
from distill.signals.voxels import VoxelCodes

SHAPE = (10, 10, 4)  # voxels of 1 m around the origin, from z = -1
SIZE = (64, 128)
STRONG = Augmentation(resize=(0.5, 1.5), image_flip=0.5, rotation=9.0, colour=0.3, bev_flip=0.5)
MIRRORS = [Mirror(x, y) for x in (False, True) for y in (False, True)]


def random_cam2ego(rng):
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 3, 3)))
    cam2ego = np.tile(np.eye(4, dtype=np.float32), (6, 1, 1))
    cam2ego[:, :3, :3] = rotation * np.sign(np.linalg.det(rotation))[:, None, None]
    cam2ego[:, :3, 3] = rng.uniform(-1, 1, (6, 3))
    return cam2ego


def make_frame(seed=0):
    """With everything that a frame can hold but a past."""
    rng = np.random.default_rng(seed)
    signals = {
        "voxels": VoxelCodes(
            codes=rng.integers(0, 256, (*SHAPE, 18), dtype=np.uint8), table=np.linspace(-16, 0, 256, dtype=np.float32)
        ),
        "bev": BevProbs(probs=rng.random((*SHAPE[:2], 18)).astype(np.float32)),
        "gaussians": GaussiansTold(gaussians="stay in the frame of the LiDAR"),
    }
    return Frame(
        token="token",
        scene="scene-0001",
        labelled=True,
        images=rng.integers(0, 256, (6, 3, *SIZE), dtype=np.uint8),
        intrinsics=np.tile(np.array([[60, 0, 64], [0, 60, 32], [0, 0, 1]], np.float32), (6, 1, 1)),
        cam2ego=random_cam2ego(rng),
        points=rng.uniform(-5, 5, (50, 4)).astype(np.float32),
        depth=rng.uniform(0, 9, (6, 4, 8)).astype(np.float32),
        semantics=rng.integers(0, 18, SHAPE, dtype=np.uint8),
        mask_camera=rng.random(SHAPE) < 0.5,
        mask_lidar=rng.random(SHAPE) < 0.5,
        lidar2ego=random_cam2ego(rng)[0],
        teachers={"stored": Told(taught=True, covered=rng.random(SHAPE) < 0.5, signals=signals)},
    )


def projected(frame, points):
    """Homogeneous pixels of ego points (P, 3) in all cameras."""
    ego2cam = np.linalg.inv(frame.cam2ego.astype(np.float64))
    in_camera = np.einsum("nij,pj->npi", ego2cam[:, :3, :3], points) + ego2cam[:, None, :3, 3]
    return np.einsum("nij,npj->npi", frame.intrinsics, in_camera)


def centres(shape):
    axes = [np.arange(count) + 0.5 - low for count, low in zip(shape, (5, 5, 1), strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


@pytest.mark.parametrize("mirror", MIRRORS)
def test_mirroring_twice_changes_nothing(mirror):
    frame = make_frame()
    assert_same(frame.mirrored(mirror).mirrored(mirror), frame)


def test_no_mirror_changes_nothing():
    assert_same(make_frame().mirrored(Mirror()), make_frame())


@pytest.mark.parametrize("mirror", MIRRORS)
@pytest.mark.parametrize("seed", range(3))
def test_voxels_are_still_seen_in_the_same_pixels(mirror, seed):
    """Label the centre of every voxel with its pixels, mirror everything: voxels and pixels must still match."""
    frame = make_frame(seed)
    voxels = centres(SHAPE)
    # One-of-a-kind labels stand for the content of a voxel; every per-voxel signal must be permuted alike.
    identity = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    moved = replace(frame, semantics=identity).mirrored(mirror)
    before, after = projected(frame, voxels), projected(moved, voxels)
    np.testing.assert_allclose(after, before[:, moved.semantics.ravel()], atol=1e-3)
    for was, now in zip(on_voxels(frame), on_voxels(moved), strict=True):
        flat = was.reshape(identity.size, -1)
        np.testing.assert_array_equal(now.reshape(identity.size, -1), flat[moved.semantics.ravel()])
    columns = moved.semantics[:, :, 0].ravel() // SHAPE[2]
    was, now = (each.teachers["stored"].signals["bev"].probs.reshape(-1, 18) for each in (frame, moved))
    np.testing.assert_array_equal(now, was[columns])


def on_voxels(frame):
    told = frame.teachers["stored"]
    return frame.mask_camera, frame.mask_lidar, told.signals["voxels"].codes, told.covered


@pytest.mark.parametrize("mirror", MIRRORS)
def test_points_stay_in_their_voxels_and_pixels(mirror):
    frame = make_frame()
    moved = frame.mirrored(mirror)
    np.testing.assert_allclose(projected(moved, moved.points[:, :3]), projected(frame, frame.points[:, :3]), atol=1e-3)
    np.testing.assert_array_equal(moved.points[:, 2:], frame.points[:, 2:])

    def labels(frame):
        i, j, _ = np.floor(frame.points[:, :3]).astype(int).T + 5
        return frame.semantics[i, j]

    np.testing.assert_array_equal(labels(moved), labels(frame))


@pytest.mark.parametrize("mirror", MIRRORS)
def test_what_lies_in_the_frame_of_the_lidar_meets_the_same_voxels(mirror):
    """As the points of a scan in the ego frame do."""
    frame = make_frame()
    moved = frame.mirrored(mirror)
    lidar2ego = frame.lidar2ego.astype(np.float64)
    in_lidar = (frame.points[:, :3] - lidar2ego[:3, 3]) @ np.linalg.inv(lidar2ego[:3, :3]).T
    in_ego = in_lidar @ moved.lidar2ego[:3, :3].T + moved.lidar2ego[:3, 3]
    np.testing.assert_allclose(in_ego, moved.points[:, :3], atol=1e-4)
    was, now = (each.teachers["stored"].signals["gaussians"] for each in (frame, moved))
    assert now.gaussians == was.gaussians


@pytest.mark.parametrize("mirror", MIRRORS)
def test_score_of_the_moved_teacher_is_the_score_of_the_teacher(mirror):
    def confusion(frame):
        seen = frame.mask_camera
        predicted = frame.teachers["stored"].signals["voxels"].codes.argmax(-1)
        return np.bincount(frame.semantics[seen] * 18 + predicted[seen], minlength=18 * 18)

    frame = make_frame()
    np.testing.assert_array_equal(confusion(frame.mirrored(mirror)), confusion(frame))


def test_a_field_without_a_rule_cannot_be_defined():
    with pytest.raises(TypeError, match=r"FlowFrame\.flow declares no geometry"):

        class FlowFrame(Frame):
            flow: np.ndarray = None


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_drawn_transforms_keep_the_lowest_rows_and_fill_or_float(seed):
    height, width = SIZE
    transform = STRONG.draw(np.random.default_rng(seed), [(90, 160)] * 6, SIZE)
    for image in transform.images:
        assert 0.5 <= image.scale / (width / 160) <= 1.5
        assert -9 <= image.rotation <= 9
        matrix = image.upright(width)
        left, right = sorted((matrix @ [0, 0, 1])[0] + np.array([0, matrix[0, 0] * 160]))
        assert (left <= 1e-9 and right >= width - 1e-9) or (left >= -1e-9 and right <= width + 1e-9)
        assert (matrix @ [0, 90, 1])[1] == pytest.approx(height)
        assert all(0.7 <= factor <= 1.3 for factor in (image.brightness, image.contrast, image.saturation))


def test_draws_follow_their_probabilities():
    rng = np.random.default_rng(0)
    drawn = [STRONG.draw(rng, [(90, 160)], SIZE) for _ in range(2000)]
    frequencies = [np.mean([getattr(t.mirror, name) for t in drawn]) for name in ("x", "y")]
    frequencies.append(np.mean([t.images[0].flip for t in drawn]))
    np.testing.assert_allclose(frequencies, 0.5, atol=0.05)
    both = np.mean([t.mirror.x and t.mirror.y for t in drawn])
    assert both == pytest.approx(0.25, abs=0.05)


def test_zero_strength_is_the_plain_fit():
    off = Augmentation(resize=(1.0, 1.0), image_flip=0.0, rotation=0.0, colour=0.0, bev_flip=0.0)
    sizes = [(900, 1600)] * 6
    assert off.draw(np.random.default_rng(0), sizes, (256, 704)) == Transform.fit(sizes, (256, 704))


@pytest.mark.parametrize("flip", [False, True])
def test_rounding_leaves_no_black_seam(flip):
    """Sizes of the source's own shape are filled, though scale * 900 - height is not always exactly 0."""
    for n in range(1, 101):
        fit = replace(ImageTransform.fit((900, 1600), (9 * n, 16 * n)), flip=flip)
        assert fit.window((900, 1600), (9 * n, 16 * n)) == (0, 0, 16 * n, 9 * n)


def test_mirrored_image_mirrors_its_coordinates():
    mirrored = ImageTransform(scale=0.5, offset=(3.0, 4.0), flip=True).upright(100)
    np.testing.assert_allclose(mirrored @ [20, 30, 1], [100 - (10 - 3), 15 - 4, 1])


def test_turned_image_turns_its_coordinates():
    """By 90 degrees counter-clockwise what lies right of the middle comes to lie above it."""
    turned = ImageTransform(scale=0.5, offset=(0.0, 0.0), flip=False, rotation=90.0).matrix((60, 100))
    np.testing.assert_allclose(turned @ [120, 60, 1], [50, 20, 1])


@pytest.mark.parametrize(
    "values",
    [
        {"resize": (1.2, 0.9)},
        {"resize": (0.0, 1.0)},
        {"image_flip": 1.5},
        {"bev_flip": -0.1},
        {"colour": 1.0},
        {"rotation": -1.0},
    ],
)
def test_values_out_of_range_are_refused(values):
    good = {"resize": (0.9, 1.1), "image_flip": 0.5, "rotation": 5.4, "colour": 0.2, "bev_flip": 0.5}
    with pytest.raises(InputError, match=f"augmentation {next(iter(values))}="):
        Augmentation(**(good | values))
