"""Commands of earlier versions do what they did, and say what they are called now."""

from __future__ import annotations

import pytest
from workshop import STORE

from conf.renamed import renamed


@pytest.mark.parametrize(
    ("program", "before", "now"),
    [
        ("train", "kd.loss.voxel_weight=0.1", "kd.terms.kd_voxel.weight=0.1"),
        ("train", "trainer.loss.mask=all", "objective.mask=all"),
        ("train", "store.paths=[a.zarr,b.zarr]", "teachers.stored.paths=[a.zarr,b.zarr]"),
        ("eval", "store.paths=[a.zarr]", "teachers.stored.paths=[a.zarr]"),
        ("train", "store.render=true", "teachers.stored.signals=[gaussians]"),
        ("dump", "dump.gaussians=true", "dump.signals=[voxels,bev,gaussians]"),
        ("dump", "dump.gaussians=only", "dump.signals=[gaussians]"),
        ("dump", "data.fusion_checkpoint=best.pt", "teacher.checkpoint=best.pt"),
        ("train", "data.fusion_checkpoint=best.pt", None),
        ("train", "student.inputs.depth_stride=null", None),
    ],
)
def test_an_override_of_before_is_translated_and_told(program, before, now):
    today, (line,) = renamed(program, ["seed=1", before])
    assert today == ["seed=1"] + ([now] if now else [])
    assert line.startswith(f"{before} is ")
    assert now is None or line.endswith(f"called {now} now")


def test_the_weights_of_fusion_are_for_fusion_alone():
    before = "data.fusion_checkpoint=best.pt"
    assert renamed("dump", ["teacher=fusion", before])[0] == ["teacher=fusion", "teacher.checkpoint=best.pt"]
    assert renamed("dump", ["teacher=callable", before])[0] == ["teacher=callable"]


def test_what_is_said_in_todays_words_stays():
    arguments = ["-m", "kd=none,voxel", "store.path=a.zarr", "+x=1", "~tta"]
    assert renamed("train", arguments) == (arguments, [])


def test_a_program_takes_both(workshop):
    """The same run in the words of before and of today: it goes on, nothing of it has changed."""
    before = ("trainer.loss.ce_weight=2", "kd.loss.mask=lidar", "store.missing=skip")
    now = ("objective.terms.ce.weight=2", "kd.mask=lidar", "teachers.stored.missing=skip")
    run = ("experiment=demo", "student.inputs.image_size=[64,160]", "trainer.max_samples=1", "trainer.batch_size=1")
    run += ("trainer.epochs=1", "trainer.max_val_samples=1", "output=runs/renamed", f"teachers.stored.paths=[{STORE}]")
    ended = workshop.run("occ-train-student", *run, *before)
    assert ended.returncode == 0, ended.stderr
    assert "occ-train-student: kd.loss.mask=lidar is called kd.mask=lidar now" in ended.stderr
    assert "step 1 of 1" in workshop.ok("occ-train-student", *run, *now)
