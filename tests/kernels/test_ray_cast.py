"""Ray casting against its reference, a plain walk, against geometry, and the twins against each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ray_cast import ray_cast, reference


def scene(seed, shape=(7, 5, 4), volumes=2, rays=40, share=0.15, reach=3.0):
    """Random volumes, and rays from inside and around them; half of all coordinates lie on a grid of 1/4 voxel."""
    random = np.random.default_rng(seed)
    occupied = random.random((volumes, *shape)) < share
    ends = random.uniform(-reach, np.array(shape) + reach, (2, rays, 3))
    ends = np.where(random.random(ends.shape) < 0.5, np.round(4 * ends) / 4, ends).astype(np.float32)
    ends[1, (ends[0] == ends[1]).all(-1)] += 1  # a ray has a direction
    return torch.from_numpy(occupied), torch.from_numpy(ends[0]), torch.from_numpy(ends[1])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(1, 8)] * 3),
    volumes=st.integers(1, 8),
    share=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
)
def test_matches_a_plain_walk_bit_for_bit(seed, shape, volumes, share):
    occupied, origins, ends = scene(seed, shape, volumes, rays=15, share=share)
    voxels, distances = ray_cast(occupied, origins, ends)
    assert voxels.dtype == torch.int32 and distances.dtype == torch.float32
    expected = reference.walk(occupied, origins, ends)
    assert torch.equal(voxels, expected[0]) and torch.equal(distances, expected[1])


def box_crossing(voxels_V3, origin, direction):
    """Where a ray enters and leaves unit boxes, by the slab method."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (voxels_V3 - origin) / direction, (voxels_V3 + 1 - origin) / direction
    return np.fmin(first, second).max(-1), np.fmax(first, second).min(-1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_from_inside_the_grid_it_ends_in_the_nearest_occupied_box_that_the_ray_crosses(seed):
    shape = (7, 5, 4)
    occupied, _, _ = scene(seed, shape, volumes=1, share=0.05)
    random = np.random.default_rng(seed)
    origins = random.uniform(0.01, np.array(shape) - 0.01, (30, 3)).astype(np.float32)
    ends = (origins + random.normal(size=(30, 3))).astype(np.float32)
    voxels, distances = ray_cast(occupied, torch.from_numpy(origins), torch.from_numpy(ends))
    boxes_V3 = occupied[0].nonzero().numpy()
    for origin, end, voxel, distance in zip(
        origins.astype(float), ends.astype(float), voxels[0].tolist(), distances[0].tolist(), strict=True
    ):
        direction = (end - origin) / np.linalg.norm(end - origin)
        enter, leave = box_crossing(boxes_V3, origin, direction)
        crossed = (leave > enter + 1e-6) & (leave > 1e-6)
        if crossed.any():
            nearest = np.flatnonzero(crossed)[enter[crossed].argmin()]
            assert voxel == np.ravel_multi_index(tuple(boxes_V3[nearest]), shape)
            assert distance == pytest.approx(leave[nearest], rel=1e-6)
        else:  # it leaves the grid
            lower, upper = np.zeros(3), np.array(shape)
            exits = np.where(direction > 0, upper - origin, lower - origin) / direction
            assert distance == pytest.approx(exits.min(), rel=1e-6)


def one_ray(occupied_XYZ, origin, end):
    voxels, distances = ray_cast(occupied_XYZ[None], torch.tensor([origin]), torch.tensor([end]))
    index = np.unravel_index(int(voxels), occupied_XYZ.shape)
    return tuple(int(i) for i in index), float(distances)


def test_by_hand():
    occupied = torch.zeros(10, 3, 3, dtype=torch.bool)
    occupied[6, 1, 1] = True
    assert one_ray(occupied, (1.5, 1.5, 1.5), (2.5, 1.5, 1.5)) == ((6, 1, 1), 5.5)  # leaves it at x = 7
    assert one_ray(occupied, (9.25, 1.5, 1.5), (2.5, 1.5, 1.5)) == ((6, 1, 1), 3.25)  # leaves it at x = 6
    assert one_ray(occupied, (1.5, 0.5, 1.5), (2.5, 0.5, 1.5)) == ((9, 0, 1), 8.5)  # nothing: leaves the grid
    assert one_ray(occupied, (1.5, 1.5, 1.5), (1.5, 1.5, 2.5)) == ((1, 1, 2), 1.5)
    voxel, distance = one_ray(occupied, (1.5, 1.5, 1.5), (2.5, 1.5, 1.75))  # above it, out through z = 3 at x = 7.5
    assert voxel == (7, 1, 2) and distance == pytest.approx(math.hypot(6, 1.5))


def test_edges_of_the_original():
    occupied = torch.zeros(4, 4, 4, dtype=torch.bool)
    occupied[0, 0, 0] = True
    away = one_ray(occupied, (2.5, 2.5, 6.5), (2.5, 2.5, 7.5))
    assert away == ((0, 0, 0), -1.0)  # never enters
    below = one_ray(occupied, (0.5, 0.5, -0.5), (0.5, 0.5, 0.5))
    assert below == ((0, 0, 0), 1.5)  # truncated to voxel 0
    down = one_ray(occupied, (0.5, 0.5, -0.5), (0.5, 0.5, -1.5))
    assert down == ((0, 0, 0), -0.5)  # and there although it goes away
    assert one_ray(occupied, (0.5, 0.5, -1.5), (0.5, 0.5, 0.5)) == ((0, 0, 0), 2.5)  # enters from outside


def test_a_ray_is_given_up_after_1001_voxels():
    occupied = torch.ones(4, 4, 4, dtype=torch.bool)
    assert one_ray(occupied, (1000.5 + 3, 1.5, 1.5), (1000.5, 1.5, 1.5)) == ((3, 1, 1), 1000.5)
    assert one_ray(occupied, (1001.5 + 3, 1.5, 1.5), (1000.5, 1.5, 1.5)) == ((0, 0, 0), -1.0)


def test_of_borders_met_at_once_z_is_crossed_first_then_y():
    occupied = torch.zeros(2, 2, 2, dtype=torch.bool)
    for voxel in ((1, 1, 1), (0, 1, 1), (0, 0, 1)):  # each is met before those already occupied
        occupied[voxel] = True
        assert one_ray(occupied, (0.5, 0.5, 0.5), (1.5, 1.5, 1.5))[0] == voxel


TWINS = """
import torch
from kernels.ray_cast import reference, triton as twin
from test_ray_cast import scene

# from inside the grid, more than one block of rays; from around it, where some rays never enter
for seed, shape, volumes, rays, reach in ((0, (7, 5, 4), 2, 140, -0.3), (1, (3, 4, 2), 1, 30, 3.0)):
    inputs = scene(seed, shape, volumes, rays, reach=reach)
    for expected, found in zip(reference.walk(*inputs), twin.walk(*inputs), strict=True):
        assert torch.equal(expected, found)
"""


def test_triton_twin_in_the_interpreter_matches_the_reference(interpret):
    interpret(TWINS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_matches_cpu_bit_for_bit():
    inputs = scene(3, (40, 40, 16), 3, 5000)
    for cpu, gpu in zip(ray_cast(*inputs), ray_cast(*(tensor.cuda() for tensor in inputs)), strict=True):
        assert torch.equal(cpu, gpu.cpu())
