"""RenderOcc's rendering as published, against its own numbers."""

import math

import numpy as np
import pytest
import torch

from distill.losses import contracted
from distill.losses.contracted import DEPTH_BIAS, contracted_points, kept_samples, render, sample_distances
from distill.losses.rendering import ce_logit, entropy
from distill.losses.supervised import silog

COS, SIN = 1.05 * math.cos(0.35), 1.05 * math.sin(0.35)
BDA = {
    "identity": np.eye(3),
    "flipx": np.diag([-1.0, 1, 1]),
    "flipxy": np.diag([-1.0, -1, 1]),
    "turned": np.array([[COS, -SIN, 0], [SIN, COS, 0], [0, 0, 1.05]]),
}
FREQUENCIES = (  # of voxels, of training and validation
    1163161, 2309034, 188743, 2997643, 20317180, 852476, 243808, 2457947, 497017, 2731022, 7224789, 214411435, 5565043,
    63191967, 76098082, 128860031, 141625221,
)  # fmt: skip


@pytest.fixture(scope="module")
def upstream(shared, inputs):
    """Upstream's numbers, the module that makes their inputs, and these: densities, logits and rays that it keeps."""
    golden = np.load(shared / "fixtures/signals/render_forward.npz")
    case = inputs.case_volume(int(golden["seed"]))
    seen = torch.tensor(case["rays"][0])
    return golden, inputs, case, seen[(seen[:, 2] > 0) & (seen[:, 2] <= 52)]


@pytest.mark.parametrize("bda", BDA)
def test_views_and_losses(upstream, bda):
    golden, inputs, case, seen = upstream
    density, logits = (torch.tensor(case[name], requires_grad=True) for name in ("density", "semantic"))
    view = render(density, logits, seen[:, 4:7], seen[:, 10:13], torch.tensor(BDA[bda]))
    for name, found in (("depth", view.depth_R), ("semantic", view.scores_RC), ("last", view.residual_R)):
        np.testing.assert_allclose(found.detach(), golden[f"{bda}_{name}"], rtol=1e-9)
    assert (view.weights_RN > 0).sum(1).tolist() == golden[f"{bda}_kept"].tolist()
    weights = torch.tensor(1 / np.log(np.array(FREQUENCIES) + 0.001))
    losses = {
        "render_depth": silog(view.depth_R + DEPTH_BIAS, seen[:, 2]),
        "render_semantic": ce_logit(view.scores_RC, seen[:, 3].long(), weights),
        "sdf_entropy": 0.01 * entropy(view.residual_R),
        "sdf_distortion": 0.01 * contracted.distortion(view),
    }
    for name, value in losses.items():
        assert value.item() == pytest.approx(golden[f"{bda}_loss_{name}"].item(), rel=1e-9)
        # upstream divides by 1 - alpha + 1e-10 on the way back
        (gradient,) = torch.autograd.grad(value, density, retain_graph=True)
        if bda == "identity":
            np.testing.assert_allclose(gradient, golden[f"{bda}_loss_{name}_gdensity"], rtol=1e-9, atol=1e-10)
        else:
            probe = golden[f"{bda}_loss_{name}_gdensity_probe"]
            np.testing.assert_allclose(inputs.probe(gradient.numpy()), probe, rtol=1e-9, atol=1e-10)


def test_samples_of_a_ray(upstream):
    golden, _, case, _ = upstream
    ray = torch.tensor(case["rays"][0])[2:3]
    points, inner = contracted_points(ray[:, 4:7], ray[:, 10:13], sample_distances())
    np.testing.assert_array_equal(sample_distances(), golden["sample_t"])
    np.testing.assert_allclose(points[0], golden["sample_points"], atol=2e-9)
    np.testing.assert_array_equal(inner[0], golden["sample_inner"])
    np.testing.assert_array_equal(kept_samples(points, inner)[0], golden["sample_kept"])


def test_opacities(upstream):
    density, alpha = torch.tensor(upstream[0]["alpha_of_density"])
    np.testing.assert_allclose(contracted.opacity(density), alpha, rtol=1e-9)
