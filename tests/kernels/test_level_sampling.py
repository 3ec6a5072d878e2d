"""Level sampling against grid_sample, known answers, gradients, and the Triton twin."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.level_sampling import sample_levels


def definition(maps, image, uv, weights):
    """Every sample of every level by grid_sample."""
    groups, total = len(image), 0
    for level, values in enumerate(maps):
        for group, channels in enumerate(values.movedim(3, 1).chunk(groups, 1)):
            grid = uv[group, :, None, None] * 2 - 1
            samples = F.grid_sample(channels[image[group]], grid, align_corners=True)[:, :, 0, 0]
            part = torch.zeros(groups, *samples.shape, dtype=samples.dtype)
            part[group] = weights[group, :, level, None] * samples
            total = total + part
    return total


def inputs(seed, groups=2, samples=9, images=3, channels=3, levels=3):
    random = torch.Generator().manual_seed(seed)
    sizes = [(7 - 2 * level, 10 - 3 * level) for level in range(levels)]
    maps = [torch.randn(images, *size, groups * channels, generator=random).double() for size in sizes]
    image = torch.randint(0, images, (groups, samples), generator=random)
    # a third lies inside along each axis, and some within a pixel of the border
    uv = torch.rand(groups, samples, 2, generator=random).double() * 3 - 1
    return maps, image, uv, torch.randn(groups, samples, levels, generator=random).double()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    groups=st.integers(1, 3),
    samples=st.integers(1, 20),
    images=st.integers(1, 3),
    channels=st.integers(1, 5),
    levels=st.integers(1, 3),
)
def test_matches_grid_sample(seed, groups, samples, images, channels, levels):
    given = inputs(seed, groups, samples, images, channels, levels)
    torch.testing.assert_close(sample_levels(*given), definition(*given))


def test_known_answers():
    image = torch.tensor([[[[1.0, 10.0], [3.0, 30.0]]]])  # one row, two columns, two groups of one channel
    uv = torch.tensor([[[0.0, 0.0], [0.5, 0.0], [1.5, 0.0]], [[1.0, 0.0], [-0.25, 0.0], [9.0, 0.0]]])
    found = sample_levels([image], torch.zeros(2, 3, dtype=torch.int64), uv, torch.full((2, 3, 1), 2.0))
    assert found.squeeze(2).tolist() == [[2, 4, 3], [60, 15, 0]]


def test_gradients_are_those_of_what_it_returns():
    maps, image, uv, weights = inputs(4, samples=4, levels=2)
    free = [each.requires_grad_() for each in (uv, weights, *maps)]
    sampled = lambda uv, weights, *maps: sample_levels([*maps], image, uv, weights)  # noqa: E731
    torch.autograd.gradcheck(sampled, free, fast_mode=True)


def test_no_samples_are_no_mistake():
    maps, image, uv, weights = inputs(0, samples=0)
    assert sample_levels(maps, image, uv, weights).shape == (2, 0, 3)


TWINS = """
import torch
from kernels.level_sampling import reference, triton as twin

for seed, groups, samples, images, channels in ((0, 2, 6, 2, 3), (1, 4, 5, 3, 16), (2, 1, 0, 1, 4)):
    torch.manual_seed(seed)
    maps = [torch.randn(images, *size, groups * channels) for size in ((7, 10), (5, 6), (2, 3))]
    image = torch.randint(0, images, (groups, samples))
    uv, weights = torch.rand(groups, samples, 2) * 3 - 1, torch.randn(groups, samples, 3)
    found, expected = (side.sample(maps, image, uv, weights) for side in (twin, reference))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn(groups, samples, channels)
    for found, expected in zip(*(side.gradients(grad, maps, image, uv, weights) for side in (twin, reference))):
        assert expected.any() or not samples
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
"""


def test_triton_twin_in_the_interpreter_matches_torch(interpret):
    interpret(TWINS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_matches_cpu_and_repeats_itself():
    maps, image, uv, weights = inputs(3, groups=4, samples=500, images=6, channels=32)
    maps, uv, weights = [each.float() for each in maps], uv.float(), weights.float()
    answers = []
    for device in ("cuda", "cuda", "cpu"):
        free = [each.to(device).requires_grad_() for each in (uv, weights, *maps)]
        found = sample_levels(free[2:], image.to(device), *free[:2])
        answers.append([found, *torch.autograd.grad(found.square().sum(), free)])
    for first, second, expected in zip(*answers, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first.cpu(), expected, rtol=1e-3, atol=1e-3)
