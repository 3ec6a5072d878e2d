import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill import rigid
from distill.grids import OCC3D, SURROUNDOCC

WHERE = {"array": np.asarray, "tensor": torch.from_numpy}


def poses(seed, shape, mirrored=False):
    """Rotations by any angle (and a reflection), and places within 100 m, float64 (*shape, 4, 4)."""
    rng = np.random.default_rng(seed)
    pose = np.zeros((*shape, 4, 4))
    pose[..., :3, :3] = np.linalg.qr(rng.normal(size=(*shape, 3, 3)))[0]
    pose[..., 1, :3] *= np.where((np.linalg.det(pose[..., :3, :3]) < 0) != mirrored, -1, 1)[..., None]
    pose[..., :3, 3] = rng.uniform(-100, 100, (*shape, 3))
    pose[..., 3, 3] = 1
    return pose


@pytest.mark.parametrize("kind", WHERE)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(), (6,), (2, 3)]), mirrored=st.booleans())
def test_it_is_the_inverse(kind, seed, shape, mirrored):
    pose = WHERE[kind](poses(seed, shape, mirrored))
    np.testing.assert_allclose(rigid.inverse(pose), np.linalg.inv(pose), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", WHERE)
def test_what_is_given_stays_as_it_is_and_its_kind(kind):
    pose = WHERE[kind](poses(0, (6,)).astype(np.float32))
    before = np.array(pose)
    back = rigid.inverse(pose)
    np.testing.assert_array_equal(pose, before)
    assert (type(back), back.dtype, back.shape) == (type(pose), pose.dtype, pose.shape)


def test_gradients_pass():
    pose = torch.from_numpy(poses(1, (2,))).requires_grad_()
    assert torch.autograd.gradcheck(rigid.inverse, pose)


def test_the_ego_frame_seen_from_a_grid():
    lidar2ego = poses(2, ())
    np.testing.assert_array_equal(OCC3D.from_ego(lidar2ego), np.eye(4))
    np.testing.assert_allclose(SURROUNDOCC.from_ego(lidar2ego) @ lidar2ego, np.eye(4), atol=1e-12)
