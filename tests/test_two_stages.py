"""student=monoocc through the programs: trained, exported, scored and dumped; with its teacher, and in one stage."""

from __future__ import annotations

import json

from workshop import STORE, Workshop

from distill.checkpoint import export, load_checkpoint

TINY = (
    "experiment=demo_monoocc",
    f"teachers.stored.paths=[{STORE}]",
    "student.inputs.image_size=[64,160]",
    "trainer.epochs=1",
    "trainer.batch_size=1",
    "trainer.warmup_steps=1",
    "trainer.max_val_samples=1",
)
QUICK = ("cost.warmup=0", "cost.runs=1", "max_samples=1", "pictures=[]")


def terms_of(shop: Workshop, run: str) -> set[str]:
    line = json.loads((shop.folder / run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["train_loss"] < 1000
    return {name.removeprefix("train_").removesuffix("_raw") for name in line if name.endswith("_raw")}


def test_two_stages_are_trained_with_a_teacher_exported_scored_and_dumped(workshop: Workshop):
    given = ("kd=proposals", "student.network.proposals.teacher=stored", "student.inputs.history=1")
    workshop.ok("occ-train-student", *TINY, *given, "output=runs/monoocc")
    taught = {"kd_voxel", "kd_bev", "kd_proposals"}
    assert terms_of(workshop, "runs/monoocc") == {"proposals", "ce", "lovasz", "depth"} | taught
    run = workshop.folder / "runs/monoocc"
    export(load_checkpoint(str(run / "last.pt"), "ema"), run / "alone.safetensors")
    workshop.ok("occ-eval", "checkpoint=runs/monoocc/alone.safetensors", *QUICK, "output=runs/monoocc/eval")
    assert {"student", "teacher"} <= set(json.loads((run / "eval/metrics.json").read_text())["sources"])
    teacher = ("teacher=checkpoint", "teacher.name=monoocc", "teacher.checkpoint=runs/monoocc/last.pt")
    told = ("dump.signals=[voxels,features]", "dump.max_samples=1", "gate.min_miou=0", "store.path=stores/monoocc.zarr")
    workshop.ok("occ-dump", *teacher, *told)


def test_a_privileged_branch_teaches_its_voxel_features(workshop: Workshop):
    """With more keyframes and another backbone; the student learns them in the form that has a minimum."""
    larger = ("encoder.name=resnet18", "encoder.weights=none", "attention.voxel_channels=24")
    branch = ("student.inputs.history=2", *(f"student.network.{each}" for each in larger), "trainer.max_samples=1")
    workshop.ok("occ-train-student", *TINY, *branch, "kd=none", "output=runs/privileged")
    teacher = ("teacher=checkpoint", "teacher.name=privileged", "teacher.checkpoint=runs/privileged/last.pt")
    told = ("dump.signals=[voxels,bev,seen,voxel_features]", "dump.splits=[train]", "gate.min_miou=0")
    workshop.ok("occ-dump", *teacher, *told, "store.path=stores/privileged.zarr")
    listens = ("kd=voxel_features", "teachers.stored.paths=[stores/privileged.zarr]", "output=runs/by_voxels")
    channels = "kd.terms.kd_voxel_features.student_channels=16"
    line = workshop.refused("occ-train-student", *TINY, *listens, channels)
    assert "set teacher_channels=24" in line
    channels = (channels, "kd.terms.kd_voxel_features.teacher_channels=24")
    workshop.ok("occ-train-student", *TINY, *listens, *channels)
    assert terms_of(workshop, "runs/by_voxels") >= {"proposals", "kd_voxel", "kd_bev", "kd_voxel_features"}


def test_one_stage_has_no_term_of_stage_1(workshop: Workshop):
    given = ("kd=none", "student.network.proposals=null", "trainer.max_samples=1", "output=runs/monoocc_one")
    workshop.ok("occ-train-student", *TINY, *given)
    assert terms_of(workshop, "runs/monoocc_one") == {"ce", "lovasz"}
