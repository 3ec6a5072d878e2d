from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyquaternion import Quaternion

from distill.classes import OCC3D_CLASSES
from distill.grids import VoxelGrid
from distill.nuscenes.keyframe import Camera, Keyframe
from distill.nuscenes.layout import CAMERAS
from distill.pictures.cameras import LINE, OPACITY, SHADES, draw_voxels, keyframe_overlays

FREE, CAR, PEDESTRIAN = 17, 4, 7  # a car is blue, a pedestrian red
GRID = VoxelGrid("small", "ego", (-8.0, -6.0, -2.0), 1.0, (16, 12, 6))
CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
QUADS = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # camera z along ego x
SIZE = (48, 64)


def draw(semantics, cam2grid, focal, mask=None, size=SIZE, grid=GRID, pixels=None):
    """Over a black picture, with the principal point in its middle."""
    intrinsics = np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]])
    pixels = np.zeros((*size, 3), np.uint8) if pixels is None else pixels
    return draw_voxels(pixels, intrinsics, cam2grid, semantics, mask, grid, OCC3D_CLASSES)


def filled(*voxels, grid=GRID):
    semantics = np.full(grid.shape, FREE, np.uint8)
    for *index, class_id in voxels:
        semantics[tuple(index)] = class_id
    return semantics


def pose(rotation, position):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, position
    return matrix


def rotation_of(random):
    return Quaternion(random.normal(size=4)).unit.rotation_matrix


def sides_of(quad_42, points_P2):
    """Signed distance in pixels to the outline of a convex quadrilateral, positive inside."""
    edge_42 = np.roll(quad_42, -1, 0) - quad_42
    to_P42 = points_P2[:, None] - quad_42
    area_P4 = edge_42[:, 0] * to_P42[..., 1] - edge_42[:, 1] * to_P42[..., 0]
    distance_P4 = area_P4 / (np.linalg.norm(edge_42, axis=1) + 1e-12)
    return np.maximum(distance_P4.min(1), (-distance_P4).min(1))


def assert_covers_projection(seen, index, cam2grid, focal):
    """Its corners through K [R|t]: pixels whose centres are within the faces that they span are seen, and no others."""
    corners_83 = (np.array(GRID.lower) + index + CORNERS - cam2grid[:3, 3]) @ cam2grid[:3, :3]
    corners_82 = focal * corners_83[:, :2] / corners_83[:, 2:] + (SIZE[1] / 2, SIZE[0] / 2)
    v, u = np.indices(SIZE).reshape(2, -1) + 0.5
    inside = np.max([sides_of(corners_82[list(quad)], np.stack([u, v], -1)) for quad in QUADS], axis=0).reshape(SIZE)
    assert (inside > 0.01).any()
    assert seen[inside > 0.01].all()
    assert not seen[inside < -0.01].any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    distance=st.floats(2.5, 25),
    focal=st.floats(60, 150),
    aside=st.tuples(st.floats(-0.15, 0.15), st.floats(-0.15, 0.15)),
)
def test_a_voxel_covers_the_projection_of_its_corners(seed, distance, focal, aside):
    """Any rotation, inside the grid and outside."""
    random = np.random.default_rng(seed)
    index = random.integers((0, 0, 0), GRID.shape)
    rotation = rotation_of(random)
    centre = np.array(GRID.lower) + index + 0.5
    cam2grid = pose(rotation, centre - rotation @ [*np.multiply(aside, distance), distance])
    seen = draw(filled((*index, CAR)), cam2grid, focal).any(-1)

    assert_covers_projection(seen, index, cam2grid, focal)


def test_a_camera_just_outside_the_grid():
    """Rays beside the grid by less than a voxel, where the traversal would begin inside."""
    cam2grid = pose(FORWARD, np.add(GRID.lower, (-4.0, -0.25, -0.5)))
    seen = draw(filled((0, 0, 0, CAR)), cam2grid, 60.0).any(-1)
    assert_covers_projection(seen, (0, 0, 0), cam2grid, 60.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), distance=st.floats(3, 20))
def test_every_pixel_shows_the_nearest_voxel_of_the_mask(seed, distance):
    """Against intersecting each ray with each box of a random cloud; the camera looks at its middle."""
    random = np.random.default_rng(seed)
    semantics = np.where(random.random(GRID.shape) < 0.3, random.choice([CAR, PEDESTRIAN], GRID.shape), FREE)
    mask = random.random(GRID.shape) < 0.7
    rotation = rotation_of(random)
    middle = np.add(GRID.lower, GRID.upper) / 2 + random.uniform(0.1, 0.4, 3)
    cam2grid = pose(rotation, middle - distance * rotation[:, 2])
    size, focal = (12, 16), 12.0
    image = draw(semantics.astype(np.uint8), cam2grid, focal, mask, size)

    shown_K3 = np.argwhere((semantics != FREE) & mask)
    v, u = np.indices(size).reshape(2, -1) + 0.5
    rays_R3 = np.stack([(u - size[1] / 2) / focal, (v - size[0] / 2) / focal, np.ones_like(u)], -1) @ rotation.T
    nearest = []
    for grown in (-1e-4, 0, 1e-4):
        low_RK3, high_RK3 = (
            (np.array(GRID.lower) + shown_K3 + offset - cam2grid[:3, 3]) / rays_R3[:, None]
            for offset in (-grown, 1 + grown)
        )
        enter_RK, leave_RK = np.minimum(low_RK3, high_RK3).max(-1), np.maximum(low_RK3, high_RK3).min(-1)
        enter_RK[(enter_RK > leave_RK) | (enter_RK < 0)] = np.inf
        nearest.append(np.where(np.isfinite(enter_RK).any(1), enter_RK.argmin(1), -1))
    clear_R = (nearest[0] == nearest[1]) & (nearest[1] == nearest[2])
    expected_R = np.append(semantics[tuple(shown_K3.T)], FREE)[nearest[1]][clear_R]
    assert (expected_R != FREE).any()
    red_R, _, blue_R = image.reshape(-1, 3)[clear_R].T > 0
    np.testing.assert_array_equal(red_R, expected_R == PEDESTRIAN)
    np.testing.assert_array_equal(blue_R, expected_R == CAR)


CAMERA = pose(FORWARD, (-7.5, 0.5, 0.5))  # in voxel (0, 6, 2)


def test_near_hides_far_unless_it_is_outside_the_mask():
    semantics = filled((4, 6, 2, CAR), (9, 6, 2, PEDESTRIAN))
    assert draw(semantics, CAMERA, 60.0)[24, 32].argmax() == 2
    mask = semantics != CAR
    assert draw(semantics, CAMERA, 60.0, mask)[24, 32].argmax() == 0


def test_the_voxel_around_the_camera_is_not_drawn():
    ahead = (4, 6, 2, PEDESTRIAN)
    around, alone = (draw(filled(*voxels), CAMERA, 60.0) for voxels in (((0, 6, 2, CAR), ahead), (ahead,)))
    assert alone.any()
    np.testing.assert_array_equal(around, alone)


def test_what_lies_behind_is_not_drawn():
    backwards = pose(FORWARD * [-1, 1, -1], CAMERA[:3, 3])
    wall = np.full(GRID.shape, FREE, np.uint8)
    wall[4:] = CAR
    assert draw(wall, CAMERA, 60.0).any()
    assert not draw(wall, backwards, 60.0).any()


def test_the_picture_shows_through_and_stays_where_nothing_is_seen():
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    before = pixels.copy()
    everything = np.full(GRID.shape, CAR, np.uint8)
    nothing_shown = np.zeros(GRID.shape, bool)
    for semantics, mask in ((filled(), None), (everything, nothing_shown)):
        np.testing.assert_array_equal(draw(semantics, CAMERA, 60.0, mask, pixels=pixels), before)
    semantics = filled((10, 6, 2, CAR))
    blended = draw(semantics, CAMERA, 60.0, pixels=pixels)
    np.testing.assert_array_equal(pixels, before)
    hit = draw(semantics, CAMERA, 60.0).any(-1)
    assert 0 < hit.sum() < hit.size / 4
    np.testing.assert_array_equal(blended[~hit], pixels[~hit])
    colour = OPACITY * SHADES[0][0] * OCC3D_CLASSES.palette[CAR]
    assert blended[24, 32] == pytest.approx((1 - OPACITY) * pixels[24, 32] + colour, abs=0.5)


@pytest.mark.parametrize(("focal", "lined"), [(50.0, True), (15.0, False)])
def test_near_voxels_are_told_apart_by_lines(focal, lined):
    """A wall 5 m in front of the camera: one line every focal / 5 pixels, none where that is less than 3."""
    wall = np.full(GRID.shape, FREE, np.uint8)
    wall[5] = PEDESTRIAN
    red = draw(wall, pose(FORWARD, (-8.0, 0.0, 1.0)), focal, size=(20, 40))[9, :, 0].astype(int)
    plain, dark = (round(OPACITY * SHADES[0][0] * 255 * brightness) for brightness in (1, LINE))
    expected = np.full(40, plain)
    expected[[10, 20, 30]] = dark if lined else plain
    np.testing.assert_array_equal(red[4:36], expected[4:36])


def test_narrow_faces_have_no_lines():
    """A floor 1 m below the camera: at 5 m a voxel is 8 pixels wide, but its face only 1.6 pixels high."""
    floor = np.full(GRID.shape, FREE, np.uint8)
    floor[:, :, 0] = PEDESTRIAN
    red = draw(floor, pose(FORWARD, (-8.0, 0.03, 0.0)), 40.0, size=(80, 40))[..., 0]
    assert set(np.unique(red[44:48])) == {round(OPACITY * 255)}  # 5 to 9 m
    assert set(np.unique(red[64:])) == {round(OPACITY * 255), round(OPACITY * 255 * LINE)}  # nearer than 1.7 m


def test_the_top_is_brighter_than_the_sides():
    down, across = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]]), np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    brightness = []
    for rotation in (down, FORWARD, across):
        image = draw(filled((8, 6, 2, PEDESTRIAN)), pose(rotation, (0.5, 0.5, 0.5) - 3 * rotation[:, 2]), 60.0)
        brightness.append(int(image[24, 32, 0]))
    shades = [SHADES[2][1], SHADES[0][0], SHADES[1][0]]
    assert brightness == [round(OPACITY * shade * 255) for shade in shades]
    assert shades[0] == max(shades)


def keyframe_of(lidar2ego):
    """A car at 10 m/s along global x; each camera looks 10 to 60 ms before the LiDAR, when the car was farther back."""
    cameras = []
    for place, channel in enumerate(CAMERAS):
        turn = Quaternion(axis=(0, 0, 1), degrees=60 - 60 * place).rotation_matrix
        intrinsics = np.array([[700.0, 0, 820 + place], [0, 720, 440], [0, 0, 1]])
        past = pose(np.eye(3), (100 - 0.1 * (place + 1), 50, 0))
        cam2ego = pose(turn @ FORWARD, (0.5, 0.25, 1.5))
        cameras.append(Camera(channel, Path(channel), 1600, 900, intrinsics, cam2ego, past))
    return Keyframe("a", "s", 0, "", "", tuple(cameras), Path("scan"), 5, lidar2ego, pose(np.eye(3), (100, 50, 0)))


def test_keyframe_overlays_scale_calibration_and_include_ego_motion():
    """One voxel in front of each camera; they look 60 degrees apart and see 98 degrees."""
    keyframe = keyframe_of(np.eye(4))
    fine = VoxelGrid("fine", "ego", (-4.0, -4.0, 0.0), 0.125, (64, 64, 24))
    ahead_63 = np.array([Quaternion(axis=(0, 0, 1), degrees=60 - 60 * place).rotate([3, 0, 1.2]) for place in range(6)])
    index_63 = np.floor((ahead_63 - fine.lower) / fine.voxel_size).astype(int)
    semantics = filled(*((*index, CAR) for index in index_63), grid=fine)
    pictures = [np.zeros((180, 400, 3), np.uint8)] * 6
    images = keyframe_overlays(keyframe, pictures, semantics, None, fine, OCC3D_CLASSES)
    for place, camera in enumerate(keyframe.cameras):
        centre = fine.lower + (index_63[place] + 0.5) * fine.voxel_size
        centre[0] += 0.1 * (place + 1)  # when the picture was taken, the car was behind
        u, v, depth = camera.intrinsics @ camera.cam2ego[:3, :3].T @ (centre - camera.cam2ego[:3, 3])
        rows, columns = np.nonzero(images[place].any(-1))
        assert columns.mean() + 0.5 == pytest.approx(u / depth / 4, abs=1)
        assert rows.mean() + 0.5 == pytest.approx(v / depth / 5, abs=1)


def test_the_same_world_looks_the_same_on_a_lidar_grid():
    """LIDAR_TOP looks along y: its x points right. Everything is a multiple of a power of two, hence exact."""
    lidar2ego = pose([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], (1.0, 0.0, 2.0))
    keyframe = keyframe_of(lidar2ego)
    random = np.random.default_rng(1)
    ego = VoxelGrid("ego", "ego", (-8.0, -6.0, -1.0), 0.5, (32, 24, 10))
    lidar = replace(ego, name="lidar", frame="lidar", lower=(-6.0, -9.0, -3.0), shape=(24, 32, 10))
    semantics = np.where(random.random(ego.shape) < 0.1, random.integers(0, 17, ego.shape), FREE).astype(np.uint8)
    mask = random.random(ego.shape) < 0.5
    turned, turned_mask = (array[:, ::-1].swapaxes(0, 1) for array in (semantics, mask))  # ego y = -x, ego x = y + 1
    pictures = [random.integers(0, 256, (90, 160, 3), np.uint8) for _ in CAMERAS]
    on_ego = keyframe_overlays(keyframe, pictures, semantics, mask, ego, OCC3D_CLASSES)
    on_lidar = keyframe_overlays(keyframe, pictures, turned, turned_mask, lidar, OCC3D_CLASSES)
    for before, expected, image in zip(pictures, on_ego, on_lidar, strict=True):
        assert (expected != before).any(-1).mean() > 0.3
        np.testing.assert_array_equal(image, expected)
