"""Losses along rays: numbers of explicit loops, known answers, and what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import FREE, GRID, B, C, X, Y, Z, lesson, taught_frame

from distill.classes import OCC3D_CLASSES
from distill.frame import Mirror
from distill.grids import OCC3D, VoxelGrid
from distill.losses.rendering import (
    RayDepth,
    RayDistortion,
    RayEntropy,
    RaySemantics,
    ce_logit,
    distortion,
    entropy,
    expected_distance,
    l1,
    nll_prob,
    silog,
    voxel_rays,
)
from kernels.dispatch import only
from kernels.ray_march import Rays, march, reference

AT = {"samples": 24, "far": 6.0, "grid": GRID, "classes": OCC3D_CLASSES}
TERMS = {
    "silog": RayDepth(form="silog", weight=1.0, **AT),
    "l1": RayDepth(form="l1", weight=1.0, **AT),
    "semantics": RaySemantics(balance="log", weight=1.0, **AT),
    "entropy": RayEntropy(weight=1.0, **AT),
    "distortion": RayDistortion(weight=1.0, **AT),
}
COS, SIN = 1.05 * math.cos(0.35), 1.05 * math.sin(0.35)
TURNED = np.array([[COS, -SIN, 0], [SIN, COS, 0], [0, 0, 1.05]])
BDA = {"identity": np.eye(3), "flipx": np.diag([-1.0, 1, 1]), "flipxy": np.diag([-1.0, -1, 1]), "turned": TURNED}
WEIGHTS = torch.tensor(1 / np.log(np.array(OCC3D_CLASSES.frequencies) + 0.001))


@pytest.fixture(scope="module")
def upstream(shared, inputs):
    """Numbers of explicit loops, and the module that makes their inputs."""
    return np.load(shared / "fixtures/signals/render_clean.npz"), inputs


def published(upstream, bda):
    """The losses of the golden, on densities and logits that want gradients."""
    golden, inputs = upstream
    case = inputs.case_volume(int(golden["seed"]), rays=10)
    raw, logits = (torch.tensor(case[name], requires_grad=True) for name in ("density", "semantic"))
    shape, far, samples = raw.shape, float(golden["far"]), int(golden["n"])
    seen = torch.tensor(case["rays"][0])
    unit = seen[:, 10:13] @ torch.tensor(BDA[bda]).T
    grid_voxels = np.diag([*(np.array(shape) / [80, 80, 6.4]), 1.0])
    grid_voxels[:3, 3] = -grid_voxels[:3, :3] @ OCC3D.lower
    to_voxels = torch.tensor(grid_voxels)
    origins = seen[:, 4:7] @ torch.tensor(BDA[bda]).T @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    rays = Rays(origins, unit @ to_voxels[:3, :3].T, torch.zeros(len(seen), dtype=torch.int64))
    place = torch.arange(raw.numel(), dtype=torch.int32).view(1, *shape)
    density = 0.08 * F.softplus(raw - 9).flatten()
    rendered = march(density, logits.flatten(0, 2), place, rays, far, samples)
    row, share = reference.corners(place, rays, far / samples, samples)
    at_samples = (share.unsqueeze(3) * logits.flatten(0, 2)[row]).sum(2)
    probs = (rendered.weights_RN.unsqueeze(2) * at_samples.softmax(2)).sum(1)
    distance, stretch = expected_distance(rendered.weights_RN, rendered.residual_R, far), seen[:, 7:10].norm(dim=1)
    truth, labels = seen[:, 2], seen[:, 3].long()
    valid = (truth > 0) & (truth <= 52)
    losses = {
        "silog": silog((distance / stretch)[valid], truth[valid]),
        "l1": l1(distance[valid], (truth * stretch)[valid]),
        "ce_logit": ce_logit(rendered.scores_RC[valid], labels[valid], WEIGHTS),
        "nll_prob": nll_prob(probs[valid], labels[valid], WEIGHTS),
        "entropy": entropy(rendered.residual_R[valid]),
        "distortion": distortion(rendered.weights_RN[valid]),
    }
    return golden, inputs, losses, raw, logits


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("bda", BDA)
def test_values_and_gradients(upstream, bda, implementation):
    with only(implementation):
        golden, inputs, losses, raw, logits = published(upstream, bda)
        for name, value in losses.items():
            assert value.item() == pytest.approx(golden[f"{bda}_{name}"].item(), rel=1e-9)
            if bda == "identity":
                density, semantic = torch.autograd.grad(value, (raw, logits), retain_graph=True, allow_unused=True)
                np.testing.assert_allclose(density, golden[f"identity_{name}_gdensity"], rtol=1e-9, atol=1e-13)
                semantic = torch.zeros_like(logits) if semantic is None else semantic
                np.testing.assert_allclose(
                    inputs.probe(semantic), golden[f"identity_{name}_gsemantic"], rtol=1e-9, atol=1e-13
                )


def seen_frame(rays=40):
    """Rays from behind the grid of `made`, more or less along x, other ones in each frame."""
    random = torch.Generator().manual_seed(0)

    def some():
        origin = torch.tensor([-2.6, -0.7, 3.1]) + 0.3 * torch.randn(rays, 3, generator=random)
        direction = torch.tensor([1.0, 0, 0]) + 0.2 * torch.randn(rays, 3, generator=random)
        facts = torch.rand(rays, 2, generator=random) * torch.tensor([3.0, 16.9]) + torch.tensor([0.5, 0])
        return torch.cat([origin, direction, facts[:, :1], facts[:, 1:].floor()], 1)

    return replace(taught_frame(), rays=[some() for _ in range(B)], teachers={})


def student_logits():
    return torch.randn(B, X, Y, Z, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def found(term, frame, logits):
    value = TERMS[term](lesson(frame, logits))
    (gradient,) = torch.autograd.grad(value, logits, allow_unused=True)
    return value, torch.zeros_like(logits) if gradient is None else gradient


@pytest.mark.parametrize("name", TERMS)
class TestTerms:
    def test_they_teach_the_voxels_on_rays(self, name):
        value, gradient = found(name, seen_frame(), student_logits())
        assert value.item() > 0 and gradient.isfinite().all() and gradient.any()

    def test_labels_say_nothing(self, name):
        frame = seen_frame()
        frame.semantics.fill_(FREE)
        frame.labelled.fill_(False)
        expected, _ = found(name, seen_frame(), student_logits())
        assert torch.equal(found(name, frame, student_logits())[0], expected)

    @pytest.mark.parametrize("mirror", [Mirror(x=True, y=False), Mirror(x=False, y=True), Mirror(x=True, y=True)])
    def test_a_mirrored_world_is_as_good(self, name, mirror):
        """On a grid around the origin: the forward mirror for rays and voxels alike."""
        grid = VoxelGrid("even", "ego", (-1.0, -0.75, 2.5), 0.5, (X, Y, Z))
        term, logits, frame = TERMS[name], student_logits(), seen_frame()
        axes = [axis for axis, turned in ((1, mirror.x), (2, mirror.y)) if turned]
        before, term.grid = term.grid, grid
        try:
            values = [term(lesson(frame, logits)), term(lesson(frame.mirrored(mirror), logits.flip(axes)))]
        finally:
            term.grid = before
        torch.testing.assert_close(*values)

    def test_without_rays_it_is_nothing(self, name):
        frame = seen_frame(rays=0)
        value, gradient = found(name, frame, student_logits())
        assert value.item() == 0 and not gradient.any()

    def test_rays_of_no_voxel_have_no_gradient_and_no_nan(self, name):
        frame = seen_frame()
        for rays in frame.rays:
            rays[:, 2] += 100
        value, gradient = found(name, frame, student_logits())
        assert value.isfinite() and not gradient.any()

    def test_sure_networks_give_no_nan(self, name):
        logits = student_logits().detach()
        logits[..., FREE] += 200 * torch.randn(logits.shape[:4], generator=torch.Generator().manual_seed(0))
        value, gradient = found(name, seen_frame(), logits.requires_grad_())
        assert value.isfinite() and gradient.isfinite().all()


def test_a_ray_through_one_voxel_passes_as_often_as_it_is_free():
    """Along a row of voxels, all free with 0.8."""
    logits = torch.zeros(1, X, Y, Z, C, dtype=torch.float64)
    logits[..., FREE] = math.log(0.8 / 0.2 * (C - 1))
    frame = seen_frame()
    ray = torch.tensor([[-1.75, -0.75, 3.0, 2.0, 0, 0, 1.0, 4]])  # from the first centre along x to the last one
    frame = replace(frame, rays=[ray])
    term = RayEntropy(weight=1.0, **{**AT, "far": 1.5, "samples": 50})
    view = term.view(lesson(frame, logits))
    assert view.rendered.residual_R.item() == pytest.approx(0.8**3, rel=1e-9)  # 1.5 m are 3 voxels
    assert view.stretch_R.item() == 2
    assert view.rendered.scores_RC.sum().item() == pytest.approx(1 - 0.8**3, rel=1e-9)


def test_terms_share_what_is_rendered(monkeypatch):
    calls = []
    monkeypatch.setattr("distill.losses.rendering.march", lambda *given: calls.append(1) or march(*given))
    shared = lesson(seen_frame(), student_logits())
    assert all(term(shared).isfinite() for term in TERMS.values()) and len(calls) == 1


def test_points_of_no_class_say_how_deep_and_not_what():
    frame = seen_frame()
    for rays in frame.rays:
        rays[:, 7] = 0
    assert found("semantics", frame, student_logits())[0].item() == 0
    assert torch.equal(*(found("l1", each, student_logits())[0] for each in (frame, seen_frame())))


def test_distortion_by_hand():
    """Half of a ray at each of two samples of four, two apart."""
    weights = torch.tensor([[0.5, 0, 0.5, 0]])
    assert distortion(weights).item() == pytest.approx(2 * 0.25 * 2 / 4 + 0.5 / 12)


def test_rays_of_a_batch_know_their_frame():
    rays, seen, stretch = voxel_rays(seen_frame(rays=3).rays, GRID)
    assert rays.batch_R.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(rays.directions_R3.norm(dim=1), torch.full((6,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(stretch, seen[:, 3:6].double().norm(dim=1))
