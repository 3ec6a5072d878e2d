"""OPUS from upstream's file to a store of points and to a student, as a user runs the programs."""

from __future__ import annotations

import opus
import pytest
import torch
from workshop import Workshop

from distill.store import TeacherStore

SMALL = ("network.queries=20", "network.samples=2", "network.refined=[1,2,4]", "inputs.history=1")
STUDENT = (
    "student=opus_t",
    "objective=opus",
    *(f"student.{each}" for each in (*SMALL, "inputs.image_size=[64,160]")),
    "trainer.precision=fp32",
    "trainer.epochs=1",
    "trainer.workers=0",
    "trainer.max_val_samples=2",
)


@pytest.fixture(scope="module")
def file(workshop):
    network = opus.small()
    torch.nn.init.constant_(network.decoder.layers[-1].cls_branch[-1].bias, 0.1)  # it finds something
    return opus.saved(workshop.folder / "opus.pth", network)


@pytest.fixture(scope="module")
def dumped(workshop: Workshop, file) -> TeacherStore:
    teacher = ("teacher=opus_t", f"teacher.checkpoint={file}", *(f"teacher.{each}" for each in SMALL))
    signals = ("dump.signals=[voxels,points]", "store.path=opus.zarr", "gate.min_miou=0")
    workshop.ok("occ-dump", *teacher, *signals, "teacher.inputs.image_size=[64,160]")
    return TeacherStore(workshop.folder / "opus.zarr")


def test_a_store_says_by_which_rule_points_became_voxels(dumped):
    assert dumped.identity.signals["points"]["rule"]["power"] == 1.0
    assert dumped.identity.config["network"]["rule"]["power"] == 1.0
    token = next(iter(dumped.present))
    dumped.verify(token)
    assert len(dumped.told(token, ["points"], coverage=False).signals["points"].places)


def test_a_student_is_fine_tuned_by_labels_and_by_points(workshop, dumped, file):
    points = ("kd=voxel", "teachers.stored.paths=[opus.zarr]", "teachers.stored.signals=[points]")
    begun = ("trainer.batch_size=1", f"trainer.init={file}", "output=runs/opus")
    printed = workshop.ok("occ-train-student", *STUDENT, *points, *begun)
    assert "took 483 tensors" in printed and "best val mIoU" in printed
    again = ("teacher=checkpoint", "teacher.name=own", "teacher.checkpoint=runs/opus/last.pt", "gate.min_miou=0")
    workshop.ok("occ-dump", *again, "dump.signals=[points]", "dump.max_samples=1", "store.path=own.zarr")


def test_several_ranks_train_it(workshop):
    ended = workshop.launch(2, "occ-train-student", *STUDENT, "kd=none", "trainer.batch_size=2", "output=runs/ranks")
    assert ended.returncode == 0, ended.stderr
