"""What cameras see: the twins against each other, known answers, and mirrored worlds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.dispatch import only
from kernels.observe import follow, observe

# a camera that looks along x, with z up; columns are camera x, y, z
FORWARD = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def pose(position, rotation_33=FORWARD):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = rotation_33, torch.tensor(position, dtype=torch.float64)
    return matrix


def along_x(occupied_XYZ, position, columns=1):
    """What a camera sees whose image of one pixel has its centre straight ahead."""
    intrinsics_33 = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return observe(occupied_XYZ, intrinsics_33[None], pose(position)[None], (1, 1), columns)


def voxels(shape, *occupied):
    occupied_XYZ = torch.zeros(shape, dtype=torch.bool)
    for voxel in occupied:
        occupied_XYZ[voxel] = True
    return occupied_XYZ


def rig(seed, shape, cameras=3):
    """Cameras in and around the voxels; half of all positions lie on a grid of 1/2 voxel, half of all axes on one."""
    random = np.random.default_rng(seed)
    positions = random.uniform(-3, np.array(shape) + 3, (cameras, 3))
    positions = np.where(random.random(positions.shape) < 0.5, np.round(2 * positions) / 2, positions)
    turned = np.linalg.qr(random.normal(size=(cameras, 3, 3)))[0]
    turned[random.random(cameras) < 0.5] = FORWARD.numpy()
    intrinsics = np.array([[random.uniform(2, 9), 0, 4], [0, random.uniform(2, 9), 3], [0, 0, 1]])
    poses = torch.stack([pose(p, torch.from_numpy(r)) for p, r in zip(positions, turned, strict=True)])
    occupied = random.random(shape) < random.choice([0.02, 0.2, 0.6])
    return torch.from_numpy(occupied), torch.from_numpy(intrinsics).expand(cameras, 3, 3), poses


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), shape=st.tuples(*[st.integers(1, 8)] * 3), columns=st.integers(1, 16))
def test_the_twins_return_the_same_bits(seed, shape, columns):
    scene = *rig(seed, shape), (6, 8), columns
    with only("reference"):
        expected = observe(*scene)
    assert torch.equal(observe(*scene), expected)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), shape=st.tuples(*[st.integers(1, 8)] * 3), columns=st.integers(1, 16))
def test_the_twins_follow_the_same_voxels(seed, shape, columns):
    within, *cameras = rig(seed, shape)
    with only("reference"):
        expected = follow(within, *cameras, (6, 8), columns)
    for found, other in zip(follow(within, *cameras, (6, 8), columns), expected, strict=True):
        assert torch.equal(found, other)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), shape=st.tuples(*[st.integers(1, 8)] * 3))
def test_what_is_seen_are_the_voxels_on_rays_up_to_the_first_surface(seed, shape):
    occupied, *cameras = rig(seed, shape)
    index, counts = follow(torch.ones_like(occupied), *cameras, (6, 8), 9)
    assert len(counts) == 3 * 9 * 7
    seen = torch.zeros_like(occupied).flatten()
    for path in index.split(counts.tolist()):
        walls = occupied.flatten()[path].nonzero()
        if len(walls):
            seen[path[: walls[0] + 1]] = True
    assert torch.equal(observe(occupied, *cameras, (6, 8), 9), seen.view(shape))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_what_is_not_looked_for_is_passed_over(seed):
    within, *cameras = rig(seed, (5, 6, 7))
    every, counts = follow(torch.ones_like(within), *cameras, (6, 8), 5)
    few, fewer = follow(within, *cameras, (6, 8), 5)
    wanted = within.flatten()[every]
    assert torch.equal(few, every[wanted])
    assert fewer.tolist() == [int(each.sum()) for each in wanted.split(counts.tolist())]


def test_a_ray_sees_up_to_the_first_surface_inclusive():
    occupied = voxels((8, 3, 3), (5, 1, 1), (7, 1, 1))
    assert along_x(occupied, (2.5, 1.5, 1.5)).nonzero().tolist() == [[x, 1, 1] for x in (2, 3, 4, 5)]


def test_from_outside_it_begins_where_it_enters():
    assert along_x(voxels((8, 3, 3), (2, 0, 2)), (-7.0, 0.5, 2.5)).nonzero().tolist() == [[x, 0, 2] for x in (0, 1, 2)]


@pytest.mark.parametrize("position", [(2.5, 1.5, 1.5), (6.5, 0.5, 0.5), (9.0, 0.5, 0.5), (-1.0, 3.0, 0.5)])
def test_a_ray_that_meets_no_surface_sees_nothing(position):
    """Past the wall, beyond it, leaving the voxels at once, and along the border outside of them."""
    assert not along_x(voxels((8, 3, 3), (5, 0, 0)), position).any()


def test_who_stands_in_a_surface_sees_it_alone():
    occupied = voxels((4, 1, 1), (1, 0, 0), (3, 0, 0))
    assert along_x(occupied, (1.5, 0.5, 0.5)).nonzero().tolist() == [[1, 0, 0]]


def test_where_borders_meet_it_crosses_z_then_y_then_x():
    """A ray along the diagonal of space, from a corner to a corner."""
    diagonal_33 = torch.linalg.qr(torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 1]]).double())[0]
    towards_33 = torch.stack([diagonal_33[:, 1], diagonal_33[:, 2], torch.ones(3, dtype=torch.float64)], 1)
    intrinsics_33 = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    occupied = voxels((2, 2, 2), (1, 1, 1))
    seen = observe(occupied, intrinsics_33[None], pose((0.5, 0.5, 0.5), towards_33)[None], (1, 1), 1)
    assert seen.nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]]


def test_rays_go_through_the_centres_of_square_cells():
    """An image of 4 x 2 pixels right in front of a wall: 2 columns make 1 row, 4 make 2, 8 make 4."""
    wall = torch.zeros(1, 16, 8, dtype=torch.bool)
    wall[0] = True
    intrinsics_33 = torch.tensor([[1.0, 0, 2], [0, 1, 1], [0, 0, 1]])
    # at a distance of 4 voxels a pixel is 4 voxels wide
    for columns, expected in ((1, [[0, 8, 4]]), (2, [[0, 4, 4], [0, 12, 4]])):
        seen = observe(wall, intrinsics_33[None], pose((-4.0, 8.0 + 1e-6, 4.0 + 1e-6))[None], (2, 4), columns)
        assert seen.nonzero().tolist() == expected
    for columns, count in ((4, 8), (8, 32), (16, 128), (32, 128)):
        assert observe(wall, intrinsics_33[None], pose((-4.0, 8.0, 4.0))[None], (2, 4), columns).sum() == count


def test_cameras_add_up():
    occupied, intrinsics, poses = rig(0, (12, 10, 6))
    together = observe(occupied, intrinsics, poses, (6, 8), 40)
    alone = [observe(occupied, intrinsics[n : n + 1], poses[n : n + 1], (6, 8), 40) for n in range(3)]
    assert torch.equal(together, torch.stack(alone).any(0))
    assert not any(torch.equal(together, one) for one in alone)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_what_is_seen_is_a_surface_or_before_one(seed):
    """Whatever is seen, an occupied voxel is; and the voxels of a view without surfaces are not."""
    occupied, intrinsics, poses = rig(seed, (7, 6, 5))
    seen = observe(occupied, intrinsics, poses, (6, 8), 20)
    assert seen.any() == (seen & occupied).any()
    unseen = occupied & ~seen
    assert torch.equal(observe(occupied & ~unseen, intrinsics, poses, (6, 8), 20), seen)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_a_mirrored_world_is_seen_mirrored(axes):
    random = np.random.default_rng(0)
    shape = (20, 16, 8)
    occupied = torch.from_numpy(random.random(shape) < 0.05)
    rotations = torch.from_numpy(np.linalg.qr(random.normal(size=(4, 3, 3)))[0])
    positions = random.uniform(-4, np.array(shape) + 4, (4, 3))
    poses = torch.stack([pose(p, r) for p, r in zip(positions, rotations, strict=True)])
    intrinsics = torch.tensor([[300.0, 0, 400], [0, 310, 220], [0, 0, 1]]).expand(4, 3, 3)
    mirror_44 = torch.eye(4, dtype=torch.float64)
    for axis in axes:
        mirror_44[axis, axis], mirror_44[axis, 3] = -1, shape[axis]
    seen = observe(occupied, intrinsics, poses, (450, 800), 100)
    assert 0.1 < seen.double().mean() < 0.9
    assert torch.equal(observe(occupied.flip(axes), intrinsics, mirror_44 @ poses, (450, 800), 100), seen.flip(axes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same():
    occupied, intrinsics, poses = rig(1, (30, 20, 10))
    found = observe(occupied.cuda(), intrinsics.cuda(), poses.cuda(), (6, 8), 64)
    assert torch.equal(found.cpu(), observe(occupied, intrinsics, poses, (6, 8), 64))
