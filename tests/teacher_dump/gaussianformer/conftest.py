"""Goldens of upstream's own code: deterministic weights, a camera rig, images, and stage-by-stage outputs.

They stand in tests/goldens, whose make.py says what they hold. Tests that need more than that use the fixtures which
they are a part of, and skip where there is no shared/ beside the checkout.
"""

import functools
import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import deterministic
from torch import Tensor, nn

from teacher_dump.teachers.gaussianformer.backbone import ResNetDCN
from teacher_dump.teachers.gaussianformer.necks import FPN

GOLDENS = Path(__file__).parents[2] / "goldens"


class Golden:
    """One upstream run: arrays as tensors."""

    def __init__(self, *paths: Path):
        self.arrays = {name: array for path in paths for name, array in np.load(path).items()}

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[key])

    def __contains__(self, key):
        return key in self.arrays


@pytest.fixture(scope="session")
def thinned():
    """`thinned(found, golden)`: every n-th row and column of `found`, as many as the golden holds."""

    def part(found: Tensor, golden: Tensor) -> Tensor:
        steps = (math.ceil(n / kept) for n, kept in zip(found.shape, golden.shape, strict=True))
        return found[tuple(slice(None, None, step) for step in steps)]

    return part


@pytest.fixture(scope="session")
def golden():
    """`golden("tiny_prob")["enc.1.deformable"]`; cases tiny_prob, tiny_prob_6400, tiny_v1 and tiny_v1_old."""
    common = GOLDENS / "gaussianformer_images.npz"
    return functools.cache(lambda case: Golden(common, GOLDENS / f"gaussianformer_{case}.npz"))


@pytest.fixture(scope="session")
def whole_golden(shared):
    """The fixture that `golden` is a part of."""
    return functools.cache(lambda case: Golden(shared / f"fixtures/gaussianformer/ref_{case}.npz"))


@pytest.fixture(scope="session")
def key_list():
    """`key_list("prob/nuscenes_gs25600.py")`: shape of every parameter and buffer of an upstream config."""
    lists = json.loads(lzma.decompress((GOLDENS / "gaussianformer_keys.json.xz").read_bytes()))
    return lambda config: {key: tuple(shape) for key, shape in lists[config].items()}


@pytest.fixture(scope="session")
def fill():
    """`fill(module, "encoder.")`: loads the goldens' weights strictly and returns the module, in eval mode.

    `prefix` is the place of the module in the whole network; what upstream fills with a constant keeps its value.
    """

    def load(module: nn.Module, prefix: str = "") -> nn.Module:
        own = {prefix + key: value for key, value in module.state_dict().items()}
        filled = deterministic.weights(own)
        module.load_state_dict({key.removeprefix(prefix): value for key, value in filled.items()}, strict=True)
        return module.eval().requires_grad_(False)

    return load


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Normalised float32 images (6, 3, 96, 160) of the goldens."""
    return deterministic.images()


@pytest.fixture(scope="session")
def lidar2img() -> Tensor:
    """Projection matrices (6, 4, 4) of the goldens, float32."""
    return deterministic.lidar2img()


@pytest.fixture(scope="session")
def backbone_maps(fill, images) -> list[Tensor]:
    """What our backbone makes of the images; compared with upstream's in test_image_networks.py."""
    return fill(ResNetDCN(), "img_backbone.")(images)


@pytest.fixture(scope="session")
def maps(fill, backbone_maps) -> list[Tensor]:
    """What our FPN makes of them; compared with upstream's there, too."""
    return fill(FPN([x_NCHW.shape[1] for x_NCHW in backbone_maps], 128), "img_neck.")(backbone_maps)


class GivenDraws:
    """The random numbers of an upstream run."""

    def __init__(self, upstream):
        self.upstream = upstream

    def uniform(self, *shape):
        return self.upstream["lifter.rand_uniform"].view(shape)

    def normal(self, *shape):
        return self.upstream["lifter.rep_noise"].view(shape)


@pytest.fixture(scope="session")
def given_draws(golden):
    """`given_draws("tiny_prob")`: what upstream's lifter drew in a golden."""
    return lambda case: GivenDraws(golden(case))
