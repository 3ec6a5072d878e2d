"""The tiny dataroot, and real keyframes."""

import json
from collections.abc import Callable
from pathlib import Path

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
