"""What the teachers of a batch say, from voxels and from Gaussians."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made import FREE, gaussians, taught, told_by_gaussians

from distill.bev import bev_log_probs
from distill.frame import Frame, Mirror, Told, stack
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.losses.logits import distillation_kl
from distill.signals.bev import PROBABILITY_BITS, BevProbs, round_probs
from distill.signals.gaussians import render
from distill.signals.voxels import MAX_KL, VoxelCodes, voxels_of

# its highest layer, at 3.4 m, lies above what the teacher has modelled: 3 m and 0.2 m
GRID = VoxelGrid("tiny", "ego", (-4.0, -4.0, -1.0), 0.8, (10, 10, 6))


def make_gaussians(seed, count=120):
    return replace(
        gaussians(seed, count, (8.0, 8.0, 4.0), (0.0, 0.0, 0.0)),
        scales_G3=torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) + 0.3,
    )


def make_pose(seed):
    """LIDAR_TOP to ego: turned by a quarter and a bit, and shifted."""
    angle = 1.5 + 0.1 * seed
    pose = torch.eye(4)
    pose[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pose[:3, 3] = torch.tensor([0.9, 0.1, 0.2])
    return pose


@pytest.fixture
def frame():
    told = told_by_gaussians([make_gaussians(0), make_gaussians(1, count=90)])
    return Frame(token=["a", "b"], lidar2ego=torch.stack([make_pose(0), make_pose(1)]), teachers={"stored": told})


def gaussians_of(frame):
    return frame.teachers["stored"].signals["gaussians"].gaussians


def everything(frame):
    """Log-probabilities and coverage of all voxels, (B, X, Y, Z, C) and (B, X, Y, Z)."""
    shape = (len(frame.token), *GRID.shape)
    teacher = taught(frame, grid=GRID)
    index = torch.arange(np.prod(shape))
    return teacher.voxels(index).view(*shape, -1), teacher.covered(index).view(shape)


def test_gaussians_are_rendered_at_the_voxel_centres_in_the_lidar_frame(frame):
    log_probs_BXYZC, covered_BXYZ = everything(frame)
    for row, told in enumerate(gaussians_of(frame)):
        centres_V3 = torch.from_numpy(GRID.centres().reshape(-1, 3))
        pose_44 = frame.lidar2ego[row].double()
        points_V3 = torch.linalg.solve(pose_44[:3, :3], (centres_V3 - pose_44[:3, 3]).T).T.float()
        log_probs_VC, covered_V = told.told(points_V3)
        torch.testing.assert_close(log_probs_BXYZC[row].view(-1, 18), log_probs_VC)
        assert torch.equal(covered_BXYZ[row].flatten(), covered_V)
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


def test_only_what_is_asked_for_is_rendered_once_and_found_again(frame, monkeypatch):
    """Here voxels alone; where columns are going to be asked for, whole columns at once."""
    expected_BXYZC, covered_BXYZ = everything(frame)
    rendered = []
    monkeypatch.setattr(
        "distill.signals.gaussians.render", lambda *told: rendered.append(len(told[-1])) or render(*told)
    )
    needed = torch.rand(2, *GRID.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    teacher = taught(frame, grid=GRID, asked=("voxels", "covered"))
    index_V = needed.flatten().nonzero().squeeze(1)
    some_V = index_V[torch.randperm(len(index_V), generator=torch.Generator().manual_seed(1))[:50]]
    torch.testing.assert_close(teacher.voxels(some_V), expected_BXYZC.flatten(0, -2)[some_V])
    assert sum(rendered) == 50
    torch.testing.assert_close(teacher.voxels(index_V), expected_BXYZC.flatten(0, -2)[index_V])
    assert torch.equal(teacher.covered(index_V), covered_BXYZ.flatten()[index_V])
    assert sum(rendered) == len(index_V)

    rendered.clear()
    asked_for_columns = taught(frame, grid=GRID)
    index_K = (index_V // GRID.shape[2]).unique()
    assert torch.equal(asked_for_columns.covered(index_V), covered_BXYZ.flatten()[index_V])
    assert sum(rendered) == len(index_K) * GRID.shape[2]
    asked_for_columns.columns(index_K)
    assert sum(rendered) == len(index_K) * GRID.shape[2]


def test_columns_follow_the_bev_rule_over_what_is_covered(frame):
    log_probs_BXYZC, covered_BXYZ = everything(frame)
    teacher = taught(frame, grid=GRID)
    index_K = torch.tensor([3, 57, 190])
    expected = bev_log_probs(log_probs_BXYZC, FREE, covered_BXYZ).flatten(0, -2)[index_K]
    torch.testing.assert_close(teacher.columns(index_K), expected)
    ignoring = bev_log_probs(log_probs_BXYZC, FREE).flatten(0, -2)[index_K]
    assert not torch.allclose(expected, ignoring)


def test_frames_without_gaussians_do_not_disturb_the_others(frame):
    expected_BXYZC, _ = everything(frame)
    gaussians_of(frame)[0] = make_gaussians(0, count=0)
    index_V = torch.arange(600, 1200)
    torch.testing.assert_close(taught(frame, grid=GRID).voxels(index_V), expected_BXYZC[1].view(-1, 18))


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flip_then_render_is_render_then_flip(frame, flips):
    """The Gaussians stay where they are; the grid they are asked about is mirrored, through `lidar2ego`."""
    axes = [axis + 1 for axis, flip in enumerate(flips) if flip]
    flipped = frame.mirrored(Mirror(*flips))
    for before, after in zip(everything(frame), everything(flipped), strict=True):
        torch.testing.assert_close(after, before.flip(axes))
    assert not torch.allclose(everything(frame)[0], everything(flipped)[0])

    columns, mirrored = (taught(each, grid=GRID).columns(torch.arange(200)) for each in (frame, flipped))
    torch.testing.assert_close(mirrored.view(2, 10, 10, -1), columns.view(2, 10, 10, -1).flip(axes))


def test_stored_voxels_are_looked_up_in_the_table_of_their_frame():
    random = torch.Generator().manual_seed(0)
    codes_BXYZC = torch.randint(0, 256, (2, 3, 4, 5, 18), dtype=torch.uint8, generator=random)
    table_B256 = torch.randn(2, 256, generator=random)
    covered_BXYZ = torch.rand(2, 3, 4, 5, generator=random) < 0.5
    bev_BXYC = torch.rand(2, 3, 4, 18, generator=random)
    bev_BXYC[0, 0, 0, 0] = 0
    signals = {"voxels": VoxelCodes(codes=codes_BXYZC, table=table_B256), "bev": BevProbs(probs=bev_BXYC)}
    told = Told(taught=torch.ones(2, dtype=torch.bool), covered=covered_BXYZ, signals=signals)
    teacher = taught(Frame(token=["a", "b"], teachers={"stored": told}))
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
    probs_XYC = round_probs(student_KC.exp().view(40, 50, 18).numpy())
    told = stack([Told(taught=True, signals={"bev": BevProbs(probs=probs_XYC)})])
    teacher_KC = taught(Frame(token=["a"], teachers={"stored": told})).columns(torch.arange(2000))
    assert (student_KC < -18).sum() > 1000
    # the last digit that the store keeps
    assert (teacher_KC - student_KC).abs().max() < 2**-PROBABILITY_BITS
    for temperature, bound in MAX_KL.items():
        assert distillation_kl(student_KC, teacher_KC, temperature) <= temperature**2 * bound


def test_the_voxels_of_a_column_are_its_heights():
    assert voxels_of(torch.tensor([0, 5]), 3).tolist() == [[0, 1, 2], [15, 16, 17]]
