"""A user's mistake: one line, exit code 2, nothing damaged."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest
import zarr
from workshop import SMALL_STUDENT, STORE, Workshop, rewrite

from distill.store import TeacherStore


@pytest.mark.parametrize(
    ("program", "overrides", "message"),
    [
        ("occ-dump", ["data=nuscenes", "data.root=nowhere", "teacher.checkpoint=x.pt"], "nowhere"),
        ("occ-dump", ["data.version=v9.9"], "v9.9"),
        ("occ-dump", ["dump.splits=[nonsense]"], "nonsense"),
        ("occ-dump", ["teacher=checkpoint", "teacher.name=t", "teacher.checkpoint=none.pt"], "none.pt"),
        ("occ-dump", ["dump.nonsense=1"], "nonsense"),
        ("occ-dump", ["grid=surroundocc"], "grid=occ3d"),
        ("occ-train-student", [*SMALL_STUDENT, "kd=none", "grid=surroundocc", "data.surroundocc=none"], "none/samples"),
        ("occ-train-student", ["student=nonsense"], "nonsense"),
        ("occ-train-student", ["teachers.stored.paths=[nowhere.zarr]"], "nowhere.zarr"),
        ("occ-train-student", ["trainer.max_samples=1", "trainer.batch_size=2"], "batch"),
        ("occ-train-student", ["experiment=demo", "kd.loss.mask=nonsense"], "nonsense"),
        ("occ-train-student", ["output=/proc/nowhere"], "/proc/nowhere"),
        ("occ-dump", ["store.path=/proc/nowhere/s.zarr"], "/proc/nowhere"),
        ("occ-eval", ["checkpoint=none.pt"], "none.pt"),
        ("occ-eval", [], "checkpoint"),
    ],
)
def test_mistakes_end_in_one_line(workshop, program, overrides, message):
    assert message in workshop.refused(program, *overrides)


@pytest.mark.parametrize("program", ["occ-dump", "occ-train-student", "occ-eval"])
def test_the_console_scripts_end_so(tmp_path, program):
    """As `test_mistakes_end_in_one_line`, in a process from scratch."""
    command = Workshop(tmp_path).command(program, "nonsense=1")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{program}: error: ")
    assert "nonsense" in line
    assert list(tmp_path.iterdir()) == []


def test_a_weak_teacher_is_stopped(workshop):
    line = workshop.refused("occ-dump", "gate.min_miou=99", "gate.after=2", "store.path=stores/weak.zarr")
    assert "gate.min_miou" in line


def test_another_teacher_may_not_write_into_a_store(workshop, trained):
    before = TeacherStore(workshop.folder / STORE).present
    line = workshop.refused("occ-dump", "teacher=checkpoint", "teacher.name=fusion", f"teacher.checkpoint={trained}")
    assert "checkpoint" in line
    assert TeacherStore(workshop.folder / STORE).present == before


def test_initial_weights_of_another_network_are_refused(workshop, trained):
    bigger = (f"trainer.init={trained}", "student.network.bev_encoder.widths=[64,96,192]", "output=runs/bigger")
    assert "weights of another architecture" in workshop.refused("occ-train-student", *SMALL_STUDENT, *bigger)


def test_a_truncated_image_is_named(copy):
    picture = next((copy.folder / "data/demo/samples/CAM_BACK").glob("*train*.jpg"))
    picture.write_bytes(picture.read_bytes()[:2000])
    assert picture.name in copy.refused("occ-dump")
    # its workers leave SIGTERM to the trainer, and yet end with it
    run = ("kd=none", "trainer.workers=2", "output=runs/truncated")
    assert picture.name in copy.refused("occ-train-student", *SMALL_STUDENT, *run)


def test_labels_of_a_wrong_shape_are_named(copy):
    labels = next((copy.folder / "data/demo/gts").glob("*train*/*/labels.npz"))
    np.savez(labels, semantics=np.zeros((2, 2), np.uint8))
    assert "labels.npz" in copy.refused("occ-dump")


def test_a_store_on_another_grid_is_refused(workshop):
    store = shutil.copytree(workshop.folder / STORE, workshop.folder / "stores/lidar.zarr")
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    rewrite(store, attributes | {"grid": attributes["grid"] | {"frame": "lidar"}})
    overrides = (*SMALL_STUDENT, "teachers.stored.paths=[stores/lidar.zarr]", "output=runs/lidar")
    assert "no signal answers for columns on grid" in workshop.refused("occ-train-student", *overrides)


def test_a_damaged_sample_is_an_error_or_skipped_and_can_be_redone(workshop):
    copied = shutil.copytree(workshop.folder / STORE, workshop.folder / "stores/damaged.zarr")
    store = TeacherStore(copied)
    train = json.loads((workshop.folder / "data/demo/v1.0-demo/splits.json").read_text())["train"]
    scenes = zarr.open_group(copied, mode="r")["scenes"][:].tolist()
    row = scenes.index(train[0])
    chunk = next((copied / "column_coefs").glob(f"c.{row}.*"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)

    epoch = (*SMALL_STUDENT, "trainer.epochs=1", "teachers.stored.paths=[stores/damaged.zarr]")
    assert store.tokens[row] in workshop.refused("occ-train-student", *epoch, "output=runs/strict")
    printed = workshop.ok("occ-train-student", *epoch, "output=runs/skip", "store.missing=skip")
    assert "epoch 1: 1 frames had no teacher" in printed
    (entry,) = map(json.loads, (workshop.folder / "runs/skip/metrics.jsonl").read_text().splitlines())
    assert entry["frames_without_teacher"] == 1

    printed = workshop.ok("occ-dump", "dump.verify=true", "gate.min_miou=1", "store.path=stores/damaged.zarr")
    assert "1 damaged samples found" in printed
    assert "1 to dump" in printed
    store.verify(store.tokens[row])
