"""The three programs as a user runs them: whole runs, one after the other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import zarr
from PIL import Image
from workshop import SMALL_STUDENT, STORE, Workshop

# latency is not what these tests are about
QUICK = ("cost.warmup=0", "cost.runs=1", "max_samples=2")


def metrics_of(report: Path) -> dict[str, Any]:
    return json.loads((report / "metrics.json").read_text())


def history_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_dump_again_skips_what_is_there(workshop: Workshop):
    printed = workshop.ok("occ-dump", "gate.min_miou=1")
    assert "6 of 6 keyframes are present" in printed
    assert "0 to dump" in printed


def test_training_learns(trained):
    history = history_of(trained.parent)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert history[0]["train_kd_voxel"] > 0


def test_evaluation_reports(workshop, trained):
    printed = workshop.ok("occ-eval", f"checkpoint={trained}", *QUICK, "pictures=[best]", "export=exported")
    assert "EMA" in printed
    report = trained.parent / "eval-val-max_samples_2"
    metrics = metrics_of(report)
    assert metrics["scored"]["keyframes"] == 2
    assert list(metrics["sources"]) == ["student", "teacher"]
    student, teacher = metrics["sources"].values()
    assert 0 < student["metrics"]["Occ3D-17 mIoU"] < teacher["metrics"]["Occ3D-17 mIoU"]
    assert student["cost"]["parameters"] > 1e6
    rows = list(csv.reader((report / "per_class.csv").open()))
    assert rows[0] == ["metric", "class", "student", "teacher"]
    assert sum(row[0] == "Occ3D-17 IoU" for row in rows) == 18
    (panel,) = (report / "panels").glob("*.png")
    assert Image.open(panel).width > 1000
    assert panel.stem.split("_")[-1] in (report / "report.html").read_text()

    # what was exported scores as what it was exported from
    data = ("data.root=data/demo", "data.version=v1.0-demo", "data.cache_dir=cache")
    workshop.ok("occ-eval", "sources=[exported/student]", *data, *QUICK, "pictures=[]")
    again = metrics_of(workshop.folder / "exported/student-eval-val-max_samples_2")["sources"]["student"]
    assert again["confusion"] == student["confusion"]


def test_a_trained_student_serves_as_teacher(workshop, trained):
    overrides = ("teacher=checkpoint", "teacher.name=own", f"teacher.checkpoint={trained}", "gate.min_miou=0")
    workshop.ok("occ-dump", *overrides, "dump.splits=[val]", "dump.max_samples=1")
    store = zarr.open_group(workshop.folder / "stores/demo-own-occ3d.zarr", mode="r")
    assert store.attrs["teacher"] == "own"


def test_frames_without_labels_are_dumped_and_distilled_from(copy):
    shutil.rmtree(copy.folder / "data/demo/gts/demo-train-000")
    assert "on the 1 labelled ones" in copy.ok("occ-dump", "gate.min_miou=1", "dump.max_samples=3")
    copy.ok("occ-train-student", *SMALL_STUDENT, "trainer.epochs=1", "output=runs/unlabelled")
    (entry,) = history_of(copy.folder / "runs/unlabelled")
    assert entry["train_ce"] == 0
    assert entry["train_kd_voxel"] > 0


def test_a_student_on_surroundocc(workshop):
    """The other grid, from labels to pictures; the teacher's store, on Occ3D, is refused."""
    student = (*SMALL_STUDENT, "trainer.epochs=1", "grid=surroundocc")
    workshop.ok("occ-train-student", *student, "kd=none", "output=runs/surroundocc")
    workshop.ok(
        "occ-eval", "checkpoint=runs/surroundocc/best.pt", "teachers.stored.paths=[]", *QUICK, "pictures=[worst]"
    )
    report = workshop.folder / "runs/surroundocc/eval-val-max_samples_2-teachers.stored.paths"
    metrics = metrics_of(report)
    assert metrics["scored"]["convention"] == "SurroundOcc-16"
    iou = metrics["sources"]["student"]["per_class"]["SurroundOcc-16 IoU"]
    assert iou["noise"] is None
    assert iou["empty"] > 50  # two steps teach no more
    assert len(list((report / "panels").glob("*.png"))) == 1
    mixed = (f"teachers.stored.paths=[{STORE}]", "output=runs/mixed")
    assert "grid" in workshop.refused("occ-train-student", *student, *mixed)


def test_training_starts_from_the_weights_it_is_given(workshop, trained):
    """At a learning rate of 0 they are also what it ends with; the batch-norm statistics go on."""
    given = (f"trainer.init={trained}", "trainer.learning_rate=0", "trainer.epochs=1", "output=runs/started")
    workshop.ok("occ-train-student", *SMALL_STUDENT, *given)
    before = torch.load(trained, weights_only=True)["ema"]
    after = torch.load(workshop.folder / "runs" / "started" / "last.pt", weights_only=True)["network"]
    learned = [name for name in before if "running_" not in name and "num_batches" not in name]
    assert len(learned) > 50
    assert all(torch.equal(before[name], after[name]) for name in learned)
