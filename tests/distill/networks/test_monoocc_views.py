"""MonoOcc's cross-view transformer: upstream's numbers, and cameras in their order around the car."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from distill.errors import InputError
from distill.networks.monoocc.views import CrossViewTransformer, around_the_car, shift_mask, window_position


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "fixtures/signals/monoocc_views.npz")


@pytest.fixture(scope="module")
def upstream(shared, inputs, golden):
    shapes = json.loads((shared / "fixtures/signals/state_dict_keys.json").read_text())["monoocc_views"]
    seed = int(golden["seed"])
    return {name: torch.tensor(inputs.weights(f"views.{name}", tuple(shape), seed)) for name, shape in shapes.items()}


def of_upstream(upstream, layers):
    network = CrossViewTransformer(128, layers, around=False, weights="none").double()
    network.load_state_dict({name: v for name, v in upstream.items() if int(name.split(".")[1]) < layers})
    return network


def test_names_and_shapes_are_upstreams(upstream):
    network = CrossViewTransformer(128, 6, around=False, weights="none")
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in upstream.items()
    }
    assert sum(each.numel() for each in network.parameters()) == 3_150_336


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_features_of_views(inputs, upstream, golden, layers):
    features = torch.tensor(inputs.case_views(int(golden["seed"]))["features"])
    found = of_upstream(upstream, layers)(features, torch.eye(4).expand(1, 3, 4, 4)).detach().numpy()
    expected = golden[f"layers{layers}"]
    found = found if expected.ndim > 1 else inputs.probe(found)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_position_and_mask(golden):
    np.testing.assert_array_equal(window_position(128, 4, 8).numpy(), golden["position"][0])
    np.testing.assert_array_equal(shift_mask(4, 8).numpy(), golden["shift_mask"])


def poses(*degrees):
    """Level cameras that look so far to the left of ahead."""
    found = torch.zeros(1, len(degrees), 4, 4)
    for pose, yaw in zip(found[0], torch.tensor(degrees) * math.pi / 180, strict=True):
        cos, sin = yaw.cos(), yaw.sin()
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        pose[:3, :3] = turn @ torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    return found


# nuScenes' customary order: front, front right, front left, back, back left, back right
YAWS = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)


def small(around):
    torch.manual_seed(0)
    return CrossViewTransformer(8, 2, around, weights="none").double()


def changed_by(around, view):
    """The views whose features depend on those of one view."""
    network = small(around)
    features = torch.randn(1, 6, 8, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    other = features.clone()
    other[:, view] += torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    apart = (network(features, poses(*YAWS)) - network(other, poses(*YAWS))).abs().amax((0, 2, 3, 4))
    return (apart > 0).nonzero().flatten().tolist()


@pytest.mark.parametrize("turned", [0.0, 3.0, -3.0])
def test_the_order_begins_ahead_and_goes_to_the_left(turned):
    """However the rig sits: a camera that looks behind is at no end of the circle."""
    assert around_the_car(poses(*(yaw + turned for yaw in YAWS))).tolist() == [[0, 2, 4, 3, 5, 1]]


def test_upstreams_first_view_knows_its_first_neighbour_alone():
    """It is left as it is after the first pair: only two views can change it, and the last one changes one other."""
    assert 0 not in changed_by(False, 2)
    assert changed_by(False, 5) == [4, 5]


def test_around_the_car_the_last_view_meets_the_first():
    assert changed_by(True, 1) == [0, 1, 5]  # front right: the one behind it, and the front that began
    assert changed_by(True, 3) == [0, 1, 3, 4, 5]  # behind: what it has travels on, but not back to front left


def test_the_order_of_the_list_does_not_matter_around_the_car():
    network = small(True)
    features = torch.randn(1, 6, 8, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    order = [4, 2, 0, 5, 3, 1]
    expected = network(features, poses(*YAWS))[:, order]
    torch.testing.assert_close(network(features[:, order], poses(*YAWS)[:, order]), expected)
    assert not torch.allclose(
        small(False)(features[:, order], poses(*YAWS)), small(False)(features, poses(*YAWS))[:, order]
    )


def test_frames_of_a_batch_have_their_own_order():
    network = small(True)
    features = torch.randn(2, 6, 8, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    other = poses(*(yaw + 70 for yaw in YAWS))
    both = network(features, torch.cat([poses(*YAWS), other]))
    torch.testing.assert_close(both[:1], network(features[:1], poses(*YAWS)))
    torch.testing.assert_close(both[1:], network(features[1:], other))


@pytest.mark.parametrize("around", [True, False])
def test_a_view_alone_stays_as_it_is(around):
    features = torch.randn(1, 1, 8, 4, 4).double()
    assert torch.equal(small(around)(features, poses(0.0)), features)


def test_gradients_reach_all_views_and_weights():
    network = small(True)
    features = torch.randn(1, 6, 8, 4, 4).double().requires_grad_()
    network(features, poses(*YAWS)).square().sum().backward()
    assert features.grad.flatten(2).any(-1).all()
    assert all(each.grad.any() for each in network.parameters())


def test_what_cannot_be_done_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="which have 3 x 4 cells: let the sides of student"):
        small(True)(torch.zeros(1, 2, 8, 3, 4).double(), poses(0.0, 60.0))
    with pytest.raises(InputError, match=r"views.channels=6: .* want a multiple of 4"):
        CrossViewTransformer(6, 1, around=True, weights="none")
    torch.save(small(True).state_dict(), tmp_path / "small.pth")
    with pytest.raises(InputError, match="a cross-view transformer of MonoOcc with as many layers"):
        CrossViewTransformer(8, 2, True, str(tmp_path / "missing.pth")).load_pretrained()
    with pytest.raises(InputError) as caught:
        CrossViewTransformer(8, 3, True, str(tmp_path / "small.pth")).load_pretrained()
    assert "layers.2" in str(caught.value) and "\n" not in str(caught.value)
