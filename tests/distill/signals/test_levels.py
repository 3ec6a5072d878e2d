from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.classes import OCC3D_CLASSES
from distill.grids import VoxelGrid
from distill.signals.bev import round_probs
from distill.signals.coarse import LevelBev, LevelVoxels
from distill.signals.columns import CoveredVoxels
from distill.signals.levels import BEV_STEP, MAX_BEV_KL, MAX_VOXEL_KL, VOXEL_STEP, coarse_levels
from distill.signals.voxels import LOG_PROBS, MAX_KL, code_table, decode_codes, encode_voxels

CLASSES = 18


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl(teacher: np.ndarray, decoded: np.ndarray, temperature: float) -> np.ndarray:
    """KL(teacher || decoded) of each voxel at a temperature, nats; float64."""
    p, q = (log_softmax(np.maximum(x.astype(np.float64), -1e4) / temperature) for x in (teacher, decoded))
    return (np.exp(p) * (p - q)).sum(-1)


def voxels(log_probs: np.ndarray) -> np.ndarray:
    """Distributions (V, C) as a row of voxels (V, 1, 1, C)."""
    return log_probs.astype(np.float32).reshape(-1, 1, 1, log_probs.shape[-1])


@pytest.mark.parametrize(("temperature", "mu"), [(1, 3.295e-5), (2, 8.2e-4)])
def test_the_bound_holds_for_every_distribution(temperature: int, mu: float) -> None:
    """The inequality in the docstring of `voxels`, for errors of all sizes around every level."""
    bound, depths = MAX_KL[temperature], -LOG_PROBS.astype(np.float64)
    half_steps = np.diff(depths) / 2
    for inside in np.linspace(0, 1, 9):  # from the level to the far end, upwards and downwards
        for error in (inside * half_steps, -inside * half_steps):
            level = np.where(error > 0, depths[:-1], depths[1:])
            s = np.exp(-(level + error) / temperature)
            phi = np.expm1(error / temperature) - error / temperature
            assert (s * phi <= bound * s - mu * s**temperature + mu / CLASSES).all()
    # beyond the last level s * phi(u) < exp(-depth / T), whatever the error
    assert np.exp(-depths[-1] / temperature) <= mu / CLASSES


def test_levels_are_256_falling_float16_numbers() -> None:
    assert LOG_PROBS.shape == (256,)
    assert LOG_PROBS[0] == 0
    assert (np.diff(LOG_PROBS) < 0).all()
    assert np.array_equal(LOG_PROBS, LOG_PROBS.astype(np.float16))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0, 12),
    classes=st.integers(2, CLASSES),
    sharpness=st.sampled_from([1.0, 0.1, 3.0]),
    lost=st.floats(0, 0.9),
)
def test_kl_stays_below_the_bound(seed: int, spread: float, classes: int, sharpness: float, lost: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (500, classes)) * rng.gamma(1, sharpness, (500, 1))
    logits[:, 1:][rng.random((500, classes - 1)) < lost] = -np.inf
    teacher = voxels(log_softmax(logits))
    levels = encode_voxels(teacher)
    for temperature, bound in MAX_KL.items():
        assert kl(teacher, levels, temperature).max() <= bound
        rounded = np.log(round_probs(np.exp(teacher)))
        assert kl(teacher, rounded, temperature).max() <= bound


@pytest.mark.parametrize("other", [-np.inf, -80.0, -30.0, -20.0, -12.0])
@pytest.mark.parametrize("top", [1, 2, 9, 18])
def test_extreme_distributions(other: float, top: int) -> None:
    logits = np.full((1, CLASSES), other)
    logits[:, :top] = 0
    teacher = voxels(log_softmax(logits))
    levels = encode_voxels(teacher)
    assert np.isfinite(levels).all()
    for temperature, bound in MAX_KL.items():
        assert kl(teacher, levels, temperature).max() <= bound


def test_rounds_to_the_nearest_level() -> None:
    rng = np.random.default_rng(0)
    teacher = voxels(log_softmax(rng.normal(0, 5, (4000, CLASSES))))
    levels = encode_voxels(teacher)
    nearest = np.abs(teacher[..., None] - LOG_PROBS).min(-1)
    np.testing.assert_array_equal(np.abs(teacher - levels.astype(np.float32)), nearest)


def test_codes_stand_for_the_levels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (4, 5, 3, CLASSES)).astype(np.float32)
    levels = encode_voxels(log_softmax(logits))
    codes = decode_codes(levels, code_table(LOG_PROBS))
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(LOG_PROBS[codes], levels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_float16_teachers_are_taken(dtype: type) -> None:
    teacher = voxels(log_softmax(np.random.default_rng(0).normal(0, 3, (100, CLASSES)))).astype(dtype)
    assert kl(teacher, encode_voxels(teacher), 1).max() <= MAX_KL[1]


def not_log_probabilities() -> dict[str, np.ndarray]:
    good = log_softmax(np.random.default_rng(0).normal(0, 3, (10, CLASSES)))
    nan, positive = good.copy(), np.full((10, CLASSES), -np.inf)
    nan[3] = -np.inf
    nan[3, :2] = np.nan, 0.0
    positive[:, 5] = 4.0
    return {
        "NaN": nan,
        "positive": positive,
        "logits": good + 0.5,
        "probabilities": np.exp(good),
        "all -inf": good - np.inf,
    }


@pytest.mark.parametrize("kind", not_log_probabilities())
def test_what_is_no_distribution_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="sum to one"):
        encode_voxels(voxels(not_log_probabilities()[kind]))


@pytest.mark.parametrize("probs", [[0.5, np.nan], [1.5, -0.5], [0.5, 0.4], [-1.0, -0.1]])
def test_bev_that_is_no_distribution_is_refused(probs: list[float]) -> None:
    with pytest.raises(ValueError, match="BEV"):
        round_probs(np.array([[[0.5, 0.5]], [probs]], np.float32))


COARSE = [(VOXEL_STEP, 31, MAX_VOXEL_KL), (BEV_STEP, 77, MAX_BEV_KL)]
FLAT = VoxelGrid("flat", "ego", (0.0, 0.0, 0.0), 1.0, (50, 10, 1))


@pytest.mark.parametrize(("finest", "count", "bounds"), COARSE)
def test_the_bounds_of_coarse_levels_hold_for_every_distribution(finest, count, bounds) -> None:
    """The inequality in the docstring of `voxels` has a mu."""
    depths = -coarse_levels(finest).astype(np.float64)
    assert len(depths) == count
    assert depths[-1] == pytest.approx(24, abs=2)
    half_steps = np.diff(depths) / 2
    for temperature, bound in bounds.items():
        holds = np.ones(4001, bool)
        mu = np.geomspace(1e-7, 1, len(holds))
        for inside in np.linspace(0, 1, 33):
            for error in (inside * half_steps, -inside * half_steps):
                level = np.where(error > 0, depths[:-1], depths[1:])
                s = np.exp(-(level + error) / temperature)[:, None]
                phi = (np.expm1(error / temperature) - error / temperature)[:, None]
                holds &= (s * phi <= bound * s - mu * s**temperature + mu / CLASSES).all(0)
        assert (holds & (np.exp(-depths[-1] / temperature) <= mu / CLASSES)).any(), temperature


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0, 15), lost=st.floats(0, 0.9))
def test_coarse_levels_keep_their_bounds(seed: int, spread: float, lost: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, (*FLAT.shape, CLASSES)) * random.gamma(1, 1, (*FLAT.shape, 1))
    logits[..., 1:][random.random((*FLAT.shape, CLASSES - 1)) < lost] = -np.inf
    teacher = log_softmax(logits).astype(np.float32)
    covered = random.random(FLAT.shape) < 0.8
    voxels, bev = LevelVoxels(FLAT, OCC3D_CLASSES.names), LevelBev(FLAT, OCC3D_CLASSES.names)
    encoded = voxels.encode(CoveredVoxels(teacher, covered))
    assert not encoded["voxel_codes"][~covered].any()
    decoded = np.array(voxels.levels)[encoded["voxel_codes"]]
    columns = np.array(bev.levels)[bev.encode(teacher[:, :, 0])["bev_codes"]]
    for index, temperature in enumerate((1, 2, 4)):
        missed = kl(teacher, decoded, temperature)[covered]
        assert missed.max() <= MAX_VOXEL_KL[temperature]
        np.testing.assert_allclose(encoded["voxel_kl"][:, index], [missed.mean(), missed.max()], rtol=0.01, atol=1e-5)
        assert kl(teacher[:, :, 0], columns, temperature).max() <= MAX_BEV_KL[temperature]


@pytest.mark.parametrize("kind", not_log_probabilities())
def test_coarse_levels_take_distributions_alone(kind: str) -> None:
    wrong = np.broadcast_to(voxels(not_log_probabilities()[kind])[:1], (*FLAT.shape, CLASSES)).copy()
    if kind == "NaN":
        wrong[3, 3, 0, :2] = np.nan
    with pytest.raises(ValueError, match="sum to one"):
        LevelVoxels(FLAT, OCC3D_CLASSES.names).encode(CoveredVoxels(wrong, np.ones(FLAT.shape, bool)))
