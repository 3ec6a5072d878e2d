"""Points to voxels: upstream's voxels, every one of them, and the rule that makes probabilities of scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import opus
import pytest
import torch

from distill.grids import OCC3D, VoxelGrid
from distill.point_sets import VoxelRule, voxel_places

RULE = VoxelRule(reach=3.0, threshold=0.5, most=10, power=1.0)
GRID = VoxelGrid("tiny", "ego", (-2.0, -1.5, 2.5), 0.5, (8, 6, 5))


@pytest.fixture(scope="module")
def case(shared):
    folder = shared / "fixtures/opus"
    points, logits = (torch.from_numpy(each)[0] for each in opus.filler(folder).occ_case(0))
    metres = points * torch.tensor([80, 80, 6.4]) + torch.tensor(OCC3D.lower)
    return np.load(folder / "ref_occ.npz"), metres, logits.sigmoid()


@pytest.mark.parametrize(("name", "threshold"), [("default", 0.5), ("thr03", 0.3), ("nopad", 0.5)])
def test_voxels_are_upstreams(case, name, threshold):
    numbers, points, scores = case
    rule = replace(RULE, threshold=threshold)
    kept = rule.kept(points, scores)
    index, mean, count = rule.touched(points[kept], scores[kept], OCC3D)
    expected = torch.from_numpy(numbers[f"{name}.occ"]).long()
    counts = torch.zeros(expected.numel(), dtype=torch.int64).scatter(0, index, count)
    assert torch.equal(counts.view(expected.shape), torch.from_numpy(numbers[f"{name}.points_per_voxel"]).long())
    if name == "nopad":
        found = torch.full((expected.numel(),), 17).scatter(0, index, mean.argmax(1)).view(expected.shape)
    else:
        closed = rule.voxel_scores(points[kept], scores[kept], OCC3D)
        found = rule.semantics(closed)
        x, y, z = torch.from_numpy(numbers[f"{name}.sub_loc"]).long().T
        torch.testing.assert_close(
            closed[:, x, y, z].T, torch.from_numpy(numbers[f"{name}.sub_scores"]).float(), atol=5e-4, rtol=0
        )
        sure = torch.zeros(expected.numel(), dtype=torch.bool).scatter(0, index, mean.amax(1) > threshold)
        added = np.unpackbits(numbers[f"{name}.added_by_closing"]).astype(bool)
        assert np.array_equal((found.flatten() != 17) & ~sure, added)
        assert torch.equal(rule.logits(closed).log_softmax(-1).argmax(-1), expected)
    assert torch.equal(found, expected)


def test_points_far_from_their_query_or_unlikely_are_left_out():
    points = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [4.0, 0, 0]]])  # centroid at 1 m
    scores = torch.tensor([[[0.6, 0.1], [0.5, 0.5], [0.1, 0.9], [0.9, 0.9]]])
    assert RULE.kept(points, scores).tolist() == [[True, False, True, False]]


def test_the_first_points_of_a_voxel_count():
    points = torch.tensor([[-1.9, -1.4, 2.6]]).expand(4, 3)
    scores = torch.tensor([[0.2], [0.4], [0.9], [0.9]])
    index, mean, count = replace(RULE, most=2).touched(points, scores, GRID)
    assert index.tolist() == [0] and count.tolist() == [2]
    torch.testing.assert_close(mean, torch.tensor([[0.3]]))


@pytest.mark.parametrize("outside", [[-2.01, 0, 3], [2.0, 0, 3], [0, 0, 5.0], [0, 0, 2.4]])
def test_points_outside_the_grid_are_dropped_not_moved(outside):
    index, mean, _ = RULE.touched(torch.tensor([outside]), torch.ones(1, 3), GRID)
    assert not len(index)
    scores = RULE.voxel_scores(torch.tensor([outside]), torch.ones(1, 3), GRID)
    assert not scores.any() and not len(mean)


def filled(*places):
    """A point in the middle of each voxel."""
    return (torch.tensor(places) + 0.5) * GRID.voxel_size + torch.tensor(GRID.lower)


def test_closing_fills_what_lies_between_and_keeps_what_is_sure():
    scores = torch.tensor([[0.8], [0.9]])
    closed = RULE.voxel_scores(filled((2, 2, 2), (4, 2, 2)), scores, GRID)[0]
    assert closed[3, 2, 2] == pytest.approx(0.8) and closed[2, 2, 2] == pytest.approx(0.8)
    assert closed[4, 2, 2] == pytest.approx(0.9) and int((closed > 0).sum()) == 3


def test_closing_is_that_of_pooling():
    values = torch.rand(3, *GRID.shape)
    pooled = torch.nn.functional.max_pool3d
    expected = -pooled(-pooled(values[None], 3, 1, 1), 3, 1, 1)[0]
    points = filled(*torch.cartesian_prod(*(torch.arange(count) for count in GRID.shape)).tolist())
    low = replace(RULE, threshold=2.0)  # nothing is sure
    torch.testing.assert_close(low.voxel_scores(points, values.flatten(1).T, GRID), expected)


def test_odds_are_those_of_scores_given_that_one_is_true_at_most():
    scores = torch.tensor([0.6, 0.55, 0.2]).view(3, 1, 1, 1)
    none = 0.4 * 0.45 * 0.8
    ways = torch.tensor([0.6 * 0.45 * 0.8, 0.4 * 0.55 * 0.8, 0.4 * 0.45 * 0.2, none])
    torch.testing.assert_close(RULE.logits(scores).softmax(-1).flatten(), ways / ways.sum())
    sharper = (ways / none) ** 2.7
    found = replace(RULE, power=2.7).logits(scores).softmax(-1).flatten()
    torch.testing.assert_close(found, sharper / sharper.sum())


@pytest.mark.parametrize("power", [1.0, 2.7])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_the_likeliest_class_is_the_label(threshold, power):
    rule = replace(RULE, threshold=threshold, power=power)
    scores = torch.rand(17, 8, 8, 8) ** 4
    scores[:, 0] = 0
    scores[3, 1] = threshold  # not above
    scores[3, 2] = torch.nextafter(torch.tensor(threshold), torch.tensor(1.0))
    scores[4, 3] = 1 - 2.0**-20
    scores[5, 3] = 1 - 2.0**-21
    logits = rule.logits(scores)
    assert torch.equal(logits.log_softmax(-1).argmax(-1), rule.semantics(scores))
    assert logits.isfinite().all()


def test_gradients_reach_the_scores_of_points():
    points, scores = filled((1, 1, 1), (1, 1, 1), (4, 4, 2)), torch.rand(3, 2).requires_grad_()
    RULE.voxel_logits(points, scores, GRID)[..., 0].sum().backward()
    assert scores.grad[:, 0].all() and not scores.grad[:, 1].any()


def test_borders_are_found_in_single_precision_as_upstream_finds_them():
    """docs/formulas.md 10.4: another expression moves points that lie on borders."""
    border = torch.tensor([[k * 0.4 - 40, 0, 0] for k in range(201)], dtype=torch.float32)
    expected = np.floor((border.numpy() - np.float32(-40)) / np.float32(0.4))
    assert np.array_equal(voxel_places(border, OCC3D).floor()[:, 0], expected[:, 0])
