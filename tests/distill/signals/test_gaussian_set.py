from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame
from distill.gaussians import Gaussians
from distill.grids import SURROUNDOCC, VoxelGrid
from distill.signals.gaussians import (
    COLUMNS,
    MAX_MEAN_KL,
    GaussianKind,
    GaussianSet,
    decode_gaussians,
    encode_gaussians,
    render,
)

GOLDENS = Path(__file__).parents[2] / "goldens"
FORMS = ("probabilistic", "additive")
# a corner of the range, to be quick: 12 x 12 x 8 m
LOWER, SIZE = (-50.0, -50.0, -5.0), (12.0, 12.0, 8.0)


def kind_of(gaussians: Gaussians) -> GaussianKind:
    return GaussianKind(len(gaussians.means_G3), gaussians.form, gaussians.reach, gaussians.det, gaussians.space)


def stored(gaussians: Gaussians) -> Gaussians:
    return decode_gaussians(encode_gaussians(gaussians, kind_of(gaussians)), kind_of(gaussians))


def random_gaussians(
    seed: int, count: int, form: str = "probabilistic", spread: float = 1.0, peaked: float = 1.0, det: str = "stable"
) -> Gaussians:
    """Gaussians everywhere in the corner. A large `spread` drives scales to 1 cm and 1.8 m, `peaked` probabilities to 0
    and 1."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    rotations, scores = normal(count, 4), peaked * normal(count, 17)
    scores = scores.softmax(1) if form == "probabilistic" else torch.nn.functional.softplus(scores)
    return Gaussians(
        torch.tensor(LOWER) + torch.rand(count, 3, generator=random) * torch.tensor(SIZE),
        0.01 + 1.79 * (spread * normal(count, 3) - float(spread > 1)).sigmoid(),
        rotations / rotations.norm(dim=1, keepdim=True),
        normal(count).sigmoid(),
        torch.nn.functional.pad(scores, (0, 1)),
        form,
        4.0,
        det,
        SURROUNDOCC,
    )


def street(seed: int) -> Gaussians:
    """What flat means: a road and walls as thin as 1 cm."""
    gaussians = random_gaussians(seed, 400, peaked=4.0)
    thin = 0.01 + 0.03 * torch.rand(400, generator=torch.Generator().manual_seed(seed))
    means, scales = gaussians.means_G3.clone(), gaussians.scales_G3.clone()
    means[:200, 2], scales[:200, 2] = -1.8, thin[:200]
    means[200:, 0], scales[200:, 0] = means[200:, 0].div(4).round() * 4, thin[200:]
    tilt = torch.nn.functional.normalize(gaussians.rotations_G4 * 0.05 + torch.tensor([1.0, 0, 0, 0]), dim=1)
    return dataclasses.replace(gaussians, means_G3=means, scales_G3=scales, rotations_G4=tilt)


def solid(seed: int) -> Gaussians:
    """As GaussianFormer's "solid": small ones, and one that fills the range with free space."""
    small = random_gaussians(seed, 400, "additive", peaked=4.0)
    empty = torch.tensor([[0.0] * 17 + [10.0]])
    return Gaussians(
        torch.cat([small.means_G3, torch.tensor([[0.0, 0.0, -1.0]])]),
        torch.cat([small.scales_G3.clamp(0.08, 0.64), torch.tensor([[100.0, 100.0, 8.0]])]),
        torch.cat([small.rotations_G4, torch.tensor([[1.0, 0, 0, 0]])]),
        torch.cat([small.opacities_G, torch.ones(1)]),
        torch.cat([small.semantics_GS, empty]),
        "additive",
        3.0,
        "stable",
        SURROUNDOCC,
    )


def centres() -> torch.Tensor:
    x, y, z = (torch.arange(low + 0.25, low + size, 0.5) for low, size in zip(LOWER, SIZE, strict=True))
    return torch.stack(torch.meshgrid(x, y, z, indexing="ij"), -1).view(-1, 3)


def mean_kl(teacher: Gaussians, read: Gaussians, points: torch.Tensor) -> float:
    p, q = (gaussians.log_probs(points).double() for gaussians in (teacher, read))
    return float((p.exp() * (p - q)).sum(1).mean())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    form=st.sampled_from(FORMS),
    spread=st.floats(0, 12),
    peaked=st.floats(0, 12),
)
def test_errors_are_bounded(seed: int, form: str, spread: float, peaked: float) -> None:
    told = random_gaussians(seed, 200, form, spread, peaked)
    rows, read = encode_gaussians(told, kind_of(told)), stored(told)
    assert (read.means_G3 - told.means_G3).abs().max() <= 2**-12
    assert (read.scales_G3 / told.scales_G3 - 1).abs().max() <= 2**-8
    assert (read.opacities_G / told.opacities_G - 1).abs().max() <= 2**-7
    read_G4, told_G4 = (torch.nn.functional.normalize(g.rotations_G4.double(), dim=1) for g in (read, told))
    assert (read_G4 - told_G4).norm(dim=1).div(2).asin().mul(4).max() <= 2.5e-4  # half the angle, seen on a sphere
    torch.testing.assert_close(read.rotations_G4.norm(dim=1), torch.ones(200))
    semantics, probs = torch.from_numpy(rows[:, 11:]), told.semantics_GS
    if form == "additive":
        assert (semantics - probs).abs().max() <= 2**-6
        assert torch.equal(semantics, read.semantics_GS)
    else:
        assert ((semantics - probs).abs() <= (2**-7.5 * probs.sqrt()).clamp_min(2**-23)).all()
        torch.testing.assert_close(read.semantics_GS.sum(1), torch.ones(200))
        assert (read.semantics_GS[:, 17] == 0).all()


TEACHERS = {
    "soft": random_gaussians(0, 300),
    "soft, upstream": random_gaussians(1, 300, det="upstream"),
    "flat and peaked": random_gaussians(2, 300, spread=4.0, peaked=4.0),
    "a street": street(3),
    "a street, upstream": dataclasses.replace(street(3), det="upstream"),
    "solid": solid(4),
    "additive, dense": random_gaussians(5, 900, "additive", spread=2.0, peaked=4.0),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_the_voxels_are_those_of_the_teacher(name: str) -> None:
    teacher = TEACHERS[name]
    assert mean_kl(teacher, stored(teacher), centres()) < MAX_MEAN_KL / 2


def test_the_measure_notices_a_tenth_of_the_precision() -> None:
    teacher = TEACHERS["flat and peaked"]
    moved = dataclasses.replace(teacher, means_G3=teacher.means_G3 + 0.01)
    assert mean_kl(teacher, moved, centres()) > MAX_MEAN_KL


@pytest.mark.parametrize("golden", ["tiny_prob", "tiny_prob_6400", "tiny_v1"])
def test_the_voxels_of_upstream_are_kept(golden: str) -> None:
    """Gaussians that upstream's own network made, with random weights."""
    values = np.load(GOLDENS / f"gaussianformer_{golden}.npz")
    means, scales, opacities, semantics = (
        torch.from_numpy(values[f"agg.in.{name}"][0]) for name in ("means", "scales", "opas", "semantics")
    )
    rotations = torch.from_numpy(values["gaussian.rotations"][0])
    rotations = torch.cat([rotations, torch.tensor([[1.0, 0, 0, 0]]).repeat(len(means) - len(rotations), 1)])
    form, reach = ("additive", 3.0) if golden == "tiny_v1" else ("probabilistic", 4.0)
    teacher = Gaussians(means, scales, rotations, opacities, semantics, form, reach, "upstream", SURROUNDOCC)
    points = torch.from_numpy(SURROUNDOCC.centres()[::5, ::5].reshape(-1, 3)).float()
    kl = mean_kl(teacher, stored(teacher), points)
    assert kl < MAX_MEAN_KL / 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("peaked", [1.0, 4.0])
def test_a_keyframe_takes_about_a_megabyte(form: str, peaked: float) -> None:
    """Of 25 600 Gaussians with nothing in common: the worst there is."""
    gaussians = random_gaussians(0, 25600, form, peaked=peaked)
    signal = GaussianSet(SURROUNDOCC, OCC3D_CLASSES.names, kind_of(gaussians))
    (array,) = signal.arrays()
    chunk = array.pack(signal.encode(gaussians)["gaussians"])
    assert len(chunk) < 1e6
    assert array.unpack(chunk).shape == (25600, len(COLUMNS))


def test_fewer_gaussians_than_rows_come_back_alone() -> None:
    gaussians, kind = random_gaussians(0, 7), GaussianKind(20, "probabilistic", 4.0, "stable", SURROUNDOCC)
    rows = encode_gaussians(gaussians, kind)
    assert rows.shape == (20, 29)
    assert np.isnan(rows[7:]).all()
    read = decode_gaussians(rows, kind)
    assert torch.equal(read.means_G3, stored(gaussians).means_G3)
    assert (read.form, read.reach, read.det) == ("probabilistic", 4.0, "stable")
    nothing = decode_gaussians(rows[7:], kind)
    assert nothing.semantics_GS.shape == (0, 18)
    assert nothing.log_probs(centres()[:5]).shape == (5, 18)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means_G3": torch.full((7, 3), torch.nan)}, "numbers"),
        ({"semantics_GS": torch.full((7, 18), torch.inf)}, "numbers"),
        ({"form": "additive"}, "kind"),
        ({"reach": 5.0}, "kind"),
        ({"det": "upstream"}, "kind"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    gaussians = random_gaussians(0, 7)
    with pytest.raises(ValueError, match=message):
        encode_gaussians(dataclasses.replace(gaussians, **change), kind_of(gaussians))


def test_more_gaussians_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"count=8.*count=7"):
        encode_gaussians(random_gaussians(0, 8), kind_of(random_gaussians(0, 7)))


def a_gaussian(mean):
    """One that fills a good part of the grid."""
    semantics = torch.zeros(1, 18)
    semantics[0, 4] = 1.0
    return Gaussians(
        torch.tensor([mean]),
        torch.full((1, 3), 0.8),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.ones(1),
        semantics,
        "probabilistic",
        4.0,
        "stable",
        SURROUNDOCC,
    )


def test_gaussians_that_say_something_else_than_the_voxels_are_refused():
    grid = VoxelGrid("tiny", "ego", (-2.0, -2.0, -1.0), 0.5, (8, 8, 8))
    pose_44 = torch.eye(4)
    pose_44[0, 3] = 1.0
    gaussians = a_gaussian([-1.0, 0.5, 0.0])
    signal = GaussianSet(grid, OCC3D_CLASSES.names, kind_of(gaussians))
    frame = Frame(token=["abc"], lidar2ego=pose_44.unsqueeze(0))
    log_probs, _ = render(gaussians, grid, pose_44, torch.arange(512))
    log_probs_XYZC = log_probs.view(8, 8, 8, 18)
    signal.check(gaussians, frame, log_probs_XYZC, None)
    with pytest.raises(
        InputError, match=r"abc: .* by \d.*e-0\d nats .* promises 1e-04: .*leave gaussians out of dump.signals"
    ):
        signal.check(a_gaussian([-1.0, 0.5, 0.05]), frame, log_probs_XYZC, None)
    with pytest.raises(InputError):  # forgetting that the LiDAR is not the ego frame
        signal.check(gaussians, Frame(token=["abc"], lidar2ego=torch.eye(4).unsqueeze(0)), log_probs_XYZC, None)


def test_gaussians_need_not_agree_where_the_teacher_says_nothing():
    grid = VoxelGrid("tiny", "ego", (-2.0, -2.0, -1.0), 0.5, (8, 8, 8))
    gaussians = a_gaussian([0.0, 0.5, 0.0])
    signal = GaussianSet(grid, OCC3D_CLASSES.names, kind_of(gaussians))
    frame = Frame(token=["abc"], lidar2ego=torch.eye(4).unsqueeze(0))
    log_probs, _ = render(gaussians, grid, torch.eye(4), torch.arange(512))
    log_probs_XYZC = log_probs.view(8, 8, 8, 18).clone()
    log_probs_XYZC[..., 4:, :] = -math.log(18)
    covered_XYZ = torch.ones(8, 8, 8, dtype=torch.bool)
    with pytest.raises(InputError):
        signal.check(gaussians, frame, log_probs_XYZC, covered_XYZ)
    covered_XYZ[..., 4:] = False
    signal.check(gaussians, frame, log_probs_XYZC, covered_XYZ)
    # an impossible class is no difference to speak of, and no NaN
    log_probs_XYZC[..., :4, :][log_probs_XYZC[..., :4, :] < -16] = -torch.inf
    signal.check(gaussians, frame, log_probs_XYZC, covered_XYZ)
