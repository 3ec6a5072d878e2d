"""Farthest point sampling against its definition: known answers, ties, duplicates, and the three implementations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.farthest_points import farthest_points, reference


def points(seed, count, levels=0):
    """Points in a flat box; with `levels`, on a coarse lattice, so that points coincide and distances tie."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(count, 3, generator=generator)
    if levels:
        unit = (unit * levels).floor()
    return unit * torch.tensor([100.0, 100.0, 8.0]) - torch.tensor([50.0, 50.0, 5.0])


def test_known_answer_and_the_first_of_equals():
    line = torch.tensor([[4.0, 0, 0], [0, 0, 0], [8, 0, 0], [2, 0, 0], [6, 0, 0]])
    assert farthest_points(line, 5, 1).tolist() == [0, 1, 2, 3, 4]
    assert farthest_points(line.flip(0), 5, 1).tolist() == [0, 3, 1, 2, 4]


def test_points_that_coincide_are_chosen_last_and_then_the_first_again():
    twice = torch.tensor([[1.0, 0, 0], [1, 0, 0], [3, 0, 0], [3, 0, 0]])
    assert farthest_points(twice, 4, 1).tolist() == [0, 2, 0, 0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 300), levels=st.sampled_from([0, 2, 5]), data=st.data())
def test_matches_the_definition_bit_by_bit(seed, count, levels, data):
    cloud = points(seed, count, levels)
    chosen = data.draw(st.integers(1, count))
    assert torch.equal(farthest_points(cloud, chosen, 1), reference.sample([cloud], [chosen])[0])


def test_matches_the_definition_where_most_buckets_are_out_of_reach():
    cloud = points(0, 6000)
    assert torch.equal(farthest_points(cloud, 1500, 1), reference.sample([cloud], [1500])[0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(4, 200), subsets=st.integers(1, 4), data=st.data())
def test_subsets_are_sampled_by_themselves(seed, count, subsets, data):
    cloud = points(seed, count)
    total = data.draw(st.integers(subsets, count))
    chosen = farthest_points(cloud, total, subsets)
    assert len(chosen) == total == len(set(chosen.tolist()))
    for r in range(subsets):
        own = chosen[chosen % subsets == r]
        assert torch.equal(own, r + subsets * farthest_points(cloud[r::subsets], len(own), 1))


def test_layout_and_precision_of_the_points_do_not_matter():
    cloud = points(1, 500).half()
    expected = farthest_points(cloud.float(), 100, 1)
    assert torch.equal(farthest_points(cloud.T.contiguous().T, 100, 1), expected)


@pytest.mark.parametrize(("count", "subsets"), [(0, 1), (6, 1), (2, 3)])
def test_impossible_numbers_are_refused(count, subsets):
    with pytest.raises(ValueError, match=f"cannot choose {count} of 5 points in {subsets} subsets"):
        farthest_points(points(0, 5), count, subsets)


TWINS = """
import torch
from kernels.farthest_points import reference, triton as twin

generator = torch.Generator().manual_seed(0)
for sizes, counts, levels in (([1], [1], 0), ([1300], [30], 0), ([70], [40], 3), ([129, 128], [9, 8], 0)):
    parts = [torch.rand(size, 3, generator=generator) * 50 for size in sizes]
    if levels:
        parts = [(part / 50 * levels).floor() for part in parts]
    for found, expected in zip(twin.sample(parts, counts), reference.sample(parts, counts), strict=True):
        assert torch.equal(found, expected), (sizes, found, expected)
"""


def test_triton_twin_in_the_interpreter_matches_torch(interpret):
    interpret(TWINS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("subsets", [1, 3])
def test_gpu_matches_cpu(subsets):
    cloud = points(2, 20000)
    on_cpu = farthest_points(cloud, 3000, subsets)
    assert torch.equal(farthest_points(cloud.cuda(), 3000, subsets).cpu(), on_cpu)
