"""Rendering along rays against numbers of explicit loops, known answers, and the three implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kernels.dispatch import only
from kernels.ray_march import Rays, march, reached, reference

SHAPE = (2, 7, 6, 4)
FAR, N = 9.0, 24
COS, SIN = 1.05 * math.cos(0.35), 1.05 * math.sin(0.35)
AUGMENTATIONS = {
    "identity": np.eye(3),
    "flipx": np.diag([-1.0, 1, 1]),
    "flipxy": np.diag([-1.0, -1, 1]),
    "turned": np.array([[COS, -SIN, 0], [SIN, COS, 0], [0, 0, 1.05]]),
}


@pytest.fixture(scope="module")
def upstream(shared, inputs):
    """Numbers of explicit loops, and the module that makes their inputs."""
    return np.load(shared / "fixtures/signals/render_clean.npz"), inputs


def case(upstream, augmentation):
    """Densities, logits and rays of the golden in voxel coordinates."""
    golden, inputs = upstream
    made = inputs.case_volume(int(golden["seed"]), rays=10)
    shape = made["density"].shape
    lower, size = np.array([-40, -40, -1]), np.array([80, 80, 6.4]) / shape
    turn, rays = AUGMENTATIONS[augmentation], made["rays"][0]
    origins, directions = (rays[:, 4:7] @ turn.T - lower) / size, rays[:, 10:13] @ turn.T / size
    batch = torch.zeros(len(rays), dtype=torch.int64)
    place = torch.arange(np.prod(shape), dtype=torch.int32).view(1, *shape)
    density = 0.08 * F.softplus(torch.tensor(made["density"]).flatten() - 9)
    logits = torch.tensor(made["semantic"]).flatten(0, 2)
    return density, logits, place, Rays(torch.tensor(origins), torch.tensor(directions), batch), made["rays"][0]


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_upstream_values(upstream, augmentation, implementation):
    golden, (density, logits, place, rays, _) = upstream[0], case(upstream, augmentation)
    far, samples = float(golden["far"]), int(golden["n"])
    with only(implementation):
        found = march(density, logits, place, rays, far, samples)
    t = (torch.arange(samples, dtype=torch.float64) + 0.5) * far / samples
    depth = (found.weights_RN * t).sum(1) + found.residual_R * far
    np.testing.assert_allclose(depth, golden[f"{augmentation}_depth"], rtol=1e-9)
    np.testing.assert_allclose(found.residual_R, golden[f"{augmentation}_last"], rtol=1e-9)
    row, share = reference.corners(place, rays, far / samples, samples)
    at_samples = (share.unsqueeze(3) * logits[row]).sum(2)
    probs = (found.weights_RN.unsqueeze(2) * at_samples.softmax(2)).sum(1)
    np.testing.assert_allclose(probs, golden[f"{augmentation}_prob"], rtol=1e-9)
    if augmentation == "identity":
        np.testing.assert_allclose(found.weights_RN, golden["identity_weights"], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(found.scores_RC, golden["identity_logit"], rtol=1e-9)


def scene(seed, rays=30, channels=5, listed=0.8, dtype=torch.float64):
    """Voxels of which some are listed, and rays of which some miss them."""
    random = torch.Generator().manual_seed(seed)
    place = torch.full((math.prod(SHAPE),), -1, dtype=torch.int32)
    chosen = (torch.rand(len(place), generator=random) < listed).nonzero().squeeze(1)
    place[chosen] = torch.arange(len(chosen), dtype=torch.int32)
    density = torch.rand(len(chosen), generator=random, dtype=dtype) ** 3
    scores = torch.randn(len(chosen), channels, generator=random, dtype=dtype)
    origins = torch.rand(rays, 3, generator=random, dtype=torch.float64) * 8 - 1
    directions = torch.randn(rays, 3, generator=random, dtype=torch.float64)
    batch = torch.randint(0, SHAPE[0], (rays,), generator=random)
    return density.requires_grad_(), scores.requires_grad_(), place.view(SHAPE), Rays(origins, directions, batch)


def everything(implementation, density, scores, place, rays):
    """What is rendered, and the gradients of a sum in which all of it has weights of its own."""
    with only(implementation):
        found = march(density, scores, place, rays, FAR, N)
        loss = sum((torch.linspace(-1, 2, part.numel()).view_as(part) * part).sum() for part in found)
        return *found, *torch.autograd.grad(loss, (density, scores))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.parametrize("seed", range(5))
def test_twins_agree(seed, dtype, tolerance):
    inputs = scene(seed, dtype=dtype)
    for found, expected in zip(everything("cpu", *inputs), everything("reference", *inputs), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_differences():
    density, scores, place, rays = scene(0, rays=6, channels=2, listed=0.3)
    density = (density + 0.1).detach().requires_grad_()
    with only("reference"):
        assert torch.autograd.gradcheck(lambda *values: march(*values, place, rays, FAR, N), (density, scores))


def test_every_ray_ends_somewhere_or_nowhere():
    weights, residual, *_ = everything("cpu", *scene(1))
    torch.testing.assert_close(weights.sum(1) + residual, torch.ones_like(residual))
    assert (residual == 1).any() and (residual < 0.5).any()


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_one_opaque_voxel_stops_a_ray_at_its_distance(implementation):
    """Voxels of 2 m, the fourth along x opaque: seen through its middle, the ray ends 7 m from where it begins."""
    place = torch.full((1, 8, 3, 3), -1, dtype=torch.int32)
    place[0, 3, 1, 1] = 0
    origins, directions = torch.tensor([[0.0, 1.5, 1.5]]), torch.tensor([[0.5, 0, 0]])
    rays = Rays(origins.double(), directions.double(), torch.zeros(1, dtype=torch.int64))
    with only(implementation):
        found = march(torch.tensor([1e6]), torch.tensor([[3.0]]), place, rays, 16.0, 8)
    assert found.weights_RN.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]
    assert (found.residual_R.item(), found.scores_RC.item()) == (0, 3)


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_nothing_to_meet_and_nobody_to_ask(implementation):
    density, scores, place, rays = scene(0)
    nobody = Rays(*(each[:0] for each in rays))
    *_, found, grad_density, grad_scores = everything(implementation, density, scores, place, nobody)
    assert found.shape == (0, 5) and not grad_density.any() and not grad_scores.any()
    nothing = everything(implementation, density, scores, torch.full_like(place, -1), rays)
    assert not nothing[0].any() and (nothing[1] == 1).all() and not any(part.any() for part in nothing[2:])
    bare = everything(implementation, density, scores[:, :0], place, rays)
    torch.testing.assert_close(bare[1], everything(implementation, density, scores, place, rays)[1])
    assert bare[2].shape == (30, 0)


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_voxels_that_are_not_reached_need_not_be_listed(implementation):
    density, scores, place, rays = scene(2, listed=1.0)
    with only(implementation):
        read = reached(SHAPE, rays, FAR, N)
    assert 0 < read.sum() < read.numel()
    few = torch.where(read, place, -1)
    for found, expected in zip(
        everything(implementation, density, scores, few, rays),
        everything(implementation, density, scores, place, rays),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_the_number_of_threads_changes_nothing():
    inputs, threads = scene(3, rays=200, dtype=torch.float32), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything("cpu", *inputs)
        torch.set_num_threads(3)
        assert all(torch.equal(*pair) for pair in zip(everything("cpu", *inputs), alone, strict=True))
    finally:
        torch.set_num_threads(threads)


TWINS = """
import torch
from kernels.ray_march import reference, triton as twin
from test_ray_march import everything, scene

for seed, rays, channels, dtype, tolerance in ((0, 5, 5, torch.float64, 1e-10), (1, 17, 3, torch.float32, 2e-5)):
    inputs = scene(seed, rays, channels, dtype=dtype)
    for found, expected in zip(everything("triton", *inputs), everything("reference", *inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
"""


def test_triton_twin_in_the_interpreter_matches_torch(interpret):
    interpret(TWINS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_matches_cpu_and_repeats_itself():
    density, scores, place, rays = scene(4, rays=500)
    expected = everything("cpu", density, scores, place, rays)
    on_gpu = density.detach().cuda().requires_grad_(), scores.detach().cuda().requires_grad_(), place.cuda()
    runs = [everything("triton", *on_gpu, Rays(*(each.cuda() for each in rays))) for _ in range(2)]
    for first, second, cpu in zip(*runs, expected, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first.cpu(), cpu, rtol=1e-9, atol=1e-9)
