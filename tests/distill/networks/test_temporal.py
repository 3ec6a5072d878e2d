"""Networks that look back: what stands still lies where it lay, and no keyframe is looked at twice, or mistaken."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as some
from same import assert_same
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distill.errors import InputError
from distill.frame import Frame, Mirror, stack
from distill.grids import VoxelGrid
from distill.networks.camera import CameraNetwork
from distill.networks.network import Streams, streamed
from distill.networks.temporal import PastFusion, warped
from distill.weights import load_strictly
from student.evaluation.tta import View, average_views

SQUARE = VoxelGrid("square", "ego", (-8.0, -8.0, -1.0), 1.0, (16, 16, 2))
# reaches further ahead than back, and to one side
ASIDE = VoxelGrid("aside", "ego", (-4.0, -9.0, -1.0), 0.5, (40, 24, 2))
COARSE = VoxelGrid("coarse", "ego", (-40.0, -32.0, -1.0), 3.2, (24, 20, 2))
MIRRORS = [Mirror(x=True), Mirror(y=True), Mirror(x=True, y=True)]


def motion(yaw=0.0, x=0.0, y=0.0, z=0.0, pitch=0.0, roll=0.0):
    """Of the car: (1, 4, 4), float64."""
    (a, b, c), (sa, sb, sc) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    pose = np.eye(4)
    turns = [
        [[a, -sa, 0], [sa, a, 0], [0, 0, 1]],
        [[b, 0, sb], [0, 1, 0], [-sb, 0, b]],
        [[1, 0, 0], [0, c, -sc], [0, sc, c]],
    ]
    pose[:3, :3] = np.linalg.multi_dot([np.array(turn) for turn in turns])
    pose[:3, 3] = x, y, z
    return torch.from_numpy(pose)[None]


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def centres(grid, size):
    """Of BEV cells, metres, (X, Y, 2)."""
    axes = [
        low + (np.arange(count) + 0.5) * (high - low) / count
        for low, high, count in zip(grid.lower[:2], grid.upper[:2], size, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


class TestWarping:
    @pytest.mark.parametrize("grid", [SQUARE, ASIDE], ids=lambda grid: grid.name)
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize(("right", "up"), [(0, 0), (1, 0), (0, -2), (-3, 4), (5, 1), (30, 0)])
    def test_a_drive_over_whole_cells_shifts_them(self, grid, stride, right, up):
        """What lay at a cell now lies so many cells further; where nothing was seen there are zeros."""
        x, y = (count // stride for count in grid.shape[:2])
        past, cell = noise(1, 3, x, y), grid.voxel_size * stride
        expected, known = torch.zeros_like(past), torch.zeros(1, 1, x, y, dtype=past.dtype)
        for i in range(x):
            for j in range(y):
                if 0 <= i - right < x and 0 <= j - up < y:
                    expected[..., i, j], known[..., i, j] = past[..., i - right, j - up], 1
        found, inside = warped(past, motion(x=right * cell, y=up * cell), grid)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        assert torch.equal(inside, known)

    @pytest.mark.parametrize("quarters", [1, 2, 3])
    def test_a_quarter_turn_turns_the_cells(self, quarters):
        """Of the car to the right is of the world to the left: +x becomes +y."""
        past = noise(2, 3, 16, 16)
        found, known = warped(past, motion(yaw=quarters * np.pi / 2).expand(2, 4, 4), SQUARE)
        expected = torch.from_numpy(np.rot90(past.numpy(), quarters, (2, 3)).copy())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        assert known.all()

    def test_a_known_place(self):
        """5 m ahead of a car that then drives 3 m ahead and turns left by 90 degrees: 2 m to its right."""
        past = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
        past[0, 0, 8 + 5, 8] = 1  # the cell from (5, 0) to (6, 1)
        present2past = motion(yaw=np.pi / 2, x=3.0)
        found, _ = warped(past, torch.linalg.inv(present2past), SQUARE)
        # ahead (5.5 - 3, 0.5) is now left 0.5 ahead and 2.5 to the right
        assert found[0, 0].round(decimals=9).nonzero().tolist() == [[8, 8 - 3]]

    @settings(max_examples=40, deadline=None)
    @given(
        yaw=some.floats(-3.2, 3.2), x=some.floats(-6, 6), y=some.floats(-6, 6), grid=some.sampled_from([SQUARE, ASIDE])
    )
    def test_a_field_of_the_static_world_is_where_the_past_saw_it(self, yaw, x, y, grid):
        """Exactly if it rises evenly, between centres; as far as straight lines follow it if it is bent."""
        global2then, then2now = motion(0.4, 20.0, -7.0), motion(yaw, x, y)

        def seen_from(pose_144):
            at_XY2 = centres(grid, grid.shape[:2])
            local_XY4 = np.concatenate([at_XY2, np.zeros_like(at_XY2[..., :1]), np.ones_like(at_XY2[..., :1])], -1)
            world = local_XY4 @ np.linalg.inv(pose_144[0].numpy()).T
            even, curved = (
                2 + 0.3 * world[..., 0] - 0.7 * world[..., 1],
                np.sin(world[..., 0] / 3) * np.cos(world[..., 1] / 4),
            )
            return torch.from_numpy(np.stack([even, curved]))[None]

        found, known = warped(seen_from(global2then), then2now, grid)
        place = (centres(grid, grid.shape[:2]) - then2now[0, :2, 3].numpy()) @ then2now[0, :2, :2].numpy()
        inner = (
            np.abs(place - np.add(grid.lower[:2], grid.upper[:2]) / 2)
            <= np.subtract(grid.upper[:2], grid.lower[:2]) / 2 - grid.voxel_size / 2
        )
        inner = torch.from_numpy(inner.all(-1))
        assert known[0, 0][inner].all()
        expected = seen_from(then2now @ global2then)
        torch.testing.assert_close(found[0, 0][inner], expected[0, 0][inner], rtol=0, atol=1e-9)
        # h^2 / 8 (|f_xx| + |f_yy|), turned by any angle
        bound = grid.voxel_size**2 / 8 * (1 / 9 + 1 / 16 + 1 / 12)
        assert (found - expected)[0, 1][inner].abs().max() <= bound

    @pytest.mark.parametrize("out_of_plane", [{"z": 0.7}, {"pitch": 0.02}, {"roll": -0.03}])
    def test_what_a_motion_has_beside_the_plane_is_left_out(self, out_of_plane):
        past = noise(1, 2, 40, 24)
        found, expected = (warped(past, motion(0.3, 2.0, -1.0, **more), ASIDE) for more in (out_of_plane, {}))
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("mirror", MIRRORS)
    def test_a_mirrored_world_is_warped_to_the_mirrored_present(self, mirror):
        past, axes = noise(1, 2, 16, 16), [2 + axis for axis, flips in enumerate((mirror.x, mirror.y)) if flips]
        moved = Frame(ego2present=motion(0.7, 2.3, -1.2))
        expected = [part.flip(axes) for part in warped(past, moved.ego2present, SQUARE)]
        found = warped(past.flip(axes), moved.mirrored(mirror).ego2present, SQUARE)
        torch.testing.assert_close(found, tuple(expected), rtol=0, atol=1e-9)
        assert not torch.allclose(found[0], warped(past.flip(axes), moved.ego2present, SQUARE)[0])

    def test_what_is_known_does_not_fade_at_the_edge(self):
        found, known = warped(torch.ones(1, 1, 16, 16, dtype=torch.float64), motion(0.6, 3.3, -2.1), SQUARE)
        torch.testing.assert_close(found, known)
        assert 0.3 < known.mean() < 0.9

    def test_every_row_has_its_own_motion(self):
        past, motions = noise(2, 3, 16, 16), torch.cat([motion(0.3, 1.0), motion(-0.2, 0.0, 2.0)])
        together = warped(past, motions, SQUARE)
        for row in range(2):
            alone = warped(past[row : row + 1], motions[row : row + 1], SQUARE)
            torch.testing.assert_close(tuple(part[row : row + 1] for part in together), alone)

    def test_gradients(self):
        past, moved = noise(1, 2, 5, 4).requires_grad_(), motion(0.31, 0.83, -0.47).requires_grad_()
        tiny = VoxelGrid("tiny", "ego", (-2.5, -2.0, 0.0), 1.0, (5, 4, 1))
        torch.autograd.gradcheck(lambda *given: warped(*given, tiny)[0], (past, moved), atol=1e-6)

    def test_far_away_there_is_nothing_and_no_gradient(self):
        past = noise(1, 2, 16, 16).requires_grad_()
        found, known = warped(past, motion(1.0, 500.0), SQUARE)
        found.sum().backward()
        assert not found.any() and not known.any() and not past.grad.any()

    def test_places_are_not_rounded_by_autocast(self):
        past, moved = noise(1, 2, 40, 24).float(), motion(0.2, 1.3, 0.4).float()
        with torch.autocast("cpu", torch.bfloat16):
            found = warped(past, moved, ASIDE)
        assert_same(found, warped(past, moved, ASIDE))


def configured(grid=COARSE, name="demo_2f", *overrides):
    """A network of conf/student with random weights, in evaluation mode."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(
            "common", ["+grid=occ3d", f"+student={name}", "student.network.encoder.weights=none", *overrides]
        )
    config.grid = {"_target_": "distill.grids.VoxelGrid", **grid.to_dict()}
    torch.manual_seed(0)
    network = instantiate(config.student.network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # random weights alone pass next to nothing on
            nn.init.uniform_(module.running_var, 0.01, 0.1)
    return network.eval()


def seen(seed, **more):
    """One of three cameras, float32, as loaded."""
    rng = np.random.default_rng(seed)
    cam2ego = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    for pose, yaw in zip(cam2ego, np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.2, 0.2, 3), strict=True):
        pose[:3, :3] = np.stack([[np.sin(yaw), -np.cos(yaw), 0], [0, 0, -1], [np.cos(yaw), np.sin(yaw), 0]], 1)
        pose[:3, 3] = 0.3, 0.2, 1.6
    return Frame(
        token=f"{seed:032x}",
        images=rng.integers(0, 256, (3, 3, 64, 96), dtype=np.uint8),
        intrinsics=np.tile(np.array([[60, 0, 48], [0, 60, 30], [0, 0, 1]], np.float32), (3, 1, 1)),
        cam2ego=cam2ego,
        **more,
    )


def frame_of(place, history=1):
    """The `place`-th of a scene, with its past; before the first one the earliest stands in."""
    past = []
    for step in range(1, history + 1):
        earlier = max(0, place - step)
        moved = motion(-0.1 * (place - earlier), -4.0 * (place - earlier))[0].float().numpy()
        past.append(seen(earlier, ego2present=moved))
    return seen(place, past=tuple(past))


def batch_of(*places, history=1):
    return stack([frame_of(place, history) for place in places])


@pytest.fixture(scope="module")
def network():
    return configured()


def logits(answer):
    return answer.voxel_logits_BXYZC


class TestNetwork:
    def test_the_past_is_seen_from_where_it_was(self, network):
        batch = batch_of(3)
        (past,) = batch.past
        with torch.inference_mode():
            plain = logits(network(batch))
            for changed in (replace(past, images=255 - past.images), replace(past, ego2present=motion(x=20.0).float())):
                assert (logits(network(replace(batch, past=(changed,)))) - plain).abs().max() > 1e-3
            elsewhere = replace(past, ego2present=motion(x=1000.0).float())
            nothing = [torch.zeros_like(network.lifted(past, None).bev_BCXY)]
            unseen = network.after(nothing, replace(batch, past=(elsewhere,)), network.lifted(batch, None))
            torch.testing.assert_close(logits(network(replace(batch, past=(elsewhere,)))), logits(unseen))

    def test_before_the_first_keyframe_it_stands_in_for_itself(self, network):
        """With the identity for a motion: as if the car had stood still."""
        first = batch_of(0)
        assert torch.equal(first.past[0].ego2present, torch.eye(4)[None])
        with torch.inference_mode():
            own = network.lifted(first, None)
            assert torch.equal(logits(network(first)), logits(network.after([own.bev_BCXY], first, own)))

    def test_learning_goes_through_the_present_alone(self, network):
        batch = batch_of(2, 3)
        network.zero_grad()
        logits(network(batch)).square().mean().backward()
        found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        past = [network.lifted(batch.past[0], None).bev_BCXY.detach()]
        network.zero_grad()
        logits(network.after(past, batch, network.lifted(batch, None))).square().mean().backward()
        assert_same(found, {name: p.grad for name, p in network.named_parameters() if p.grad is not None})
        assert found["fusion.mix.0.weight"][:, past[0].shape[1] :].any()

    @pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
    def test_gradients_reach_every_parameter_that_is_not_frozen(self, precision):
        trained = configured().train()
        with torch.autocast("cpu", precision, enabled=precision is not None):
            logits(trained(batch_of(1, 2))).square().mean().backward()
        reached = {name for name, p in trained.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == {name for name, p in trained.named_parameters() if p.requires_grad}

    @pytest.mark.parametrize("mirror", MIRRORS)
    def test_a_mirrored_clip_gets_the_mirrored_answer(self, mirror):
        """From a network whose convolutions over the BEV look the same in a mirror."""
        symmetric = configured(SYMMETRIC, "demo_2f", *FLAT)
        for part in (symmetric.bev_encoder, symmetric.head):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    weight = module.weight.data
                    module.weight.data = (weight + weight.flip(2) + weight.flip(3) + weight.flip(2, 3)) / 4
        batch, axes = batch_of(3, 4), [1 + axis for axis, flips in enumerate((mirror.x, mirror.y)) if flips]
        with torch.inference_mode():
            plain, found = logits(symmetric(batch)), logits(symmetric(batch.mirrored(mirror)))
            left = replace(batch.mirrored(mirror), past=batch.past)  # whose past stayed behind
            assert (logits(symmetric(left)) - found).abs().max() > 1e-3
        assert (plain.flip(axes) - plain).abs().max() > 1e-2
        torch.testing.assert_close(found.flip(axes), plain, rtol=1e-4, atol=1e-4)

    def test_measured_depth_is_of_the_present(self, network):
        batch = replace(batch_of(3), depth=torch.full((1, 3, 8, 12), 9.0))
        with torch.inference_mode():
            past = [network.lifted(batch.past[0], None).bev_BCXY]
            expected = network.after(past, batch, network.lifted(batch, batch.depth))
            found = network.with_measured_depth(batch)
            assert torch.equal(logits(found), logits(expected))
            assert not torch.equal(logits(found), logits(network(batch)))

    @pytest.mark.parametrize(("past", "bring"), [(None, 0), ((), 0), (2, 2)])
    def test_another_past_than_it_looks_at_is_refused(self, network, past, bring):
        batch = batch_of(3, history=past) if past == 2 else replace(batch_of(3), past=past)
        said = f"looks at 1 earlier keyframes, and its frames bring {bring}: set student.inputs.history=1"
        for answer in (network, streamed(network, 1)):
            with torch.inference_mode(), pytest.raises(InputError, match=said):
                answer(batch)

    def test_weights_of_a_network_that_does_not_look_back_are_refused(self, network):
        with pytest.raises(
            InputError, match=r"of another architecture, 6 differences \(fusion.mix.0.weight is missing"
        ):
            load_strictly(network, configured(COARSE, "demo").state_dict(), "one.pt")


# so that a mirror maps cells onto cells at the only resolution there is
SYMMETRIC = VoxelGrid("symmetric", "ego", (-32.0, -32.0, -1.0), 3.2, (20, 20, 2))
FLAT = (
    "student.network.bev_encoder.widths=[16]",
    "student.network.bev_encoder.blocks=[]",
    "student.network.lift.bev_stride=1",
)


class Squared(nn.Module):
    """The mean square of a network's logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, frame):
        return logits(self.network(frame)).square().mean()


def on_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    module = Squared(configured())
    distributed = DistributedDataParallel(module)  # while it lives, gradients are shared
    distributed(batch_of(1 + 2 * rank)).backward()
    torch.save({name: p.grad for name, p in module.named_parameters() if p.requires_grad}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_that_look_back_learn_what_one_does_of_their_whole_batch(tmp_path):
    """Without statistics of batches, which every rank has of its own."""
    torch.multiprocessing.spawn(on_rank, (str(tmp_path),), nprocs=2)
    alone = Squared(configured())
    alone(batch_of(1, 3)).backward()
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, parameter in alone.named_parameters():
            if parameter.requires_grad:
                scale = parameter.grad.abs().max().item()
                torch.testing.assert_close(shared[name], parameter.grad, rtol=1e-4, atol=1e-5 * scale)


class TestStreaming:
    """What is remembered changes no answer, in whatever order keyframes come."""

    def test_a_keyframe_is_looked_at_once(self, network, monkeypatch):
        looked = Mock(wraps=network.lifted)
        monkeypatch.setattr(network, "lifted", looked)
        answer = streamed(network, calls=1)
        with torch.inference_mode():
            for place in range(4):
                answer(batch_of(place))
                assert looked.call_count == place + 1
            answer(batch_of(7))  # which does not follow
            assert looked.call_count == 4 + 2

    @pytest.mark.parametrize("places", [[0, 1, 2, 3], [3, 1, 0, 3, 2], [2, 2]], ids=["in order", "in any", "twice"])
    @pytest.mark.parametrize("history", [1, 2])
    def test_the_answers_are_those_of_the_network_bit_for_bit(self, places, history):
        network = configured(COARSE, "demo_2f", f"student.inputs.history={history}")
        answer = streamed(network, calls=1)
        with torch.inference_mode():
            for place in places:
                batch = batch_of(place, history=history)
                assert torch.equal(logits(answer(batch)), logits(network(batch)))

    def test_batches(self, network):
        answer = streamed(network, calls=1)
        with torch.inference_mode():
            for places in ((0, 1, 2), (3, 4), (4, 0), (1,)):
                batch = batch_of(*places)
                torch.testing.assert_close(logits(answer(batch)), logits(network(batch)), rtol=1e-4, atol=1e-4)

    def test_tokens_are_not_trusted(self, network):
        """The same scene once more through other cameras, as when it is made worse, or seen in a mirror."""
        answer = streamed(network, calls=1)

        def worse(frame):
            return replace(frame, images=frame.images // 2)

        with torch.inference_mode():
            for change in (lambda frame: frame, worse, lambda frame: frame.mirrored(Mirror(y=True))):
                for place in (1, 2):
                    batch = change(batch_of(place))
                    batch = replace(batch, past=tuple(map(worse, batch.past))) if change is worse else batch
                    assert torch.equal(logits(answer(batch)), logits(network(batch)))

    def test_no_more_is_kept_than_this_call_and_the_last_ones_looked_at(self, network):
        answer = network.streaming(calls=2)
        with torch.inference_mode():
            for place in range(6):
                answer(batch_of(place))
        assert [len(call) for call in answer.memory.looked_at] == [2, 2, 2]

    def test_views_are_remembered_apart(self, network, monkeypatch):
        views = [View(images, world) for images in (False, True) for world in (False, True)]
        with torch.inference_mode():
            expected = [average_views(network, batch_of(place), views, COARSE) for place in range(3)]
            looked = Mock(wraps=network.lifted)
            monkeypatch.setattr(network, "lifted", looked)
            answer = streamed(network, calls=len(views))
            for place in range(3):
                assert torch.equal(average_views(answer, batch_of(place), views, COARSE), expected[place])
                assert looked.call_count == len(views) * (place + 1)

    def test_a_network_without_a_past_is_itself(self):
        plain = CameraNetwork(*[nn.Identity()] * 4)
        assert not isinstance(plain, Streams) and streamed(plain, calls=1) is plain


def test_present_and_past_are_mixed_cell_by_cell():
    """By a convolution over the present, and of each step into the past its features and where they are known."""
    fusion = PastFusion(channels=2, history=2, grid=SQUARE).eval()
    bev, *past = noise(3, 1, 2, 16, 16).float()
    motions = [motion(0.2, 1.0).float(), motion(-0.3, 2.0, 1.0).float()]
    (first, known), (second, known_too) = (warped(*pair, SQUARE) for pair in zip(past, motions, strict=True))
    parts = torch.cat([bev, first, known, second, known_too], 1)
    weight = fusion.mix[0].weight[..., 0, 0]
    expected = torch.einsum("oc,bcxy->boxy", weight, parts) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(fusion(bev, past, motions), expected.relu())
