"""What the teachers of a batch say, from voxels and from Gaussians."""

import numpy as np
import pytest
import torch

from distill.augment import Transform
from distill.bev import bev_log_probs
from distill.gaussians import Gaussians
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.losses import distillation_kl
from distill.store.codec import MAX_KL, PROBABILITY_BITS, round_probs
from distill.teaching import RenderedTeaching, StoredTeaching, render, teaching, voxels_of

FREE = 17
# its highest layer, at 3.4 m, lies above what the teacher has modelled: 3 m and 0.2 m
GRID = VoxelGrid("tiny", "ego", (-4.0, -4.0, -1.0), 0.8, (10, 10, 6))


def make_gaussians(seed, count=120):
    random = torch.Generator().manual_seed(seed)
    rotations = torch.randn(count, 4, generator=random)
    semantics = torch.randn(count, 17, generator=random).softmax(1)
    return Gaussians(
        torch.rand(count, 3, generator=random) * torch.tensor([8.0, 8.0, 4.0]) - torch.tensor([4.0, 4.0, 2.0]),
        torch.rand(count, 3, generator=random) + 0.3,
        rotations / rotations.norm(dim=1, keepdim=True),
        torch.rand(count, generator=random),
        torch.nn.functional.pad(semantics, (0, 1)),
        "probabilistic",
        4.0,
        "stable",
    )


def make_pose(seed):
    """LIDAR_TOP to ego: turned by a quarter and a bit, and shifted."""
    angle = 1.5 + 0.1 * seed
    pose = torch.eye(4)
    pose[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pose[:3, 3] = torch.tensor([0.9, 0.1, 0.2])
    return pose


@pytest.fixture
def batch():
    return {
        "teacher_gaussians": [make_gaussians(0), make_gaussians(1, count=90)],
        "lidar2ego": torch.stack([make_pose(0), make_pose(1)]),
    }


def everywhere(batch, grid=GRID):
    return torch.ones(len(batch["teacher_gaussians"]), *grid.shape, dtype=torch.bool)


def everything(batch):
    """Log-probabilities and coverage of all voxels, (B, X, Y, Z, C) and (B, X, Y, Z)."""
    needed = everywhere(batch)
    teacher = RenderedTeaching(batch, needed, GRID, FREE)
    index = torch.arange(needed.numel())
    return teacher.voxels(index).view(*needed.shape, -1), teacher.covered(index).view(needed.shape)


def test_gaussians_are_rendered_at_the_voxel_centres_in_the_lidar_frame(batch):
    log_probs_BXYZC, covered_BXYZ = everything(batch)
    for frame, gaussians in enumerate(batch["teacher_gaussians"]):
        centres_V3 = torch.from_numpy(GRID.centres().reshape(-1, 3))
        pose_44 = batch["lidar2ego"][frame].double()
        points_V3 = torch.linalg.solve(pose_44[:3, :3], (centres_V3 - pose_44[:3, 3]).T).T.float()
        log_probs_VC, covered_V = gaussians.told(points_V3)
        torch.testing.assert_close(log_probs_BXYZC[frame].view(-1, 18), log_probs_VC)
        assert torch.equal(covered_BXYZ[frame].flatten(), covered_V)
    assert covered_BXYZ.float().mean((0, 1, 2)).tolist() == [1.0] * 5 + [0.0]
    assert 0.1 < (log_probs_BXYZC.argmax(-1) != FREE).float().mean() < 0.9


def test_on_its_own_grid_the_frames_agree():
    index_V = torch.arange(0, 640_000, 997)
    log_probs_VC, covered_V = render(make_gaussians(0), SURROUNDOCC, torch.eye(4), index_V)
    points_V3 = torch.from_numpy(SURROUNDOCC.centres().reshape(-1, 3)[index_V]).float()
    torch.testing.assert_close(log_probs_VC, make_gaussians(0).log_probs(points_V3))
    assert covered_V.all()


def test_occ3d_is_covered_up_to_the_height_of_the_range():
    """3 m above a LiDAR that stands 1.84 m above the ego origin; the highest voxels of Occ3D end at 5.4 m."""
    pose_44 = torch.eye(4)
    pose_44[2, 3] = 1.84
    _, covered_V = render(make_gaussians(0), OCC3D, pose_44, torch.arange(200 * 200 * 16))
    per_layer_Z = covered_V.view(OCC3D.shape).float().mean((0, 1))
    assert per_layer_Z.tolist() == [1.0] * 15 + [0.0]  # the last two centres are at 4.8 and 5.2 m


def test_only_what_is_needed_is_rendered_and_found_again(batch):
    expected_BXYZC, covered_BXYZ = everything(batch)
    needed = torch.rand(2, *GRID.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    teacher = teaching(batch, needed, GRID, FREE)
    index_V = needed.flatten().nonzero().squeeze(1)
    assert len(teacher.log_probs_RC) == len(index_V)
    some_V = index_V[torch.randperm(len(index_V), generator=torch.Generator().manual_seed(1))[:50]]
    torch.testing.assert_close(teacher.voxels(some_V), expected_BXYZC.flatten(0, -2)[some_V])
    assert torch.equal(teacher.covered(some_V), covered_BXYZ.flatten()[some_V])


def test_columns_follow_the_bev_rule_over_what_is_covered(batch):
    log_probs_BXYZC, covered_BXYZ = everything(batch)
    teacher = teaching(batch, everywhere(batch), GRID, FREE)
    index_K = torch.tensor([3, 57, 190])
    expected = bev_log_probs(log_probs_BXYZC, FREE, covered_BXYZ).flatten(0, -2)[index_K]
    torch.testing.assert_close(teacher.columns(index_K), expected)
    ignoring = bev_log_probs(log_probs_BXYZC, FREE).flatten(0, -2)[index_K]
    assert not torch.allclose(expected, ignoring)


def test_frames_without_gaussians_do_not_disturb_the_others(batch):
    expected_BXYZC, _ = everything(batch)
    batch["teacher_gaussians"][0] = make_gaussians(0, count=0)
    needed = everywhere(batch)
    needed[0] = False
    teacher = teaching(batch, needed, GRID, FREE)
    index_V = torch.arange(600, 1200)
    torch.testing.assert_close(teacher.voxels(index_V), expected_BXYZC[1].view(-1, 18))


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flip_then_render_is_render_then_flip(batch, flips):
    """The Gaussians stay where they are; the grid they are asked about is mirrored, through `lidar2ego`."""
    transform = Transform(images=(), flip_x=flips[0], flip_y=flips[1])
    axes = [axis + 1 for axis, flip in enumerate(flips) if flip]
    flipped = dict(batch)
    moved = [
        transform.apply({"lidar2ego": pose.numpy(), "teacher_gaussians": gaussians})
        for pose, gaussians in zip(batch["lidar2ego"], batch["teacher_gaussians"], strict=True)
    ]
    flipped["lidar2ego"] = torch.from_numpy(np.stack([sample["lidar2ego"] for sample in moved]))
    flipped["teacher_gaussians"] = [sample["teacher_gaussians"] for sample in moved]
    for before, after in zip(everything(batch), everything(flipped), strict=True):
        torch.testing.assert_close(after, before.flip(axes))
    assert not torch.allclose(everything(batch)[0], everything(flipped)[0])

    index_K = torch.arange(200)
    columns, mirrored = (teaching(b, everywhere(b), GRID, FREE).columns(index_K) for b in (batch, flipped))
    torch.testing.assert_close(mirrored.view(2, 10, 10, -1), columns.view(2, 10, 10, -1).flip(axes))


def test_stored_voxels_are_looked_up_in_the_table_of_their_frame():
    random = torch.Generator().manual_seed(0)
    codes_BXYZC = torch.randint(0, 256, (2, 3, 4, 5, 18), dtype=torch.uint8, generator=random)
    table_B256 = torch.randn(2, 256, generator=random)
    covered_BXYZ = torch.rand(2, 3, 4, 5, generator=random) < 0.5
    bev_BXYC = torch.rand(2, 3, 4, 18, generator=random)
    bev_BXYC[0, 0, 0, 0] = 0
    batch = {
        "teacher_voxel": codes_BXYZC,
        "teacher_table": table_B256,
        "teacher_covered": covered_BXYZ,
        "teacher_bev": bev_BXYC,
    }
    teacher = teaching(batch, covered_BXYZ, GRID, FREE)
    assert isinstance(teacher, StoredTeaching)
    for position in (0, 7, 59, 60, 101, 119):
        b, x, y, z = np.unravel_index(position, (2, 3, 4, 5))
        index_V = torch.tensor([position])
        assert torch.equal(teacher.voxels(index_V)[0], table_B256[b][codes_BXYZC[b, x, y, z].long()])
        assert teacher.covered(index_V)[0] == covered_BXYZ[b, x, y, z]
    columns_KC = teacher.columns(torch.tensor([0, 13]))
    torch.testing.assert_close(columns_KC[1], bev_BXYC[1, 0, 1].log())
    assert columns_KC.isfinite().all()


def test_a_student_that_says_what_the_stored_columns_say_has_nothing_to_learn():
    """To the bound of the store, down to its smallest probability: exp(-20)."""
    scores_KC = -20 * torch.rand(2000, 18, generator=torch.Generator().manual_seed(0))
    scores_KC[:, 5] = 0
    student_KC = scores_KC.log_softmax(-1).clamp_min(-20)
    bev_BXYC = torch.from_numpy(round_probs(student_KC.exp().view(1, 40, 50, 18).numpy()))
    rest = {name: torch.zeros(1, 40, 50, 4) for name in ("teacher_voxel", "teacher_table", "teacher_covered")}
    teacher_KC = StoredTeaching(rest | {"teacher_bev": bev_BXYC}).columns(torch.arange(2000))
    assert (student_KC < -18).sum() > 1000
    # the last digit that the store keeps
    assert (teacher_KC - student_KC).abs().max() < 2**-PROBABILITY_BITS
    for temperature, bound in MAX_KL.items():
        assert distillation_kl(student_KC, teacher_KC, temperature) <= temperature**2 * bound


def test_the_voxels_of_a_column_are_its_heights():
    assert voxels_of(torch.tensor([0, 5]), 3).tolist() == [[0, 1, 2], [15, 16, 17]]
