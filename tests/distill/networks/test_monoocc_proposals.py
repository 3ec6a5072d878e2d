"""Stage 1 of MonoOcc: pseudo-voxels, the query proposal network and its loss, by upstream's own numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from distill.errors import InputError
from distill.grids import OCC3D, VoxelGrid
from distill.losses.proposals import proposal_loss
from distill.networks.monoocc.proposals import QueryProposals, proposed
from distill.networks.monoocc.pseudo import depth_voxels, from_lidar_axes, point_voxels

SCALES = (2, 4, 8)
EMPTY, OCCUPIED = 0, 1


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "fixtures/signals/monoocc_qpn.npz")


@pytest.fixture(scope="module")
def upstream(shared, inputs, golden):
    """Weights under upstream's names."""
    shapes = json.loads((shared / "fixtures/signals/state_dict_keys.json").read_text())["monoocc_qpn"]
    seed = int(golden["seed"])
    return {name: torch.tensor(inputs.weights(f"qpn.{name}", tuple(shape), seed)) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def case(inputs, golden):
    return inputs.case_qpn(int(golden["seed"]))


@pytest.fixture
def network(upstream):
    """Upstream's, in float64."""
    network = QueryProposals(rectified=True, weights="none").double()
    network.load_state_dict(upstream)
    return network


def volume(case):
    return torch.tensor(case["volume"])[None]


def test_names_and_shapes_are_upstreams(upstream):
    state = QueryProposals(rectified=True, weights="none").state_dict()
    assert len(upstream) == 156
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in upstream.items()
    }
    assert list(state) == list(upstream)


def test_scores_in_evaluation(network, case, golden):
    scores = network.eval()(volume(case))
    for scale in SCALES:
        found = scores[scale].movedim(-1, 1).detach().numpy()
        np.testing.assert_allclose(found, golden[f"eval_{scale}"], rtol=1e-9, atol=1e-12)
    zeros = [float((scores[scale] == 0).double().mean()) for scale in SCALES]
    np.testing.assert_allclose(zeros, golden["zero_fraction"], atol=1e-12)
    chosen = proposed(scores[2])
    assert np.array_equal(chosen.numpy(), golden["proposals_2"].astype(bool))
    assert chosen.sum() == 99


def test_losses_and_gradients_in_training(inputs, network, case, golden):
    scores = network.train()(volume(case))
    targets = {scale: torch.tensor(case[f"target{scale}"])[None].to(torch.uint8) for scale in SCALES}
    for scale in SCALES:
        alone = proposal_loss({scale: scores[scale]}, targets, EMPTY, (0.3, 0.7), 0.9)
        assert alone.item() == pytest.approx(golden[f"train_loss_{scale}"].item(), rel=1e-12)
    total = proposal_loss(scores, targets, EMPTY, (0.3, 0.7), 0.9)
    assert total.item() == pytest.approx(golden["train_total"].item(), rel=1e-12)
    total.backward()
    parameters = [*network.parameters()]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    probes = np.stack([inputs.probe(gradient.numpy()) for gradient in gradients])
    np.testing.assert_allclose(probes, golden["grad_probe"], rtol=1e-9, atol=1e-14)


def test_what_is_never_asked_is_not_trained(network, case):
    """Or a run on several processes would wait for its gradients."""
    sum(scores.sum() for scores in network(volume(case)).values()).backward()
    idle = {name.partition(".")[0] for name, each in network.named_parameters() if not each.requires_grad}
    assert idle == {"deconv_1_8__1_1", "deconv_1_4__1_1"}
    assert all(each.grad is not None for each in network.parameters() if each.requires_grad)


def test_without_the_last_relu_scores_are_signed_and_say_the_same_above_zero(upstream, case):
    free = QueryProposals(rectified=False, weights="none").double()
    free.load_state_dict(upstream)
    scores = free.eval()(volume(case))[2]
    assert (scores < 0).any()
    assert proposed(scores).sum() >= 99


def test_a_file_of_upstreams_is_loaded_before_training(upstream, tmp_path):
    state = {name: value.float() if value.is_floating_point() else value for name, value in upstream.items()}
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}}, tmp_path / "a.pth")
    network = QueryProposals(rectified=True, weights=str(tmp_path / "a.pth"))
    network.load_pretrained()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv1_2.weight": torch.zeros(24, 30, 1, 1)}, r"conv1_2.weight is \(24, 30, 1, 1\) instead of"),
        ({"conv1_2.bias": torch.full((24,), torch.nan)}, r"conv1_2.bias"),
        ({"extra.weight": torch.zeros(2)}, r"extra.weight"),
        ({"Encoder_block1.0.weight": torch.zeros(32, 32, 3, 3)}, "Encoder_block1.0.weight"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, change, said):
    network = QueryProposals(rectified=True, weights=str(tmp_path / "other.pth"))
    torch.save(network.state_dict() | change, tmp_path / "other.pth")
    with pytest.raises(InputError, match=said) as caught:
        network.load_pretrained()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.pth: no such file: give a query proposal network of MonoOcc"):
        QueryProposals(rectified=True, weights=str(tmp_path / "none.pth")).load_pretrained()


@pytest.fixture(scope="module")
def volumes(shared, inputs):
    """Depth, cameras and volumes, and what upstream makes of them."""
    golden = np.load(shared / "fixtures/signals/monoocc_pseudo.npz")
    return inputs.case_pseudo(int(golden["seed"])), golden


def test_depth_falls_into_the_voxels_of_the_golden(volumes):
    case, golden = volumes
    depth, intrinsics, cam2ego = (torch.tensor(case[key])[None, None] for key in ("depth", "intrinsic", "cam2ego"))
    found = depth_voxels(depth, 1, intrinsics, cam2ego, OCC3D)
    assert np.array_equal(found[0].nonzero().numpy(), golden["pseudo_index"])


def test_cameras_are_united_and_frames_are_apart(volumes):
    case, _ = volumes
    depth = torch.zeros(2, 2, 24, 40).double()
    intrinsics, cam2ego = (torch.tensor(case[key]).expand(2, 2, -1, -1) for key in ("intrinsic", "cam2ego"))
    depth[0, 0, 3, 4], depth[0, 1, 10, 30] = 10.0, 12.0
    found = depth_voxels(depth, 1, intrinsics, cam2ego, OCC3D)
    assert found.flatten(1).sum(1).tolist() == [2, 0]


def test_upstreams_volumes_are_turned(volumes):
    case, golden = volumes
    found = from_lidar_axes(torch.tensor(case["lidar_volume"]))
    assert np.array_equal(found[0].numpy(), golden["ego_volume"])


def test_points_fall_into_their_voxels_and_outside_ones_nowhere():
    grid = VoxelGrid("tiny", "ego", (-2.0, -1.5, 2.5), 0.5, (4, 3, 2))
    points = torch.tensor([[-2.0, -1.5, 2.5, 0.3], [-0.01, -0.01, 3.4, 0.3], [0.0, 0.0, 3.5, 0.3], [9.0, 0, 3, 0]])
    found = point_voxels([points, points[:0]], grid)
    assert found.nonzero().tolist() == [[0, 0, 0, 0], [0, 3, 2, 1]]


def test_where_nothing_is_known_the_loss_is_0_and_so_is_its_gradient():
    scores = {2: torch.randn(1, 4, 4, 2, 2).requires_grad_()}
    coarse = {2: torch.full((1, 4, 4, 2), 255, dtype=torch.uint8)}
    loss = proposal_loss(scores, coarse, 17, (0.3, 0.7), 0.9)
    (gradient,) = torch.autograd.grad(loss, scores[2])
    assert loss == 0 and not gradient.any()
