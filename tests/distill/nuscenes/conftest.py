"""The tiny dataroot, and real keyframes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import VERSION, write_dataroot

REAL = Path(__file__).parents[4] / "shared/realdata"


@pytest.fixture
def dataroot(tmp_path):
    """A fresh tiny dataroot that a test may damage."""
    return write_dataroot(tmp_path / "nuscenes")


@pytest.fixture
def edit(dataroot):
    """A function that changes the records of a table of `dataroot`."""

    def change_table(table: str, change: Callable[[list[dict]], object]) -> None:
        path = dataroot / VERSION / f"{table}.json"
        rows = json.loads(path.read_text())
        change(rows)
        path.write_text(json.dumps(rows))

    return change_table


@pytest.fixture
def labelled(dataroot, tmp_path):
    """The tiny dataroot with labels of all keyframes: "alone" in scene-0001, "early" and "late" in scene-0002."""
    from distill.nuscenes.index import load_index
    from distill.nuscenes.labels import Occ3DLabels

    index = load_index(dataroot, VERSION, tmp_path)
    labels = Occ3DLabels(dataroot / "gts")
    for seed, keyframe in enumerate(index.keyframes("all")):
        labels.path(keyframe).parent.mkdir(parents=True)
        semantics = np.random.default_rng(seed).integers(0, 18, labels.grid.shape, dtype=np.uint8)
        np.savez(labels.path(keyframe), semantics=semantics, mask_camera=semantics > 8, mask_lidar=semantics > 4)
    return index, labels


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    """The index of a tiny dataroot that no test changes."""
    from distill.nuscenes.index import load_index

    folder = tmp_path_factory.mktemp("tiny")
    return load_index(write_dataroot(folder / "nuscenes"), VERSION, folder / "cache")


@pytest.fixture(scope="session")
def real_data():
    """The folder with three real keyframes; tests skip without it."""
    if not REAL.is_dir():
        pytest.skip(f"no real nuScenes keyframes at {REAL}")
    return REAL
