"""A store says which space its Gaussians model; those that were written before they said so mean SurroundOcc's."""

import pytest
import torch

from distill.classes import OCC3D_CLASSES
from distill.gaussians import Gaussians
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.signals import GaussianKind, SignalsOf, described
from distill.signals.gaussians import GaussianSet, decode_gaussians, encode_gaussians
from distill.store import StoreIdentity

SPACE = VoxelGrid("small", "lidar", (-8.0, -8.0, -2.0), 1.0, (16, 16, 4))
COMMON = ("probabilistic", 4.0, "stable")
KIND = GaussianKind(3, *COMMON, SPACE)
NAMES = OCC3D_CLASSES.names


def gaussians(space=SPACE):
    semantics = torch.nn.functional.one_hot(torch.tensor([4, 5]), 18).float()
    rotations = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(2, 1)
    return Gaussians(torch.zeros(2, 3), torch.ones(2, 3), rotations, torch.ones(2), semantics, *COMMON, space)


def test_the_space_goes_through_a_store():
    signal = GaussianSet(OCC3D, NAMES, KIND)
    assert SignalsOf(described([signal]), OCC3D, NAMES, {}.__getitem__)["gaussians"] == signal
    assert decode_gaussians(encode_gaussians(gaussians(), KIND), KIND).space == SPACE


def test_gaussians_of_another_space_are_refused():
    with pytest.raises(ValueError, match=r"of the kind .*surroundocc.*, not of the announced .*small"):
        encode_gaussians(gaussians(SURROUNDOCC), KIND)


def test_earlier_stores_mean_what_gaussianformer_models():
    described_in_schema_3 = {
        **{"schema": 3, "teacher": "t", "checkpoint_sha256": "", "config": {}, "content": "gaussians"},
        **{"grid": OCC3D.to_dict(), "classes": list(NAMES)},
        "gaussians": {"count": 3, "form": "probabilistic", "reach": 4.0, "det": "stable"},
    }
    signal = StoreIdentity.from_dict(described_in_schema_3).build_signals({}.__getitem__)["gaussians"]
    assert signal == GaussianSet(OCC3D, NAMES, GaussianKind(3, *COMMON, SURROUNDOCC))
