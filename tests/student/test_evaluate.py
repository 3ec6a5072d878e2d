"""The teacher's column of an evaluation, on tiny grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.classes import OCC3D_CLASSES
from distill.gaussians import Gaussians
from distill.grids import VoxelGrid
from distill.store import GaussianKind, StoreIdentity, StoreWriter, TeacherStore
from distill.teaching import render
from student.evaluate import teacher_semantics

# they overlap, and both reach higher than the 3 m that Gaussians are known for
GRID = VoxelGrid("tiny", "ego", (-3.0, -3.0, 0.0), 1.0, (6, 6, 5))
FINER = VoxelGrid("finer", "ego", (-2.0, -2.0, 1.0), 0.5, (8, 8, 6))
TOKEN, FREE, CAR = "a" * 32, 17, 4


@pytest.fixture
def gaussians():
    semantics = torch.zeros(2, 18)
    semantics[:, CAR] = 1.0
    means, scales = torch.tensor([[0.5, 0.5, 1.5], [-1.5, 1.5, 4.0]]), torch.full((2, 3), 0.8)
    rotations = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(2, 1)
    return Gaussians(means, scales, rotations, torch.ones(2), semantics, "probabilistic", 4.0, "stable")


@pytest.fixture(params=[True, False], ids=["with voxels", "Gaussians alone"])
def store(request, tmp_path, gaussians):
    kind = GaussianKind(2, gaussians.form, gaussians.reach, gaussians.det)
    identity = StoreIdentity("t", "", {}, GRID, OCC3D_CLASSES.names, request.param, kind)
    writer = StoreWriter.open(tmp_path / "store.zarr", identity, [TOKEN], ["scene"])
    log_probs, covered = everything(gaussians, GRID)
    writer.write(TOKEN, log_probs.numpy(), log_probs.exp().mean(2).numpy(), covered.numpy(), gaussians)
    return TeacherStore(tmp_path / "store.zarr")


def everything(gaussians, grid):
    told = render(gaussians, grid, torch.eye(4), torch.arange(np.prod(grid.shape)))
    return (values.unflatten(0, grid.shape) for values in told)


@pytest.mark.parametrize("grid", [GRID, FINER], ids=["stored", "rendered"])
def test_the_teachers_classes_are_free_where_it_has_modelled_nothing(store, gaussians, grid):
    log_probs, covered = everything(gaussians, grid)
    assert covered.any()
    assert (log_probs.argmax(-1)[~covered] == CAR).any()
    semantics_XYZ = teacher_semantics(store, TOKEN, grid, torch.eye(4), FREE)
    assert semantics_XYZ.dtype == np.uint8
    np.testing.assert_array_equal(semantics_XYZ, np.where(covered, log_probs.argmax(-1), FREE))
    assert set(semantics_XYZ.flat) == {CAR, FREE}
