"""The paired bootstrap against resamples drawn keyframe by keyframe, and against what is known in closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.metrics.bootstrap import FEWEST, paired_bootstrap
from distill.metrics.rays import ray_iou


def ratio(counts_N2):
    """Hits in percent of all, (N, 1): a score of sums, which is no mean of the keyframes' own scores."""
    return (100 * counts_N2[:, 0] / counts_N2[:, 1]).unsqueeze(-1)


def mean(values_N):
    return values_N.unsqueeze(-1)


def some_counts(seed, keyframes=9):
    random = np.random.default_rng(seed)
    totals_K = random.integers(1, 1000, keyframes)
    return [torch.from_numpy(np.stack([random.integers(0, totals_K + 1), totals_K], 1))]


def test_the_ends_are_those_of_keyframes_scored_over_and_over():
    own, control = some_counts(0), some_counts(1)
    found = paired_bootstrap([(own, control)], ratio, 300, seed=7)
    gains = []
    for drawn_K in np.random.default_rng(7).multinomial(9, [1 / 9] * 9, 300):
        again = np.repeat(np.arange(9), drawn_K)
        gains.append(float((ratio(own[0][again].sum(0)[None]) - ratio(control[0][again].sum(0)[None])).squeeze()))
    assert [float(found.low_M), float(found.high_M)] == pytest.approx(np.percentile(gains, [2.5, 97.5]))
    assert float(found.value_M) == pytest.approx(float(ratio(own[0].sum(0)[None])))
    assert float(found.gain_M) == pytest.approx(float(found.value_M - found.control_M))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), keyframes=st.integers(FEWEST, 30))
def test_whoever_is_called_the_control_the_interval_is_the_same(seed, keyframes):
    own, control = some_counts(seed, keyframes), some_counts(seed + 1, keyframes)
    there, back = (paired_bootstrap([pair], ratio, 50, 0) for pair in ((own, control), (control, own)))
    assert there.low_M <= there.high_M
    torch.testing.assert_close(
        torch.stack([there.gain_M, there.low_M, there.high_M]), -torch.stack([back.gain_M, back.high_M, back.low_M])
    )


def test_who_is_compared_with_itself_gains_nothing_in_any_resample():
    found = paired_bootstrap([(some_counts(0), some_counts(0))], ratio, 100, 0)
    assert found.low_M == found.gain_M == found.high_M == 0


def test_the_interval_of_a_mean_is_the_textbooks():
    """gain ± 1.96 σ / √K, of the paired differences: what both sides share does not widen it."""
    random = np.random.default_rng(0)
    shared_K, gain_K = random.normal(0, 1000, 400), random.normal(2, 5, 400)
    pair = ([torch.from_numpy(shared_K + gain_K)], [torch.from_numpy(shared_K)])
    found = paired_bootstrap([pair], lambda sums_N: mean(sums_N / 400), 4000, 0)
    half = 1.96 * gain_K.std() / 20
    assert [float(found.low_M), float(found.high_M)] == pytest.approx(
        [gain_K.mean() - half, gain_K.mean() + half], rel=0.05
    )


def test_seeds_are_drawn_too():
    """Two seeds whose keyframes all gain 1, or 3: the mean gain of two drawn ones is 1, 2 or 3."""
    base = [torch.ones(8)]
    pairs = [([torch.ones(8) * (1 + gain)], base) for gain in (1, 3)]
    found = paired_bootstrap(pairs, lambda sums_N: mean(sums_N / 8), 200, 0)
    assert [float(value) for value in found] == [3, 1, 2, 1, 3]


def test_few_keyframes_have_no_interval():
    few, enough = (
        paired_bootstrap([(some_counts(0, n), some_counts(1, n))], ratio, 50, 0) for n in (FEWEST - 1, FEWEST)
    )
    assert few.low_M.isnan() and few.high_M.isnan() and few.gain_M.isfinite()
    assert enough.low_M.isfinite() and enough.high_M.isfinite()
    assert 2 * 0.5 ** (FEWEST - 1) > 0.05 > 2 * 0.5**FEWEST


def test_a_resample_without_a_score_is_left_out():
    """Of a class that one keyframe has: where it is not drawn there is no score."""
    own, control = torch.zeros(7, 2), torch.zeros(7, 2)
    own[3], control[3] = torch.tensor([3.0, 10.0]), torch.tensor([5.0, 10.0])
    found = paired_bootstrap([([own], [control])], ratio, 100, 0)
    assert [float(value) for value in found] == pytest.approx([30, 50, -20, -20, -20])


@pytest.mark.parametrize("sizes", [(5, 6), (0, 0)])
def test_both_sides_are_of_the_same_keyframes(sizes):
    with pytest.raises(InputError, match="keyframes"):
        paired_bootstrap([tuple([torch.ones(size, 2)] for size in sizes)], ratio, 10, 0)


@pytest.mark.parametrize("classes", [OCC3D_CLASSES, SURROUNDOCC_CLASSES], ids=lambda classes: classes.name)
def test_rays_of_many_resamples_are_scored_as_one_by_one(classes):
    random = torch.Generator().manual_seed(0)
    hits_NDC = torch.randint(0, 9, (4, 3, 18), generator=random)
    rays_NCC = torch.randint(0, 3, (4, 18, 18), generator=random) + torch.diag_embed(hits_NDC[:, 2])
    rays_NCC[:, 3], rays_NCC[:, :, 3], hits_NDC[..., 3] = 0, 0, 0  # a class that does not occur
    together = ray_iou(rays_NCC, hits_NDC, classes)
    for place in range(4):
        alone = ray_iou(rays_NCC[place], hits_NDC[place], classes)
        assert alone["RayIoU"].isfinite()
        for name, value in alone.items():
            torch.testing.assert_close(together[name][place], value, equal_nan=True)
