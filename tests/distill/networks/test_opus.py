"""OPUS: upstream's numbers at every stage, files that do not fit, and what training does to it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import opus
import pytest
import torch
from torch import nn

from distill.errors import InputError
from distill.networks.opus.decoder import DistanceAttention
from distill.networks.opus.sampling import Views, project
from distill.networks.opus.weights import OFFICIAL
from distill.networks.published import recognised
from distill.nuscenes.layout import upstream_order


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "fixtures/opus"


# ("tiny_t", "t") and ("full_t", "t") pass, too, and take minutes
@pytest.fixture(scope="module", params=[("tiny_s_pad", "s")], ids=["S, padded"])
def golden(request, folder, tmp_path_factory):
    """Upstream's numbers, our network with its weights, what that answered and what its layers were told."""
    name, size = request.param
    numbers = np.load(folder / f"ref_{name}.npz")
    frames, height, width = map(int, numbers["FHW"])
    seed = int(numbers["seed"])
    network = opus.golden_network(folder, size, frames, seed, tmp_path_factory.mktemp("weights"))
    frame = opus.golden_frame(folder, frames, height, width, seed)
    heard, hooks = {}, []
    for number, layer in enumerate(network.decoder.layers):
        for part in ("position_encoder", "mixing", "self_attn", "self_attn.gen_tau", "sampling", "norm3"):
            keep = lambda _, given, out, key=(number, part): heard.update({key: (given, out)})  # noqa: E731
            hooks.append(layer.get_submodule(part).register_forward_hook(keep))
    with torch.inference_mode():
        features = [network.image_features(seen.images, opus.CAMERAS) for seen in network.frames(frame)]
        answer = network.predict(frame, features)
    return numbers, network, frame, features, answer, heard


def near(found, numbers, name, tolerance):
    """Within a tolerance of upstream's numbers, of which the file keeps some."""
    np.testing.assert_allclose(kept(found, numbers, name).numpy(), numbers[name], rtol=0, atol=tolerance)


def kept(found, numbers, name):
    """What the file keeps of each axis, as it says itself."""
    told = json.loads(str(numbers["slices"]))[name].partition(" of ")[0].removeprefix("all").strip("[]")
    return found[tuple(Ellipsis if part == "..." else slice(*_bounds(part)) for part in told.split(",") if part)]


def _bounds(part):
    return [int(number) if number else None for number in part.split(":")]


def test_images_and_projections(golden):
    numbers, network, frame, features, *_ = golden
    torch.testing.assert_close(
        network.ego2image(frame)[0].flatten(0, 1), torch.from_numpy(numbers["occ2img"]), rtol=2e-6, atol=1e-3
    )
    for level in range(4):
        near(torch.cat([maps[level][0] for maps in features]).movedim(3, 1), numbers, f"p{level + 2}", 1e-4)


def test_layers(golden):
    numbers, network, _, _, answer, heard = golden
    for number in range(6):
        exact = 1e-4 if number == 0 else 1e-3
        near(heard[number, "position_encoder"][1][0], numbers, f"l{number}.pos", exact)
        near(heard[number, "mixing"][1][0], numbers, f"l{number}.mix", 5e-3)
        near(heard[number, "self_attn"][1][0], numbers, f"l{number}.attn", exact)
        near(heard[number, "self_attn.gen_tau"][1][0], numbers, f"l{number}.tau", exact)
        near(heard[number, "norm3"][1][0], numbers, f"l{number}.query", exact)
        points, logits = answer.points[number + 1]
        near(logits[0], numbers, f"l{number}.logits", exact)
        expected = torch.from_numpy(numbers[f"l{number}.points"]) * network.decoder.size + network.decoder.lower
        torch.testing.assert_close(kept(points[0], numbers, f"l{number}.points"), expected, rtol=0, atol=2e-3)


@torch.inference_mode()
def test_sampling(golden):
    numbers, network, _, features, _, heard = golden
    frames = len(features)
    for number in (0, 2, 5):
        sampling = network.decoder.layers[number].sampling
        (query, points, views), sampled = heard[number, "sampling"]
        places = sampling.places(query, points)
        near(places[0], numbers, f"l{number}.sample_xyz", 1e-3)
        rows = sampling.level_weights(query, frames)[0].movedim(2, 1).flatten(0, 1)
        near(rows, numbers, f"l{number}.row_weights", 1e-4)
        uv, camera = project(places, views)
        here = torch.cat([uv, camera.unsqueeze(-1) / 5], -1)[0].movedim(2, 1).flatten(0, 1)
        expected = numbers[f"l{number}.loc"]
        apart = np.abs(kept(here, numbers, f"l{number}.loc").numpy() - expected).max(-1)
        assert (apart > 1e-4 * (1 + np.abs(expected).max(-1))).mean() < 1e-3  # on a border another camera may see it
        near(sampled[0], numbers, f"l{number}.sampled", 1e-3)


def test_voxels_are_upstreams(golden):
    numbers, network, _, _, answer, _ = golden
    assert torch.equal(answer.voxel_logits_BXYZC[0].argmax(-1), torch.from_numpy(numbers["occ"]).long())
    points, logits = answer.points[-1]
    scores = logits[0].sigmoid()
    kept = network.rule.kept(points[0], scores)
    index, _, count = network.rule.touched(points[0][kept], scores[kept], network.grid)
    expected = torch.from_numpy(numbers["points_per_voxel"]).flatten()
    assert torch.equal(torch.zeros_like(expected).scatter(0, index, count.to(torch.uint8)), expected)


@pytest.fixture(scope="module")
def network():
    return opus.small().eval()


@pytest.fixture(scope="module")
def published(network, tmp_path_factory):
    return opus.saved(tmp_path_factory.mktemp("weights") / "opus.pth", network)


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_level_weights_stand_in_the_order_in_which_upstream_trained(network, frames):
    """It lists what is sampled by frame and group, and the weights by group and frame."""
    sampling = network.decoder.layers[0].sampling
    query = torch.randn(2, 5, 256)
    own = sampling.scale_weights(query).view(2, 5, 4, 1, 2, 4).softmax(-1).expand(-1, -1, -1, frames, -1, -1)
    by_group_and_frame = own.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    found = sampling.level_weights(query, frames).permute(0, 1, 3, 2, 4, 5).flatten(1, 2)
    assert torch.equal(found, by_group_and_frame)


def test_a_point_is_sampled_by_the_first_camera_that_sees_it_and_else_by_camera_0():
    matrix = torch.tensor([[8.0, 0, 4, 0], [0, 8, 4, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    matrices = torch.stack([matrix, matrix, torch.diag(torch.tensor([1.0, 1, -1, 1])).mm(matrix)])[[2, 0, 1]]
    places = torch.tensor([[0.0, 0, 2], [9, 0, 2], [0, 0, -2]]).view(1, 3, 1, 1, 3)
    uv, camera = project(places, Views([], matrices.view(1, 1, 3, 4, 4), (8, 8)))
    assert camera.flatten().tolist() == [1, 0, 0]
    assert uv.view(3, 2)[0].tolist() == [0.5, 0.5]


def test_cameras_are_asked_in_upstreams_order():
    assert upstream_order(("CAM_FRONT_LEFT", "CAM_EXTRA", "CAM_FRONT", "CAM_BACK_RIGHT")) == [2, 0, 3, 1]


def test_attention_falls_with_distance_and_is_that_of_pytorch_without():
    torch.manual_seed(0)
    attend, query, centre = DistanceAttention().eval(), torch.randn(2, 7, 256), torch.randn(2, 7, 3)
    nn.init.zeros_(attend.gen_tau.bias)
    torch.testing.assert_close(attend(query, centre), query + attend.attention(query, query, query)[0])
    nn.init.constant_(attend.gen_tau.bias, 1e4)  # all that is apart counts nothing
    alone = query + attend.attention.out_proj(torch.nn.functional.linear(query, *_value(attend.attention)))
    torch.testing.assert_close(attend(query, centre), alone)


def _value(attention):
    return attention.in_proj_weight[512:], attention.in_proj_bias[512:]


def test_frames_of_a_batch_are_apart(network):
    both = opus.batch(2)
    with torch.inference_mode():
        together, first = network(both), network(_only(both, 0))
    torch.testing.assert_close(together.points[-1].points_BQR3[:1], first.points[-1].points_BQR3)
    torch.testing.assert_close(together.voxel_logits_BXYZC[:1], first.voxel_logits_BXYZC, atol=1e-4, rtol=1e-4)


def _only(frame, index):
    cut = {"images", "intrinsics", "cam2ego", "ego2present"}
    parts = {name: getattr(frame, name)[index : index + 1] for name in cut if getattr(frame, name) is not None}
    return replace(frame, **parts, past=tuple(_only(each, index) for each in frame.past or ()))


def test_training_reaches_every_weight_but_the_frozen_ones_and_no_statistics():
    network = opus.small().train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    answer = network(opus.batch(1))
    parts = [value.square().sum() for points in answer.points for value in points if value is not None]
    sum(parts).backward()
    untouched = {name for name, value in network.named_parameters() if value.grad is None}
    assert untouched == {name for name, value in network.named_parameters() if not value.requires_grad}
    assert {name.split(".")[1] for name in untouched} == {"conv1", "bn1", "layer1"}
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())

    network.zero_grad()
    nn.init.constant_(network.decoder.layers[-1].cls_branch[-1].bias, 1.0)
    network(opus.batch(1)).voxel_logits_BXYZC[..., :17].sum().backward()
    assert network.decoder.layers[-1].cls_branch[-1].weight.grad.any()  # voxels teach scores


def test_wrapped_files_and_bare_ones_begin_training(network, published, tmp_path):
    begun = opus.small()
    nn.init.zeros_(begun.decoder.init_points)
    OFFICIAL.load(begun, published)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in begun.state_dict().items())
    bare = {name.removeprefix("module."): value for name, value in torch.load(published)["state_dict"].items()}
    torch.save(bare, tmp_path / "bare.pth")
    nn.init.zeros_(begun.decoder.init_points)
    OFFICIAL.load(begun, tmp_path / "bare.pth")
    assert torch.equal(begun.decoder.init_points, network.decoder.init_points)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queries": 30}, r"init_points is \(20, 3\) instead of \(30, 3\)"),
        ({"samples": 4}, "sampling_offset.weight is"),
        ({"history": 3}, "parameter_generator.weight is"),
    ],
)
def test_a_file_of_another_size_is_refused_in_one_line(published, given, said):
    with pytest.raises(InputError, match=said) as caught:
        OFFICIAL.load(opus.small(**given), published)
    assert "\n" not in str(caught.value) and str(published) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("init_points.weight", torch.full((20, 3), torch.nan), "decoder.init_points holds NaN or infinite values"),
        ("pc_range", torch.tensor([-50.0, -50, -5, 50, 50, 3]), "pc_range is .* the configuration says"),
        ("refine.weight", torch.zeros(3), "refine.weight is unexpected"),
    ],
)
def test_a_file_of_another_version_or_a_damaged_one_is_refused_in_one_line(
    network, published, tmp_path, name, value, said
):
    state = {**torch.load(published)["state_dict"], f"module.pts_bbox_head.{name}": value}
    torch.save(state, tmp_path / "opus.pth")
    with pytest.raises(InputError, match=said) as caught:
        OFFICIAL.load(network, tmp_path / "opus.pth")
    assert "\n" not in str(caught.value) and str(tmp_path / "opus.pth") in str(caught.value)


@pytest.mark.parametrize("history", [0, 2])
def test_without_its_past_it_says_what_is_missing(network, history):
    with pytest.raises(InputError, match=f"looks at 1 earlier keyframes, the frame brings {history}: set the history"):
        network(opus.batch(1, history))


@pytest.mark.parametrize(
    ("size", "parameters"), [("t", 77_707_068), ("s", 73_804_692), ("m", 73_466_572), ("l", 73_391_532)]
)
def test_a_file_is_known_by_its_names_and_shapes(folder, tmp_path, size, parameters):
    """Upstream's, of whose network it has the parameters."""
    listed = json.loads((folder / "state_dict_keys.json").read_text())
    shapes = {**listed["opus-t_r50_704x256_8f"], **listed[f"opus-{size}_r50_704x256_8f"].get("differs", {})}
    state = {name: torch.zeros((), dtype=getattr(torch, kind)).expand(shape) for name, (shape, kind) in shapes.items()}
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "opus.pth")
    assert recognised(tmp_path / "opus.pth").student == f"opus_{size}"
    with torch.device("meta"):
        assert sum(weights.numel() for weights in opus.network(size, 7).parameters()) == parameters
