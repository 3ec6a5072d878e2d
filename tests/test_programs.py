"""The three programs as a user runs them: whole runs, resuming, several ranks, and mistakes."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from workshop import SMALL_STUDENT, Workshop

from distill.store import TeacherStore

STORE = "stores/demo-fusion.zarr"


def present(store: Path) -> frozenset[str]:
    return TeacherStore(store).present


@pytest.fixture
def copy(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A copy of the workshop that a test may damage."""
    shutil.copytree(workshop.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    return Workshop(tmp_path / "copy")


# --- whole runs


def test_dump_again_skips_what_is_there(workshop):
    printed = workshop.ok("occ-dump", "gate.min_miou=1")
    assert "8 of 8 keyframes are present" in printed
    assert "0 to dump" in printed


def test_training_learns_and_evaluation_reports(workshop, trained):
    printed = workshop.ok("occ-eval", f"checkpoint={trained}", "panels=1", "max_samples=2")
    assert "EMA weights" in printed
    report = trained.parent / "eval-val"
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["teacher"]["keyframes"] == metrics["student"]["keyframes"] == 2
    rows = list(csv.reader((report / "per_class.csv").open()))
    assert rows[0][1:] == ["student", "teacher"] or rows[0][1:] == ["teacher", "student"]
    assert len(rows) == 1 + 2 + 18
    (panel,) = (report / "panels").glob("*.png")
    assert Image.open(panel).width > 1000
    assert panel.name in (report / "report.html").read_text()
    history = [json.loads(line) for line in (trained.parent / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert history[0]["train_kd_voxel"] > 0


def test_a_trained_student_serves_as_teacher(workshop, trained):
    overrides = ("teacher=checkpoint", "teacher.name=own", f"teacher.checkpoint={trained}", "gate.min_miou=0")
    workshop.ok("occ-dump", *overrides, "dump.splits=[val]", "dump.max_samples=1")
    store = zarr.open_group(workshop.folder / "stores/demo-own.zarr", mode="r")
    assert store.attrs["teacher"] == "own"


def test_frames_without_labels_are_dumped_and_distilled_from(copy):
    shutil.rmtree(copy.folder / "stores")
    shutil.rmtree(copy.folder / "data/demo/gts/demo-train-000")
    assert "on the 4 labelled ones" in copy.ok("occ-dump", "gate.min_miou=1")
    copy.ok("occ-train-student", *SMALL_STUDENT, "trainer.epochs=1", "output=runs/unlabelled")
    history = (copy.folder / "runs/unlabelled/metrics.jsonl").read_text()
    assert json.loads(history)["train_ce"] == 0
    assert json.loads(history)["train_kd_voxel"] > 0


def test_a_student_on_surroundocc(workshop):
    """The other grid, from labels to pictures; the teacher's store, on Occ3D, is refused."""
    student = (*SMALL_STUDENT, "trainer.epochs=1", "grid=surroundocc")
    workshop.ok("occ-train-student", *student, "kd=none", "output=runs/surroundocc")
    workshop.ok("occ-eval", "checkpoint=runs/surroundocc/best.pt", "store.paths=[]", "panels=1", "max_samples=1")
    report = workshop.folder / "runs/surroundocc/eval-val"
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["metric"].startswith("SurroundOcc-16 mIoU")
    assert metrics["student"]["convention"] == "SurroundOcc-16"
    assert metrics["student"]["per_class_iou"]["noise"] is None
    assert metrics["student"]["per_class_iou"]["empty"] > 50  # two steps teach no more
    assert len(list((report / "panels").glob("*.png"))) == 1
    assert "grid" in workshop.refused("occ-train-student", *student, "output=runs/mixed")


def test_training_starts_from_the_weights_it_is_given(workshop, trained):
    """At a learning rate of 0 they are also what it ends with; the batch-norm statistics go on."""
    given = (f"trainer.init={trained}", "trainer.learning_rate=0", "trainer.epochs=1", "output=runs/started")
    workshop.ok("occ-train-student", *SMALL_STUDENT, *given)
    before = torch.load(trained, weights_only=True)["ema"]
    after = torch.load(workshop.folder / "runs" / "started" / "last.pt", weights_only=True)["network"]
    learned = [name for name in before if "running_" not in name and "num_batches" not in name]
    assert len(learned) > 50
    assert all(torch.equal(before[name], after[name]) for name in learned)


def test_initial_weights_of_another_network_are_refused(workshop, trained):
    bigger = (f"trainer.init={trained}", "student.network.bev_encoder.widths=[64,96,192]", "output=runs/bigger")
    assert "weights of another architecture" in workshop.refused("occ-train-student", *SMALL_STUDENT, *bigger)


# --- resuming


def test_training_interrupted_between_epochs_ends_with_the_same_numbers(workshop, trained):
    """kill -9 after the first checkpoint, run again: the same weights as the uninterrupted run, bit for bit."""
    overrides = (*SMALL_STUDENT, "output=runs/killed", "trainer.checkpoint_every=1")
    last = workshop.folder / "runs" / "killed" / "last.pt"
    process = subprocess.Popen(workshop.command("occ-train-student", *overrides), cwd=workshop.folder)
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(last, weights_only=True)["step"] < 4
    assert "going on from" in workshop.ok("occ-train-student", *overrides)
    resumed, straight = (torch.load(path, weights_only=True) for path in (last, trained.parent / "last.pt"))
    assert resumed["history"] == straight["history"]
    for part in ("network", "ema"):
        assert all(torch.equal(value, straight[part][name]) for name, value in resumed[part].items())


def test_resuming_with_another_configuration_names_the_difference(workshop, trained):
    line = workshop.refused("occ-train-student", *SMALL_STUDENT, "output=runs/first", "trainer.learning_rate=1")
    assert "trainer.learning_rate" in line


def test_killed_dump_resumes_without_a_broken_sample(copy):
    shutil.rmtree(copy.folder / "stores")
    process = subprocess.Popen(copy.command("occ-dump", "gate.min_miou=1"), cwd=copy.folder)
    store = copy.folder / STORE
    while not store.exists() or len(present(store)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    survived = present(store)
    assert 2 <= len(survived) < 8
    printed = copy.ok("occ-dump", "gate.min_miou=1", "dump.verify=true")
    assert "0 damaged samples" in printed
    assert f"{len(survived)} of 8 keyframes are present" in printed
    assert len(present(store)) == 8


# --- several ranks


def test_two_ranks_dump_what_one_rank_dumps(copy, workshop):
    shutil.rmtree(copy.folder / "stores")
    copy.ok("occ-dump", "gate.min_miou=1", ranks=2)
    one, two = (zarr.open_group(shop.folder / STORE, mode="r") for shop in (workshop, copy))
    assert len(present(copy.folder / STORE)) == 8
    assert np.array_equal(one["voxel_semantics"][3], two["voxel_semantics"][3])


def test_two_ranks_train_and_score_like_one(workshop, trained):
    workshop.ok("occ-train-student", *SMALL_STUDENT, "output=runs/two", "trainer.epochs=1", ranks=2)
    both = workshop.folder / "runs" / "two" / "last.pt"
    assert torch.load(both, weights_only=True)["world_size"] == 2
    scores = []
    for ranks in (1, 2):
        workshop.ok("occ-eval", f"checkpoint={trained}", f"output=score{ranks}", "panels=0", ranks=ranks)
        scores.append(json.loads((workshop.folder / f"score{ranks}" / "metrics.json").read_text())["student"])
    assert scores[0] == scores[1]


# --- mistakes: one line, exit code 2, nothing damaged


@pytest.mark.parametrize(
    ("program", "overrides", "message"),
    [
        ("occ-dump", ["data=nuscenes", "data.root=nowhere", "data.fusion_checkpoint=x.pt"], "nowhere"),
        ("occ-dump", ["dump.splits=[nonsense]"], "nonsense"),
        ("occ-dump", ["teacher=checkpoint", "teacher.name=t", "teacher.checkpoint=none.pt"], "none.pt"),
        ("occ-dump", ["dump.nonsense=1"], "nonsense"),
        ("occ-dump", ["grid=surroundocc"], "grid=occ3d"),
        ("occ-train-student", [*SMALL_STUDENT, "kd=none", "grid=surroundocc", "data.surroundocc=none"], "none/samples"),
        ("occ-train-student", ["student=nonsense"], "nonsense"),
        ("occ-train-student", ["store.paths=[nowhere.zarr]"], "nowhere.zarr"),
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


def test_data_version_that_is_not_there(workshop):
    line = workshop.refused("occ-dump", "data.version=v9.9")
    assert "v9.9" in line


def test_a_weak_teacher_is_stopped(copy):
    shutil.rmtree(copy.folder / "stores")
    line = copy.refused("occ-dump", "gate.min_miou=99", "gate.after=2")
    assert "gate.min_miou" in line


def test_another_teacher_may_not_write_into_a_store(workshop, trained):
    before = present(workshop.folder / STORE)
    line = workshop.refused("occ-dump", "teacher=checkpoint", "teacher.name=fusion", f"teacher.checkpoint={trained}")
    assert "checkpoint" in line
    assert present(workshop.folder / STORE) == before


def test_a_truncated_image_is_named(copy):
    picture = next((copy.folder / "data/demo/samples/CAM_BACK").glob("*.jpg"))
    picture.write_bytes(picture.read_bytes()[:2000])
    shutil.rmtree(copy.folder / "stores")
    assert picture.name in copy.refused("occ-dump")


def test_labels_of_a_wrong_shape_are_named(copy):
    labels = next((copy.folder / "data/demo/gts").glob("*/*/labels.npz"))
    np.savez(labels, semantics=np.zeros((2, 2), np.uint8))
    shutil.rmtree(copy.folder / "stores")
    assert "labels.npz" in copy.refused("occ-dump")


def test_a_store_on_another_grid_is_refused(copy):
    metadata = copy.folder / STORE / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"ego"', '"lidar"'))
    assert "grid" in copy.refused("occ-train-student", *SMALL_STUDENT)


def test_a_damaged_sample_is_an_error_or_skipped_and_can_be_redone(copy):
    store = TeacherStore(copy.folder / STORE)
    train = json.loads((copy.folder / "data/demo/v1.0-demo/splits.json").read_text())["train"]
    scenes = zarr.open_group(store.path, mode="r")["scenes"][:].tolist()
    row = scenes.index(train[0])
    chunk = next((store.path / "voxel_logits").glob(f"c.{row}.*"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)

    epoch = (*SMALL_STUDENT, "trainer.epochs=1")
    assert store.tokens[row] in copy.refused("occ-train-student", *epoch, "output=runs/strict")
    copy.ok("occ-train-student", *epoch, "output=runs/skip", "store.missing=skip")
    (entry,) = map(json.loads, (copy.folder / "runs/skip/metrics.jsonl").read_text().splitlines())
    assert entry["frames_without_teacher"] == 1

    printed = copy.ok("occ-dump", "dump.verify=true", "gate.min_miou=1")
    assert "1 damaged samples found" in printed
    assert "1 to dump" in printed
    store.verify(store.tokens[row])


def test_more_ranks_than_samples(workshop):
    ended = workshop.run("occ-dump", "dump.max_samples=1", ranks=2)
    assert ended.returncode != 0
    assert "2 ranks for 1 keyframes" in ended.stderr
