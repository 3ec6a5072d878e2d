"""Deformable aggregation against grid_sample, known answers, and the Triton twin."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.deformable_aggregation import deformable_aggregation


def definition(maps, uv, weights):
    """Every sample of every camera and level, in float64."""
    total = 0
    for level, image in enumerate(maps):
        grid = uv.permute(2, 0, 1, 3).double() * 2 - 1
        samples = F.grid_sample(image.double(), grid, align_corners=False).permute(2, 3, 0, 1)
        grouped = samples.unflatten(3, (weights.shape[4], -1))
        total = total + (weights[:, :, :, level, :, None].double() * grouped).sum((1, 2))
    return total.flatten(1).float()


def inputs(seed, queries=9, points=3, cameras=2, groups=2, group_channels=3, levels=3):
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(cameras, groups * group_channels, 7 - 2 * level, 10 - 3 * level, generator=generator)
        for level in range(levels)
    ]
    # a third of the points lies inside along each axis, and some within a pixel of the border
    uv = torch.rand(queries, points, cameras, 2, generator=generator) * 3 - 1
    weights = torch.randn(queries, points, cameras, levels, groups, generator=generator)
    return maps, uv, weights


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    queries=st.integers(1, 20),
    points=st.integers(1, 5),
    cameras=st.integers(1, 3),
    groups=st.integers(1, 3),
    group_channels=st.integers(1, 5),
    levels=st.integers(1, 3),
)
def test_matches_grid_sample(seed, queries, points, cameras, groups, group_channels, levels):
    maps, uv, weights = inputs(seed, queries, points, cameras, groups, group_channels, levels)
    found = deformable_aggregation(maps, uv, weights)
    torch.testing.assert_close(found, definition(maps, uv, weights), rtol=1e-4, atol=1e-5)


def test_known_answers():
    # two columns, one row; channels of two groups
    image = torch.tensor([[[[1.0, 3.0]], [[10.0, 30.0]]]])
    positions = torch.tensor([[0.25, 0.5], [0.5, 0.5], [0.0, 0.5], [0.75, 0.25], [1.5, 0.5]])
    uv = positions.view(-1, 1, 1, 2)
    weights = torch.tensor([1.0, 2.0]).expand(5, 1, 1, 1, 2)
    expected = [[1, 20], [2, 40], [0.5, 10], [2.25, 45], [0, 0]]
    assert deformable_aggregation([image], uv, weights).tolist() == expected


def test_samples_of_a_query_are_summed_and_queries_are_apart():
    maps, uv, weights = inputs(0, queries=4)
    whole = deformable_aggregation(maps, uv, weights)
    parts = [deformable_aggregation(maps, uv[:, point, None], weights[:, point, None]) for point in range(3)]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(deformable_aggregation(maps, uv[2:3], weights[2:3]), whole[2:3])


def test_gradients_are_those_of_grid_sample():
    maps, uv, weights = inputs(4)
    gradient = torch.randn(9, 6, generator=torch.Generator().manual_seed(5))
    needed = [value.requires_grad_() for value in (*maps, uv, weights)]
    found, expected = (
        torch.autograd.grad(how(maps, uv, weights), needed, gradient) for how in (deformable_aggregation, definition)
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_without_queries_there_is_nothing_and_no_gradient():
    maps, uv, weights = inputs(5)
    found = deformable_aggregation([image.requires_grad_() for image in maps], uv[:0], weights[:0])
    assert found.shape == (0, 6)
    assert not any(gradient.any() for gradient in torch.autograd.grad(found.sum(), maps))


@pytest.mark.parametrize("outside", [7.0, -7.0, float("inf"), float("nan")])
def test_nothing_in_any_image_gives_zeros(outside):
    maps, uv, weights = inputs(1)
    uv[..., 1] = outside
    out = deformable_aggregation(maps, uv, weights)
    assert out.shape == (9, 6) and not out.any()


def test_layout_of_the_inputs_does_not_matter():
    maps, uv, weights = inputs(2)
    expected = deformable_aggregation(maps, uv, weights)
    strided = weights.permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 1, 2, 4)
    assert not strided.is_contiguous()
    last = [image.contiguous(memory_format=torch.channels_last) for image in maps]
    torch.testing.assert_close(deformable_aggregation(last, uv, strided), expected)


TWINS = """
import torch
from kernels.deformable_aggregation import reference, triton as twin

for seed, queries, points, cameras, groups, channels in ((0, 6, 3, 2, 2, 6), (1, 3, 2, 3, 4, 32), (2, 4, 1, 1, 3, 9)):
    torch.manual_seed(seed)
    maps = [torch.randn(cameras, channels, *size) for size in ((7, 10), (5, 6), (2, 3))]
    uv = torch.rand(queries, points, cameras, 2) * 3 - 1
    uv[0, 0, 0] = torch.tensor([torch.nan, torch.inf])
    weights = torch.randn(queries, cameras, 3, points, groups).permute(0, 3, 1, 2, 4)
    found, expected = (side.aggregate(maps, uv, weights) for side in (twin, reference))
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradient = torch.randn_like(found)
    for needed in ([uv, weights, *maps], [weights], maps[:1]):
        for value in needed:
            value.requires_grad_()
        found, expected = (
            torch.autograd.grad(side.aggregate(maps, uv, weights), needed, gradient) for side in (twin, reference)
        )
        assert all(value.any() for value in expected)
        torch.testing.assert_close(found, expected)
        for value in needed:
            value.requires_grad_(False)
"""


def test_triton_twin_in_the_interpreter_matches_torch(interpret):
    interpret(TWINS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_matches_cpu_and_repeats_itself():
    maps, uv, weights = inputs(3, queries=500, points=13, cameras=6, groups=4, group_channels=32)
    expected = deformable_aggregation(maps, uv, weights)
    on_gpu = [image.cuda() for image in maps], uv.cuda(), weights.cuda()
    first, second = (deformable_aggregation(*on_gpu) for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first.cpu(), expected, rtol=1e-4, atol=1e-5)
