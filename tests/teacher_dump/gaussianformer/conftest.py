"""Goldens of upstream's own code: deterministic weights, a camera rig, images, and stage-by-stage outputs."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

SEED = 0  # of every golden
SIZE = (96, 160)  # image rows and columns of every golden


class Golden:
    """One upstream run: arrays as tensors, numbers and texts as Python values."""

    def __init__(self, path):
        self.arrays = np.load(path)

    def __getitem__(self, key):
        array = self.arrays[key]
        return torch.from_numpy(array) if array.ndim else array.item()

    def __contains__(self, key):
        return key in self.arrays.files


@pytest.fixture(scope="session")
def fixture_root(shared):
    """The folder with the goldens; tests skip without it."""
    root = shared / "fixtures/gaussianformer"
    if not root.is_dir():
        pytest.skip(f"no goldens at {root}")
    return root


@pytest.fixture(scope="session")
def golden(fixture_root):
    """`golden("tiny_prob")["enc.1.deformable"]`; cases tiny_prob, tiny_prob_6400, tiny_v1 and tiny_v1_old."""
    loaded = {}

    def load(case):
        if case not in loaded:
            loaded[case] = Golden(fixture_root / f"ref_{case}.npz")
        return loaded[case]

    return load


@pytest.fixture(scope="session")
def key_list(fixture_root):
    """`key_list("prob/nuscenes_gs25600.py")`: shape of every parameter and buffer of an upstream config."""
    lists = json.loads((fixture_root / "state_dict_keys.json").read_text())
    return lambda config: {key: tuple(shape) for key, (shape, _) in lists[config].items()}


@pytest.fixture(scope="session")
def detfill(fixture_root):
    """The module that made the goldens' weights, rig and images."""
    spec = importlib.util.spec_from_file_location("detfill", fixture_root / "detfill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fill(detfill):
    """`fill(module, "encoder.", seed)`: loads the goldens' weights strictly and returns the module, in eval mode.

    `prefix` is the place of the module in the whole network; what upstream fills with a constant keeps its value.
    """

    def load(module: nn.Module, prefix: str = "", seed: int = SEED) -> nn.Module:
        own = {prefix + key: value for key, value in module.state_dict().items()}
        filled = detfill.fill_state_dict(own, seed)
        module.load_state_dict({key.removeprefix(prefix): value for key, value in filled.items()}, strict=True)
        return module.eval().requires_grad_(False)

    return load


@pytest.fixture(scope="session")
def images(detfill) -> Tensor:
    """Normalised float32 images (6, 3, 96, 160) of the goldens."""
    return torch.from_numpy(detfill.images(*SIZE, SEED))


@pytest.fixture(scope="session")
def lidar2img(detfill) -> Tensor:
    """Projection matrices (6, 4, 4) of the goldens, float32."""
    return torch.from_numpy(detfill.rig(*SIZE, SEED)[0])


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
