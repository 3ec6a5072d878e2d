"""MonoOcc's two stages together: what looks where, what is learnt by what, and what is left at one stage."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame
from distill.grids import OCC3D, VoxelGrid
from distill.networks.blocks.bev_encoder import BEVEncoder
from distill.networks.blocks.encoder import ImageEncoder
from distill.networks.blocks.head import ChannelToHeight
from distill.networks.monoocc.attention import Cameras, VoxelAttention, project, seeded, shares
from distill.networks.monoocc.network import MonoOcc
from distill.networks.monoocc.proposals import QueryProposals, proposed
from distill.networks.monoocc.stage import DepthHead, ProposalStage, likeliest_depth
from distill.networks.monoocc.views import CrossViewTransformer
from distill.networks.network import LiftsMeasuredDepth, streamed
from distill.networks.prediction import DepthBins

GRID = VoxelGrid("small", "ego", (-8.0, -8.0, -1.0), 0.4, (40, 40, 16))
COARSE = GRID.coarser(2)
CHANNELS, STRIDE = 16, 8
SIZE = HEIGHT, WIDTH = 64, 96
# camera right, down, forward are ego -y, -z, x
FORWARD = torch.tensor([[0.0, 0, 1, -6], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
INTRINSICS = torch.tensor([[60.0, 0, 48], [0, 60, 32], [0, 0, 1]])


@pytest.fixture
def frame():
    """Two frames of two cameras that look ahead and to the left."""
    left = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ FORWARD
    random = torch.Generator().manual_seed(0)
    return Frame(
        images=torch.randint(0, 256, (2, 2, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=random),
        intrinsics=INTRINSICS.expand(2, 2, 3, 3),
        cam2ego=torch.stack([FORWARD, left]).expand(2, 2, 4, 4),
    )


def stage(depth=True, grid=GRID, teacher=None):
    head = DepthHead(CHANNELS, (1.0, 21.0), 10, 2, grid) if depth else None
    return ProposalStage(head, QueryProposals(rectified=False, weights="none"), teacher, grid)


def attention(**changed):
    sizes = {"channels": 12, "layers": 2, "key_points": 3, "groups": 2, "voxel_channels": 4}
    return partial(VoxelAttention, in_channels=CHANNELS, **{**sizes, **changed})


def network(proposals=None, views=None, bev_stride=2):
    torch.manual_seed(0)
    return MonoOcc(
        ImageEncoder("tf_efficientnet_lite0", "none", [2], CHANNELS, 3),
        views,
        proposals,
        attention(),
        partial(BEVEncoder, widths=[8, 12], blocks=[1], out_channels=10),
        partial(ChannelToHeight, hidden_channels=6, bev_stride=bev_stride, grid=GRID, classes=OCC3D_CLASSES),
        GRID,
    )


def eager(found):
    """The network, which proposes about a third of the voxels, whatever it sees."""
    found.proposals.network.seg_head_1_2.conv_classes.bias.data = torch.tensor([0.0, 0.05])
    return found


def cameras(image, frame):
    return Cameras(image, frame.intrinsics, frame.cam2ego)


def trained_by(found, loss):
    """The parts of a network that a loss reaches."""
    found.zero_grad()
    loss.backward(retain_graph=True)
    reached = {name for name, each in found.named_parameters() if each.grad is not None and each.grad.any()}
    return {".".join(name.split(".")[:2]) if name.startswith("proposals") else name.split(".")[0] for name in reached}


def test_what_it_answers(frame):
    found = eager(network(stage())).eval()
    answer = found(frame)
    assert answer.voxel_logits_BXYZC.shape == (2, *GRID.shape, 18)
    assert {scale: tuple(value.shape) for scale, value in answer.proposals.items()} == {
        2: (2, 20, 20, 8, 2), 4: (2, 10, 10, 4, 2), 8: (2, 5, 5, 2, 2),
    }  # fmt: skip
    assert answer.depth.logits_BNDHW.shape == (2, 2, 10, HEIGHT // STRIDE, WIDTH // STRIDE)
    assert (answer.depth.lower, answer.depth.upper, answer.depth.stride) == (1.0, 21.0, found.depth_stride)
    bev = answer.features["bev"]
    assert bev.values.shape == (2, found.bev_features.channels, 20, 20)
    assert bev.stride == found.bev_features.stride == 2
    assert answer.features["image"].values.shape == (2, 2, CHANNELS, HEIGHT // STRIDE, WIDTH // STRIDE)
    assert found.proposes


def test_frames_of_a_batch_are_apart(frame):
    found = eager(network(stage())).eval()
    alone = replace(frame, images=frame.images[1:], intrinsics=frame.intrinsics[1:], cam2ego=frame.cam2ego[1:])
    torch.testing.assert_close(
        found(alone).voxel_logits_BXYZC, found(frame).voxel_logits_BXYZC[1:], rtol=1e-4, atol=1e-5
    )


def test_each_part_learns_by_its_own_loss(frame):
    """Proposals are a hard choice: nothing of what voxels should be reaches stage 1."""
    found = eager(network(stage()))
    answer = found(frame)
    voxels = trained_by(found, answer.voxel_logits_BXYZC.square().mean())
    assert voxels == {"encoder", "attention", "bev_encoder", "head"}
    assert trained_by(found, answer.proposals[2].square().mean()) == {"proposals.network"}
    assert trained_by(found, answer.depth.logits_BNDHW.square().mean()) == {"encoder", "proposals.depth"}


def test_without_a_proposal_every_voxel_is_the_token(frame):
    found = network(stage())
    found.proposals.network.seg_head_1_2.conv_classes.bias.data = torch.tensor([99.0, -99.0])
    answer = found(frame)
    assert answer.voxel_logits_BXYZC.isfinite().all()
    answer.voxel_logits_BXYZC.square().mean().backward()
    gradients = {name: each.grad for name, each in found.attention.named_parameters()}
    assert gradients.pop("mask_token").any()
    # gradients that are there and 0: processes that train together would wait for absent ones
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())


def test_at_one_stage_every_voxel_looks(frame):
    found = network(None)
    assert found.depth_stride is None and not found.proposes
    assert not any(name.startswith("proposals") for name in found.state_dict())
    answer = found(frame)
    assert answer.depth is None and not answer.proposals
    answer.voxel_logits_BXYZC.square().mean().backward()
    assert found.attention.mask_token.grad is None or not found.attention.mask_token.grad.any()


def test_depth_of_the_lidar_needs_its_points(frame):
    found = eager(network(stage(depth=False))).eval()
    assert found.depth_stride is None and found.proposes
    with pytest.raises(InputError, match=r"set student\.inputs\.lidar=true"):
        found(frame)
    points = torch.tensor([[0.1, 0.1, 0.1, 0.5]])
    none, some = (found(replace(frame, points=[each, each])) for each in (points[:0], points))
    assert none.depth is None
    assert not torch.equal(none.proposals[2], some.proposals[2])


def test_measured_depth_takes_the_place_of_what_is_predicted(frame):
    found = eager(network(stage())).eval()
    assert isinstance(found, LiftsMeasuredDepth)
    cells = torch.zeros(2, 2, HEIGHT // STRIDE, WIDTH // STRIDE)
    plain = found(frame)
    unmeasured = found.with_measured_depth(replace(frame, depth=cells))
    measured = found.with_measured_depth(replace(frame, depth=cells + 4.0))
    assert torch.equal(unmeasured.proposals[2], plain.proposals[2])
    assert not torch.equal(measured.proposals[2], plain.proposals[2])
    assert torch.equal(measured.depth.logits_BNDHW, plain.depth.logits_BNDHW)


def test_a_teacher_says_who_looks_where_it_says_anything(frame):
    found = eager(network(stage(teacher="stored"))).eval()
    assert found.proposals_of == "stored" and network(None).proposals_of is None
    plain = found(frame)
    nothing = torch.full((2, *COARSE.shape), 255, dtype=torch.uint8)
    assert torch.equal(found(replace(frame, proposals=nothing)).voxel_logits_BXYZC, plain.voxel_logits_BXYZC)
    own = proposed(plain.proposals[2])
    same = nothing.masked_fill(own, 1)
    assert torch.equal(found(replace(frame, proposals=same)).voxel_logits_BXYZC, plain.voxel_logits_BXYZC)
    other = found(replace(frame, proposals=torch.zeros_like(nothing)))
    assert not torch.equal(other.voxel_logits_BXYZC, plain.voxel_logits_BXYZC)
    assert torch.equal(other.proposals[2], plain.proposals[2])


def test_the_past_is_looked_at_where_it_was(frame):
    """A car that has moved and cameras that stayed in the world: nothing new is seen."""
    found = eager(network(stage())).eval()
    ego2present = torch.tensor([[0.0, -1, 0, 3], [1, 0, 0, -2], [0, 0, 1, 0], [0, 0, 0, 1]]).expand(2, 4, 4)
    earlier = replace(frame, cam2ego=torch.linalg.inv(ego2present).unsqueeze(1) @ frame.cam2ego)
    plain = found(frame).voxel_logits_BXYZC
    same = found(replace(frame, past=(replace(earlier, ego2present=ego2present),))).voxel_logits_BXYZC
    torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-5)
    unmoved = replace(earlier, ego2present=torch.eye(4).expand(2, 4, 4))
    still = found(replace(frame, past=(unmoved,))).voxel_logits_BXYZC
    assert (still - plain).abs().max() > 20 * (same - plain).abs().max()


@pytest.mark.parametrize("views", [False, True], ids=["views for themselves", "views look at each other"])
def test_no_image_is_looked_at_twice(frame, views, monkeypatch):
    """A drive of five keyframes, each with the one before it, then one that does not follow, answered bit for bit."""
    neighbours = CrossViewTransformer(CHANNELS, 2, around=True, weights="none") if views else None
    found = eager(network(stage(), neighbours)).eval()
    random, motion = torch.Generator().manual_seed(1), torch.eye(4).expand(1, 4, 4)
    images = torch.randint(0, 256, (6, 1, 2, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=random)
    drive = [replace(frame, images=each, intrinsics=frame.intrinsics[:1], cam2ego=frame.cam2ego[:1]) for each in images]
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 5)]
    answer, looked = streamed(found, calls=1), Mock(wraps=found.encoder.forward)
    with torch.inference_mode():
        for (before, now), times in zip(pairs, [2, 1, 1, 1, 2], strict=True):
            batch = replace(drive[now], past=(replace(drive[before], ego2present=motion),))
            expected = found(batch)
            with monkeypatch.context() as watched:
                watched.setattr(found.encoder, "forward", looked)
                looked.reset_mock()
                streaming = answer(batch)
            assert looked.call_count == times
            assert torch.equal(streaming.voxel_logits_BXYZC, expected.voxel_logits_BXYZC)


def test_views_look_at_each_other_first(frame):
    """What one camera sees changes the image features of another."""
    found = network(stage(), CrossViewTransformer(CHANNELS, 2, around=True, weights="none")).eval()
    other = frame.images.clone()
    other[:, 1] = 255 - other[:, 1]
    image, changed = (found(replace(frame, images=each)).features["image"].values for each in (frame.images, other))
    assert not torch.allclose(image[:, 0], changed[:, 0])
    alone = network(stage()).eval()
    image, changed = (alone(replace(frame, images=each)).features["image"].values for each in (frame.images, other))
    torch.testing.assert_close(image[:, 0], changed[:, 0])


def test_the_likeliest_depth_is_not_between_two_hills():
    logits = torch.full((1, 1, 10, 1, 3), -30.0)
    logits[0, 0, [1, 8], 0, 0] = torch.tensor([2.0, 1.9])
    logits[0, 0, [4, 5], 0, 1] = 1.0
    logits[0, 0, 9, 0, 2] = 1.0
    found = likeliest_depth(DepthBins(logits, 1.0, 21.0, 8))
    # bins of 2 m: 3 to 5 m; 9 to 11 and 11 to 13 m alike; 19 to 21 m
    torch.testing.assert_close(found.flatten(), torch.tensor([4.0, 11.0, 20.0]), rtol=0, atol=1e-4)


class TestAttention:
    def test_points_lie_where_the_pinhole_camera_says(self):
        # 12 m ahead of a camera at x = -6: 2 m left is 48 - 60 * 2 / 12, 1 m above it 32 - 60 / 12
        points = torch.tensor([[[6.0, 2.0, 2.5]], [[-9.0, 0.0, 1.5]], [[6.0, 12.0, 1.5]]])
        uv, seen = project(points, INTRINSICS[None], torch.linalg.inv(FORWARD)[None], (HEIGHT, WIDTH))
        torch.testing.assert_close(uv[0, 0, 0], torch.tensor([38.0 / WIDTH, 27.0 / HEIGHT]))
        assert seen.flatten().tolist() == [True, False, False]
        assert (uv[1:] == -1).all()

    def test_what_is_seen_shares_one_weight(self):
        seen = torch.tensor([[[True, True], [False, True]], [[False, False], [False, False]]])
        found = shares(torch.tensor([[[0.0], [1.0]], [[5.0], [5.0]]]), seen)
        e = np.exp(1)
        expected = [1 / (2 + e), 1 / (2 + e), 0, e / (2 + e), 0, 0, 0, 0]
        np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-6)

    def test_features_lie_where_voxels_are_proposed_and_the_token_elsewhere(self, shared, inputs):
        golden = np.load(shared / "fixtures/signals/monoocc_pseudo.npz")
        case = inputs.case_pseudo(int(golden["seed"]))
        proposals = torch.tensor(case["proposal_file"] != 17)
        assert np.array_equal(proposals.flatten().numpy(), golden["proposal"].astype(bool))
        features, token = torch.tensor(case["seed_features"]), torch.tensor(case["mask_token"])
        found = seeded(features[proposals], proposals[None], token)
        np.testing.assert_array_equal(found[0].numpy(), golden["seeded"])

    def test_proposed_voxels_alone_look_at_what_the_cameras_see_there(self, frame):
        torch.manual_seed(0)
        built = attention()(grid=COARSE)
        image = torch.randn(2, 2, CHANNELS, 8, 12, generator=torch.Generator().manual_seed(1))
        proposals = torch.zeros(2, *COARSE.shape, dtype=torch.bool)
        ahead, behind = (12, 10, 3), (0, 10, 3)  # 4 m and 7.6 m to -x
        proposals[0][ahead] = proposals[0][behind] = True
        dark = torch.zeros_like(image)
        bright_found, dark_found = (built(cameras(each, frame), SIZE, proposals) for each in (image, dark))
        changed = (bright_found != dark_found).any(-1)
        # behind the first camera, and not seen by the second: it says what the place says
        assert changed.nonzero().tolist() == [[0, *ahead]]
        assert (bright_found[1] == built.mask_token).all()

    def test_queries_keep_their_places_whatever_else_is_proposed(self, frame):
        torch.manual_seed(0)
        built = attention()(grid=COARSE)
        image = torch.randn(2, 2, CHANNELS, 8, 12, generator=torch.Generator().manual_seed(1))
        some = torch.rand(2, *COARSE.shape, generator=torch.Generator().manual_seed(2)) < 0.2
        every = built(cameras(image, frame), SIZE, torch.ones_like(some))
        found = built(cameras(image, frame), SIZE, some)
        torch.testing.assert_close(found[some], every[some], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_said_in_one_line(frame):
    low = VoxelGrid("low", "ego", (-8.0, -8.0, -1.0), 0.4, (40, 40, 8))
    with pytest.raises(InputError, match=r"the grid low has 40 x 40 x 8: set student.network.proposals=null"):
        stage(grid=low)
    with pytest.raises(InputError, match=r"student.network.head.bev_stride=1: MonoOcc's is 2"):
        network(bev_stride=1)
    odd = replace(frame, images=frame.images[..., :56, :])
    with pytest.raises(InputError, match="halves image features, which have 7 x 12 cells"):
        network(views=CrossViewTransformer(CHANNELS, 1, around=True, weights="none"))(odd)


def test_the_full_grid_has_room_for_it():
    assert stage(grid=OCC3D).grid.shape == (200, 200, 16)
