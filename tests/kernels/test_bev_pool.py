"""BEV pooling against its definition, and the Triton twin against the torch one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.bev_pool import bev_pool


def definition(depth_BNDHW, context_BNCHW, cell_BNDHW, cells):
    """Every point by itself, autograd through plain indexing."""
    batch, channels = context_BNCHW.shape[0], context_BNCHW.shape[2]
    points = torch.einsum("bndhw,bnchw->bndhwc", depth_BNDHW, context_BNCHW)
    pooled = []
    for b in range(batch):
        inside = cell_BNDHW[b] >= 0
        empty = torch.zeros(cells, channels, dtype=points.dtype)
        pooled.append(empty.index_add(0, cell_BNDHW[b][inside], points[b][inside]).T)
    return torch.stack(pooled)


def inputs(seed, batch=2, cameras=3, bins=5, height=2, width=3, channels=6, cells=20):
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(batch, cameras, bins, height, width, generator=generator)
    context = torch.randn(batch, cameras, channels, height, width, generator=generator)
    # three quarters of the cell numbers drawn lie inside
    cell = torch.randint(-cells // 3, cells, depth.shape, generator=generator).clamp(min=-1)
    return depth.requires_grad_(), context.requires_grad_(), cell


def gradients(pool, depth, context, cell, cells):
    pooled = pool(depth, context, cell, cells)
    weights = torch.linspace(-1, 1, pooled.numel(), dtype=pooled.dtype).view_as(pooled)
    return pooled, *torch.autograd.grad((weights * pooled).sum(), (depth, context))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    cameras=st.integers(1, 3),
    bins=st.integers(1, 9),
    channels=st.integers(1, 9),
    cells=st.integers(1, 40),
)
def test_matches_the_definition(seed, batch, cameras, bins, channels, cells):
    depth, context, cell = inputs(seed, batch, cameras, bins, channels=channels, cells=cells)
    for found, expected in zip(
        gradients(bev_pool, depth, context, cell, cells),
        gradients(definition, depth, context, cell, cells),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_known_answer():
    depth = torch.tensor([0.25, 0.75]).view(1, 1, 2, 1, 1)
    context = torch.tensor([4.0, -8.0]).view(1, 1, 2, 1, 1)
    apart = bev_pool(depth, context, torch.tensor([2, 0]).view(depth.shape), 3)
    assert apart.tolist() == [[[3.0, 0.0, 1.0], [-6.0, 0.0, -2.0]]]
    together = bev_pool(depth, context, torch.tensor([1, 1]).view(depth.shape), 3)
    assert together.tolist() == [[[0.0, 4.0, 0.0], [0.0, -8.0, 0.0]]]


def test_all_points_outside_give_zeros_and_zero_gradients():
    depth, context, cell = inputs(0)
    pooled, grad_depth, grad_context = gradients(bev_pool, depth, context, torch.full_like(cell, -1), 20)
    assert pooled.shape == (2, 6, 20)
    assert not pooled.any() and not grad_depth.any() and not grad_context.any()


def test_layout_of_the_inputs_does_not_matter():
    depth, context, cell = inputs(1)
    expected = bev_pool(depth, context, cell, 20)
    strided = context.detach().movedim(2, -1).contiguous().movedim(-1, 2)
    assert not strided.is_contiguous()
    transposed = depth.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(bev_pool(transposed, strided, cell.int(), 20), expected)


def test_half_precision_is_summed_in_float32():
    depth, context, cell = inputs(2)
    low_depth, low_context = depth.detach().bfloat16(), context.detach().bfloat16()
    pooled = bev_pool(low_depth, low_context, cell, 20)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, definition(low_depth.float(), low_context.float(), cell, 20))


TWINS = """
import torch
from kernels.bev_pool import reference, triton as twin

for seed, pixels, bins, channels, cells in ((0, 7, 5, 6, 11), (1, 4, 40, 33, 3), (2, 3, 16, 8, 50)):
    torch.manual_seed(seed)
    depth, context = torch.rand(pixels, bins), torch.randn(pixels, channels)
    for cell in (torch.randint(0, cells + 1, (pixels, bins)), torch.full((pixels, bins), cells)):
        grad = torch.randn(cells, channels)
        pairs = [(reference.splat(depth, context, cell, cells), twin.splat(depth, context, cell, cells))]
        pairs += zip(reference.gather(grad, depth, context, cell), twin.gather(grad, depth, context, cell), strict=True)
        for expected, found in pairs:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
"""


def test_triton_twin_in_the_interpreter_matches_torch(interpret):
    interpret(TWINS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_matches_cpu_and_repeats_itself():
    depth, context, cell = inputs(3, bins=40, channels=24, cells=50)
    expected = gradients(bev_pool, depth, context, cell, 50)
    on_gpu = [tensor.detach().cuda().requires_grad_(tensor.requires_grad) for tensor in (depth, context, cell)]
    runs = []
    for _ in range(2):
        pooled = bev_pool(*on_gpu, 50)
        weights = torch.linspace(-1, 1, pooled.numel()).view_as(pooled).cuda()
        runs.append((pooled, *torch.autograd.grad((weights * pooled).sum(), on_gpu[:2])))
    for first, second, cpu in zip(*runs, expected, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first.cpu(), cpu, rtol=1e-4, atol=1e-5)
