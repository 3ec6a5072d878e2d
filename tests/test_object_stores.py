"""The programs with a store in an object store, as a user runs them, against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from workshop import SMALL_STUDENT, STORE, Workshop

from distill.errors import InputError
from distill.store import TeacherStore


def present(address: str) -> frozenset[str]:
    try:
        return TeacherStore(address).present
    except InputError:
        return frozenset()


@pytest.fixture
def dumped(workshop: Workshop, folder_of_objects: str) -> str:
    """The address of a store that two dumps have made together, of which one was killed."""
    address = f"{folder_of_objects}/killed.zarr"
    command = workshop.command("occ-dump", "gate.min_miou=1", f"store.path={address}")
    killed, other = (
        subprocess.Popen(command, cwd=workshop.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    while not present(address):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    told, complained = other.communicate(timeout=300)
    assert other.returncode == 0, complained
    assert "another process" not in told
    return address


def test_dumped_trained_and_scored(workshop: Workshop, dumped: str, tmp_path: Path) -> None:
    store, local = TeacherStore(dumped), TeacherStore(workshop.folder / STORE)
    assert store.present == local.present
    for token in store.present:
        store.verify(token)
        assert np.array_equal(store.semantics(token), local.semantics(token))
    beside = workshop.folder / "stores" / dumped.partition("://")[2]
    assert beside.with_name("killed.png").is_file()
    assert "6 keyframes are present" not in beside.with_name("killed.summary.txt").read_text()

    # loader workers must not be forks: they would wait for ever
    cache = f"teachers.stored.cache={{folder: {tmp_path}/cache, gb: 1}}"
    given = (*SMALL_STUDENT, "trainer.epochs=1", "trainer.workers=2", f"output={tmp_path}/run", cache)
    command = workshop.command("occ-train-student", *given, f"teachers.stored.paths=[{dumped}]")
    ended = subprocess.run(command, cwd=workshop.folder, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert any((tmp_path / "cache").glob("??/*"))

    checkpoint = f"checkpoint={tmp_path}/run/best.pt"
    workshop.ok("occ-eval", checkpoint, f"output={tmp_path}/eval", "workers=0", "pictures=[]", "cost.runs=1")
    sources = json.loads((tmp_path / "eval/metrics.json").read_text())["sources"]
    assert sources["teacher"]["path"] == dumped
    assert sources["teacher"]["metrics"]["Occ3D-17 mIoU"] > sources["student"]["metrics"]["Occ3D-17 mIoU"]


def test_converted_there_and_back(workshop: Workshop, folder_of_objects: str, tmp_path: Path) -> None:
    there, back = f"{folder_of_objects}/there.zarr", tmp_path / "back.zarr"
    shutil.copytree(workshop.folder / STORE, tmp_path / "store.zarr")
    for source, target in ((tmp_path / "store.zarr", there), (there, back)):
        assert "6 keyframes were written" in workshop.ok(
            "occ-store", "do=convert", f"path={source}", f"store.path={target}"
        )
    for file in back.glob("*/c.*"):
        assert file.read_bytes() == (tmp_path / "store.zarr" / file.relative_to(back)).read_bytes()
    told = workshop.ok("occ-store", f"path={there}")
    assert f"{there}: schema 5" in told and "6 of 6, 0 missing" in told
    assert "6 of 6 keyframes, 0 damaged" in workshop.ok("occ-store", "do=verify", f"path={there}")
    assert "is one of the stores that are read" in workshop.refused(
        "occ-store", "do=convert", f"path={there}", f"store.path={there}"
    )


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://no-such-bucket/a.zarr", "there is no such bucket"),
        ("'s3://me:secret@bucket/a.zarr'", "should hold no password and no query"),
        ("'s3://bucket/a.zarr?key=secret'", "should hold no password and no query"),
        ("ftp://bucket/a.zarr", "should be a path, or begin with s3://"),
    ],
)
def test_mistakes(workshop: Workshop, folder_of_objects: str, address: str, told: str) -> None:
    line = workshop.refused("occ-store", f"path={address}")
    assert told in line
    assert "secret" not in line
